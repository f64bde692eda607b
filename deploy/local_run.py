"""`tuneloop up`: which processes a data directory runs, and how their start is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.addresses import (
    addresses,
    choose_ports,
    credentials,
    identity_secret,
    kafka_config,
    make_identity_secret,
    metrics_port,
    use_credentials,
)
from deploy.clickhouse_login import passwords_folder, writer
from deploy.local import kafka as local_kafka
from deploy.local import supervise
from deploy.local.clickhouse_access import make_passwords
from deploy.local.errors import LocalPartError
from deploy.local.folders import data_folder, import_environment
from deploy.local.supervise import Process, State
from deploy.local.supervised import read_spec
from deploy.processes import CONSUMERS, ready_file
from deploy.settings import PREFIX, SCALARS, Settings, as_text
from deploy.shown import is_local, readable, shown
from streams.clickhouse import connect

Note = Callable[[str], None]
# Threads of numeric libraries multiply across ten processes; the ones that compute set their own number. Idle
# threads sleep, as the cores are shared. A training step's shapes vary, and each shape cached costs memory. Arrow's own
# allocator, and glibc's arenas where each thread has one, keep what was freed.
QUIET = {
    "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",  # bars of libraries have no business in a log
    "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}  # fmt: skip


def up(settings: Settings, on_state: supervise.OnState, on_note: Note, timeout_s: float) -> None:
    """Start what is missing and return when all is ready. Raises `SupervisorError`, `LocalPartError`."""
    data_folder(settings.data)
    use_credentials(settings)
    if supervise.is_running(settings.data):
        spec = read_spec(settings.data)
        if spec is not None:
            supervise.start(settings.data, spec.processes, on_state, timeout_s)
            return
    check_given(settings)
    make_identity_secret(settings)
    identity_secret(settings)
    if not settings.clickhouse_url:
        make_passwords(passwords_folder(settings))
    supervise.start(settings.data, processes(settings, on_note), on_state, timeout_s)


def check_given(settings: Settings) -> None:
    """Raises `LocalPartError` where a given address does not answer."""
    if settings.kafka_bootstrap and not local_kafka.ready(settings.kafka_bootstrap, timeout_s=5):
        raise LocalPartError(
            f"no Kafka answers at kafka_bootstrap = {shown(settings.kafka_bootstrap)}: start it, correct the address, "
            "or leave it empty for a local one"
        )
    url = settings.clickhouse_url
    if url:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            connect(url, timeout_s=3, login=writer(settings))
        except ClickHouseError as error:
            raise LocalPartError(
                f"no ClickHouse answers at clickhouse_url = {shown(url)}: start it, correct the address or "
                "clickhouse_user and clickhouse_password_file, or leave it empty for a local one "
                f"({str(error).splitlines()[0]})"
            ) from error


def processes(settings: Settings, on_note: Note = lambda _: None) -> list[Process]:
    """Everything that runs for these settings, local parts first."""
    ports = choose_ports(settings)
    local: list[Process] = []
    if not settings.kafka_bootstrap:
        on_note("preparing Kafka (the first time, its jars are downloaded)")
        jars = local_kafka.fetch_jars(on_note)
        credential = kafka_config(settings)
        assert credential is not None, "a local broker has one"
        broker = local_kafka.prepare(settings.data / "kafka", ports["kafka"], credential, jars, on_note=on_note)
        local.append(Process("kafka", broker.argv, broker.env, ready=f"kafka:{broker.bootstrap}"))
    if not settings.clickhouse_url:
        folder, port = settings.data / "clickhouse", ports["clickhouse"]
        argv = (sys.executable, "-m", "deploy.local.clickhouse", "--data", str(folder), "--port", str(port),
                "--passwords", str(passwords_folder(settings)))  # fmt: skip
        local.append(Process("clickhouse", argv, _environment(settings), ready=f"http:http://127.0.0.1:{port}/ping"))
    names = [process.name for process in local]
    return [*local, *(_consumer(settings, name, names, metrics_port(ports, name)) for name in CONSUMERS)]


def _consumer(settings: Settings, name: str, local: list[str], metrics_port: int) -> Process:
    after = [part for part in local if part == "kafka" or name in ("monitor", "conduct", "erase")]
    if name == "conduct":
        after.append("monitor")
    if name == "serve":
        after.append("register")
        ready = f"http:{addresses(settings).http}/readyz"
    else:
        ready = f"file:{ready_file(settings, name)}"
    argv = (sys.executable, "-m", "deploy.processes", name)
    environment = {**_environment(settings), "TUNELOOP_METRICS_PORT": str(metrics_port)}
    return Process(name, argv, environment, tuple(after), ready)


def _environment(settings: Settings) -> dict[str, str]:
    """The settings in force, handed to a child as environment; models travel by the settings file."""
    environment = {**QUIET, **import_environment()}
    environment |= {f"{PREFIX}{name.upper()}": as_text(getattr(settings, name)) for name in SCALARS}
    environment[f"{PREFIX}DATA_DIR"] = str(settings.data)
    environment |= credentials(settings)
    if settings.file:
        environment[f"{PREFIX}CONFIG"] = settings.file
    return environment


def where(settings: Settings) -> dict[str, str]:
    """The address of each part that listens for users, as it may be shown."""
    known = addresses(settings)
    return {"kafka": shown(known.bootstrap), "clickhouse": shown(known.clickhouse), "serve": f"{known.http}/v1"}


def in_force(settings: Settings) -> list[str]:
    """Which settings file is obeyed, and what leads to another machine or lets others in, a line each."""
    lines = [f"settings file: {Path(settings.file).absolute() if settings.file else 'none, built-in defaults'}"]
    addresses_given = {
        "kafka_bootstrap": settings.kafka_bootstrap, "clickhouse_url": settings.clickhouse_url,
        "artifacts": settings.artifacts if "://" in settings.artifacts else "",
    }  # fmt: skip
    for name, address in addresses_given.items():
        if address and not is_local(address):
            lines.append(f"another machine has the data: {name} = {shown(address)} (from {settings.sources.get(name)})")
    for name in ("http_host", "metrics_host"):
        host = getattr(settings, name)
        if not is_local(host):
            lines.append(f"other machines may come in: {name} = {host!r} (from {settings.sources.get(name)})")
    return lines


_MARKS = {"ready": ("✓", "green"), "starting": ("…", "yellow"), "waiting": ("·", "dim"), "stopped": ("■", "dim")}


class StartDisplay:
    """A live list of processes on a terminal; a line per change elsewhere is left out."""

    def __init__(self, console: Console, verb: str = "starting") -> None:
        self._console, self._verb, self._note = console, verb, ""
        self._states: dict[str, State] = {}
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> StartDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def on_note(self, note: str) -> None:
        self._note = note
        self._draw()

    def on_state(self, states: dict[str, State]) -> None:
        self._states, self._note = states, ""
        self._draw()

    def _draw(self) -> None:
        if not self._live:
            return
        grid = Table.grid(padding=(0, 1))
        done = sum(state.status == "ready" for state in self._states.values())
        head = self._note or f"{self._verb}: {done} of {len(self._states)} ready"
        grid.add_row("", Text(readable(head)))
        for name, state in self._states.items():
            told = Text.assemble(name, " ", (state.status, "dim"))
            grid.add_row(Text.assemble(_MARKS.get(state.status, ("!", "red"))), told)
        self._live.update(grid)
