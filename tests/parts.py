"""Real parts for tests and benchmarks: a Kafka broker and a ClickHouse of their own, gone when the block ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from deploy.local import kafka as local_kafka
from deploy.local.clickhouse_access import WRITER, make_passwords
from deploy.local.ports import free_ports
from streams import kafka, kafka_security
from streams.clickhouse import PASSWORD_FILE_VARIABLE, USER_VARIABLE, connect, credentials
from streams.monitor.migrate import migrate

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 60.0


def credential(folder: Path) -> Path:
    """The file with which clients of this process come in; where none is named yet, one in `folder` is."""
    path = Path(os.environ.setdefault(kafka_security.VARIABLE, str(folder / "credential")))
    local_kafka.make_credential(path)
    return path


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """HOST:PORT of a broker that has every topic of `schemas.topics`. Raises `LocalPartError`."""
    prepared = local_kafka.prepare(folder, free_ports(1)[0], credential(folder), local_kafka.fetch_jars())
    with (folder / "out").open("ab") as out:
        process = subprocess.Popen(prepared.argv, stdout=out, stderr=out)
    try:
        _wait(process, lambda: local_kafka.registered(prepared.bootstrap), folder / "out")
        kafka.ensure_topics(prepared.bootstrap)
        yield prepared.bootstrap
    finally:
        process.kill()
        process.wait()


@contextmanager
def clickhouse(folder: Path) -> Iterator[str]:
    """URL of a ClickHouse that has every migration applied."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports(1)[0]
    command = clickhouse_command(folder / "data", port, clickhouse_passwords(folder / "passwords"))
    with (folder / "out").open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, lambda: _answers(url), folder / "out")
        migrate(connect(url))
        yield url
    finally:
        process.terminate()
        process.wait()


def clickhouse_command(data: Path, port: int, passwords: Path) -> list[str]:
    """How a ClickHouse is started on this machine."""
    options = {"--data": data, "--port": port, "--passwords": passwords}
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "deploy.local.clickhouse", *words]


def clickhouse_passwords(folder: Path) -> Path:
    """The folder of the users' passwords: one for every ClickHouse of a run, whose writer the environment names."""
    known = credentials()
    if known.user == WRITER and Path(known.password_file).is_file():
        return Path(known.password_file).parent
    make_passwords(folder)
    os.environ.update({USER_VARIABLE: WRITER, PASSWORD_FILE_VARIABLE: str(folder / WRITER)})
    return folder


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping", timeout=1).text == "Ok.\n"
    except httpx.TransportError:
        return False


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], out: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        assert process.poll() is None, out.read_text()[-2000:]
        assert time.monotonic() < deadline, f"not ready within {START_TIMEOUT_S:.0f} s: {out.read_text()[-2000:]}"
        time.sleep(0.05)
