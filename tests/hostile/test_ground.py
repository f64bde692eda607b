"""The ground it all stands on: whose files these are, what is imported, which jars run, where an export lands."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy import local_run, processes
from deploy.cli.context import Context
from deploy.exporting import ExportError, whole
from deploy.local import folders, jars, kafka
from deploy.local.errors import LocalPartError
from deploy.local.folders import LAYOUT, check_layout, data_folder, import_environment, own_folder
from deploy.settings import Settings
from deploy.shown import is_local

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def careless() -> Iterator[None]:
    """A shell whose umask lets everybody write."""
    before = os.umask(0)
    yield
    os.umask(before)


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (mode(path), path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))}


# Whose folder it is.


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def a_file(path: Path) -> None:
    path.write_text("")


def within_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def written_by_others(path: Path) -> None:
    path.mkdir()
    (path / LAYOUT_NAME).write_text(f"{LAYOUT}\n")
    path.chmod(0o777)


def written_by_the_group(path: Path) -> None:
    written_by_others(path)
    path.chmod(0o770)


LAYOUT_NAME = folders.LAYOUT_FILE
NOT_OURS = (a_link, a_link_to_nothing, a_file, within_a_file, a_pipe, written_by_others, written_by_the_group)


@pytest.mark.parametrize("make", NOT_OURS)
def test_what_is_not_our_own_folder_is_refused(make: Callable[[Path], None], tmp_path) -> None:
    (tmp_path / "place").mkdir()
    make(tmp_path / "place" / "data")
    before = listing(tmp_path)
    with pytest.raises(LocalPartError) as refused:
        data_folder(tmp_path / "place" / "data")
    assert "data" in str(refused.value) and "\n" not in str(refused.value)
    assert listing(tmp_path) == before, "nothing was made, opened or closed"


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(LocalPartError, match="belongs to somebody else"):
        data_folder(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o755 and not (tmp_path / "data" / LAYOUT_NAME).exists()


@pytest.mark.parametrize("opened", [0o755, 0o750, 0o711, 0o705, 0o777])
def test_a_folder_that_others_could_enter_is_closed_and_it_is_said(opened: int, tmp_path, caplog) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(opened)
    data_folder(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700 and f"mode {opened:o}" in caplog.text


def test_whatever_the_umask_each_new_folder_is_closed(tmp_path, careless) -> None:
    own_folder(tmp_path / "a" / "b" / "c")
    assert {mode(path) for path in tmp_path.rglob("*")} == {0o700}
    data_folder(tmp_path / "a" / "b" / "c")
    assert mode(tmp_path / "a" / "b" / "c" / LAYOUT_NAME) == 0o600


def test_a_command_that_only_looks_makes_nothing(tmp_path) -> None:
    for words in (["logs", "work"], ["down"]):
        command = [sys.executable, "-m", "deploy.cli.main", *words]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert list(tmp_path.iterdir()) == [], words


def careless_run(folder: Path, words: list[str], until: Path, seconds: float = 20) -> None:
    """A command started under umask 0 and ended once a file is there."""
    shell = ["sh", "-c", 'umask 0; exec "$@"', "sh", sys.executable, "-m", *words]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "TUNELOOP_KAFKA_BOOTSTRAP": "127.0.0.1:9", "TUNELOOP_CLICKHOUSE_URL": "http://127.0.0.1:9"}
    given.pop("PYTHONSAFEPATH", None)
    with subprocess.Popen(shell, cwd=folder, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + seconds
        while not until.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.kill()


@pytest.mark.parametrize("words", [["deploy.processes", "prepare"], ["deploy.cli.main", "run", "prepare"]])
def test_a_process_by_itself_makes_the_folder_for_its_owner(words: list[str], tmp_path) -> None:
    careless_run(tmp_path, words, tmp_path / ".tuneloop" / LAYOUT_NAME)
    made = list(tmp_path.rglob("*"))
    assert tmp_path / ".tuneloop" / LAYOUT_NAME in made
    assert [path for path in made if mode(path) & 0o077] == []


# Which layout.


def old(folder: Path) -> None:
    (folder / "kafka").mkdir()


def marked(text: str) -> Callable[[Path], None]:
    def mark(folder: Path) -> None:
        (folder / LAYOUT_NAME).write_text(text)

    return mark


def linked(folder: Path) -> None:
    (folder.parent / "good").write_text(f"{LAYOUT}\n")
    (folder / LAYOUT_NAME).symlink_to(folder.parent / "good")


def a_folder_as_mark(folder: Path) -> None:
    (folder / LAYOUT_NAME).mkdir()


OTHER_LAYOUTS = {
    "none": old, "older": marked("1\n"), "newer": marked(f"{LAYOUT + 1}\n"), "empty": marked(""), "linked": linked,
    "words": marked(f"{LAYOUT} or so\n"), "folder": a_folder_as_mark, "bytes": marked("\ufeff2\x00"),
    "long": marked("2" * 10_000), "escape": marked("\x1b[2J2"), "other": lambda folder: (folder / "x.txt").write_text(""),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_another_layout_is_refused_at_every_door_with_the_way_out(name: str, tmp_path, monkeypatch) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    OTHER_LAYOUTS[name](data)  # type: ignore[operator]
    before = listing(tmp_path)
    settings = Settings(data_dir=str(data), kafka_bootstrap="127.0.0.1:9", clickhouse_url="http://127.0.0.1:9", http_port=9)
    monkeypatch.setattr(Context, "settings", settings)
    monkeypatch.setattr(processes, "keep_private", lambda: None)
    doors: list[Callable[[], object]] = [
        lambda: local_run.up(settings, lambda _: None, lambda _: None, 1), lambda: processes.run("prepare", settings),
        lambda: Context().addresses, lambda: Context().store,
    ]  # fmt: skip
    for door in doors:
        with pytest.raises(LocalPartError) as refused:
            door()
        said = str(refused.value)
        assert str(data) in said and f"needs layout {LAYOUT}" in said and "--data-dir" in said and said.isprintable()
    assert listing(tmp_path) == before and mode(data) == 0o755, "it is left exactly as it was"


def test_our_own_layout_and_an_empty_folder_are_taken(tmp_path) -> None:
    check_layout(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        data_folder(tmp_path / "empty")
    (tmp_path / "empty" / "kafka").mkdir()
    data_folder(tmp_path / "empty")


# What is imported.

SHADOWED = (
    "numpy", "msgspec", "psutil", "filelock", "typer", "rich", "confluent_kafka", "chdb", "ray", "torch", "deploy",
    "streams", "schemas", "serving", "threading", "subprocess", "multiprocessing", "selectors", "json", "random",
)  # fmt: skip
LOOK = "import numpy, msgspec, psutil, random, json, selectors; import time; open({done!r}, 'w').close(); time.sleep({stay})"
SCRIPT = """
import os, pathlib, subprocess, sys, time
from deploy.local.folders import import_environment, keep_private
keep_private()
here = pathlib.Path(sys.argv[1])
def wait(path):
    end = time.monotonic() + 30
    while not path.exists() and time.monotonic() < end: time.sleep(0.05)
    assert path.exists(), path
"""
CHILDREN = {
    "supervisor and what it keeps": """
from deploy.local import supervise
from deploy.local.supervise import Process
look = Process("look", (sys.executable, "-c", {look!r}), ready=f"file:{done}")
fence = Process("fence", (sys.executable, "-m", "deploy.local.kafka_start", str(here), "/bin/sleep", "60"))
supervise.start(here / "data", [look, fence], lambda states: None, 60)
supervise.stop(here / "data")
""",
    "a process as up starts it": """
from deploy.local_run import _environment
from deploy.settings import Settings
for module in ("deploy.processes", "deploy.local.clickhouse"):
    words = [sys.executable, "-m", module] + (["--help"] if "clickhouse" in module else [])
    subprocess.run(words, env={{**os.environ, **_environment(Settings())}}, capture_output=True)
pathlib.Path({done!r}).touch()
""",
    "kafka's first start": """
from deploy.local.kafka import Prepared, _start_once
line = "touch " + {done!r} + "; echo Kafka Server started"
start = (sys.executable, "-m", "deploy.local.kafka_start", str(here), "/bin/sh", "-c", line)
os.environ.pop("PYTHONSAFEPATH")
_start_once(Prepared(start, import_environment()))
""",
    "a warm child": """
import threading
from streams.long_job import WarmChild
child = WarmChild("tests.slow_child", (str(here),))
child.wait_warm(threading.Event())
child.ask({{"job_id": "looked"}})
wait(pathlib.Path({done!r}))
child.close()
""",
    "a spawned helper": """
import multiprocessing
process = multiprocessing.get_context("spawn").Process(target=pathlib.Path.touch, args=(pathlib.Path({done!r}),))
process.start(); process.join(60)
""",
    "a worker of Ray": """
from deploy.local.ray import start_ray
start_ray(here / "data", num_cpus=1)
import ray
@ray.remote
def look():
    import numpy, msgspec, psutil, random, json, selectors, pathlib
    from streams import kafka
    pathlib.Path({done!r}).touch()
ray.get(look.remote(), timeout=60)
ray.shutdown()
""",
}


LONG = ("a worker of Ray",)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind in LONG)) for kind in CHILDREN])
def test_no_child_imports_from_where_it_was_called_or_writes_for_others(kind: str, tmp_path) -> None:
    cwd, here = tmp_path / "data set from a stranger", tmp_path / "here"
    cwd.mkdir()
    here.mkdir(mode=0o700)
    done = str(here / "looked")
    for name in SHADOWED:
        (cwd / f"{name}.py").write_text(f"open({str(here / 'imported')!r}, 'a').write({name!r} + '\\n')\nraise SystemExit(9)\n")
    look = LOOK.format(done=done, stay=60)
    script = SCRIPT + CHILDREN[kind].format(look=look, done=done)
    script = "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in script.splitlines())
    (here / "script.py").write_text(script)
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    given.pop("PYTHONSAFEPATH", None)
    # As the console script runs: what lies beside it comes first, not the current folder.
    command = [sys.executable, here / "script.py", here]
    ran = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=180, umask=0)
    imported = (here / "imported").read_text().split() if (here / "imported").exists() else []
    assert imported == []
    assert ran.returncode == 0 and Path(done).exists(), ran.stderr[-3000:]
    assert mode(Path(done)) == 0o600, "whoever writes it, the caller's umask of 0 is not in force"


@pytest.mark.parametrize("given", ["", ":", ".", "x:", ":/tmp/x", "./x:../y", "/tmp/x:"])
def test_a_pythonpath_brings_no_current_folder(given: str, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", given)
    parts = import_environment()["PYTHONPATH"].split(os.pathsep)
    assert parts[0] == str(ROOT) and all(os.path.isabs(part) for part in parts)
    assert ("/tmp/x" in parts) == ("/tmp/x" in given)


# Which jars run.

GOOD = {"kafka.jar": b"PK good", "log4j.jar": b"PK fine"}


def changed(folder: Path) -> None:
    (folder / "kafka.jar").write_bytes(b"PK evil")


def cut_short(folder: Path) -> None:
    (folder / "kafka.jar").write_bytes(GOOD["kafka.jar"][:-1])


def one_more(folder: Path) -> None:
    (folder / "aaa.jar").write_bytes(b"PK evil")


def one_more_in_capitals(folder: Path) -> None:
    (folder / "AAA.JAR").write_bytes(b"PK evil")


def one_less(folder: Path) -> None:
    (folder / "log4j.jar").unlink()


def exchanged(folder: Path) -> None:
    (folder / "kafka.jar").write_bytes(GOOD["log4j.jar"])
    (folder / "log4j.jar").write_bytes(GOOD["kafka.jar"])


def a_link_to_another(folder: Path) -> None:
    (folder.parent / "evil.jar").write_bytes(b"PK evil")
    (folder / "kafka.jar").unlink()
    (folder / "kafka.jar").symlink_to(folder.parent / "evil.jar")


def a_jar_that_is_a_folder(folder: Path) -> None:
    (folder / "kafka.jar").unlink()
    (folder / "kafka.jar").mkdir()


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


TAMPERED = (changed, cut_short, one_more, one_more_in_capitals, one_less, exchanged, a_link_to_another, a_jar_that_is_a_folder, emptied)


def fill(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    """Kafka's folder in a cache of two jars, and a list of them."""
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNELOOP_KAFKA_JARS", raising=False)
    (tmp_path / "sums").write_text("".join(f"{hashlib.sha256(c).hexdigest()}  {jars.KAFKA.name}/{n}\n" for n, c in GOOD.items()))
    monkeypatch.setattr(jars, "SUMS", tmp_path / "sums")
    monkeypatch.setattr(jars.zipfile, "is_zipfile", lambda path: True)
    folder = tmp_path / "cache" / jars.KAFKA.name
    fill(folder, GOOD)
    return folder


def delivering(monkeypatch, files: dict[str, bytes] | None) -> list[str]:
    """A repository that delivers these, or is away; returns what it was asked for."""
    asked: list[str] = []

    def download(repository: Path, archives: jars.Archives, said: str, on_note: object) -> list[Path]:
        asked.append(archives.name)
        if files is None:
            raise LocalPartError(f"{said}Cannot download")
        return fill(repository, files)

    monkeypatch.setattr(jars, "_download", download)
    return asked


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_tampered_jar_is_fetched_anew_once(tamper: Callable[[Path], None], cached, monkeypatch) -> None:
    asked = delivering(monkeypatch, GOOD)
    kafka.fetch_jars()
    assert asked == [], "an honest cache is not asked about"
    tamper(cached)
    notes: list[str] = []
    assert kafka.fetch_jars(notes.append) == str(cached / "*")
    assert content(cached) == GOOD and asked == [jars.KAFKA.name] and "fetching it anew" in notes[0]
    assert [path.name for path in cached.parent.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_tampered_jar_never_runs_without_a_network(tamper: Callable[[Path], None], cached, monkeypatch) -> None:
    delivering(monkeypatch, None)
    tamper(cached)
    for _ in range(2):
        with pytest.raises(LocalPartError, match=r"\w+\.(jar|JAR) is ") as refused:
            kafka.fetch_jars()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tamper", TAMPERED)
def test_what_a_repository_delivers_is_compared_too(tamper: Callable[[Path], None], cached, monkeypatch, tmp_path) -> None:
    tamper(fill(tmp_path / "evil" / "x", GOOD)[0].parent)
    delivered = {path.name: path.read_bytes() for path in (tmp_path / "evil" / "x").iterdir() if path.is_file()}
    emptied(cached)
    asked = delivering(monkeypatch, delivered)
    with pytest.raises(LocalPartError, match=r"\w+\.(jar|JAR) is .* nothing of it was run") as refused:
        kafka.fetch_jars()
    assert "\n" not in str(refused.value) and asked == [jars.KAFKA.name]
    assert content(cached) == {} and [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_the_list_in_the_repository_names_every_jar() -> None:
    for archives in (jars.KAFKA, jars.JDBC):
        listed = jars.listed(archives.name)
        assert len(listed) >= 3 and all(len(digest) == 64 and name.endswith(".jar") for name, digest in listed.items())
    assert jars.listed("kafka-0.0.0") == {} and jars.differing(ROOT, {})


# Where an export lands.


def old_name(path: Path, secret: Path) -> None:
    path.with_name(f".{path.name}.{os.getpid()}.tmp").symlink_to(secret)


def the_target(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def the_target_to_nothing(path: Path, secret: Path) -> None:
    path.symlink_to(secret.with_name("nothing"))


def the_target_hard(path: Path, secret: Path) -> None:
    path.hardlink_to(secret)


def an_open_file(path: Path, secret: Path) -> None:
    path.write_text("old")
    path.chmod(0o666)


def a_pipe_there(path: Path, secret: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [old_name, the_target, the_target_to_nothing, the_target_hard, an_open_file, a_pipe_there])
def test_an_export_is_its_owners_and_follows_nothing(make: Callable[[Path, Path], None], tmp_path, careless) -> None:
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    target = tmp_path / "out.jsonl"
    make(target, secret)
    with whole(target) as file:
        file.write(b"people's words")
    assert secret.read_text() == "untouched" and not (tmp_path / "nothing").exists()
    assert target.read_bytes() == b"people's words" and not target.is_symlink() and mode(target) == 0o600


def test_an_export_that_fails_leaves_nothing(tmp_path) -> None:
    with suppress(ZeroDivisionError), whole(tmp_path / "x") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError), whole(tmp_path):
        pass


# What is in force.


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("kafka_bootstrap", "broker.evil:9092", "broker.evil:9092"), ("kafka_bootstrap", "127.0.0.1:1,evil:9092", "evil:9092"),
        ("kafka_bootstrap", "127.0.0.1.evil:9092", "127.0.0.1.evil"), ("kafka_bootstrap", "localhost.evil", "localhost.evil"),
        ("clickhouse_url", "http://evil:8123", "http://evil:8123"),
        ("clickhouse_url", "http://[::ffff:8.8.8.8]:1", "8.8.8.8"), ("artifacts", "s3://evil/x", "s3://evil/x"),
        ("metrics_host", "0.0.0.0", "0.0.0.0"), ("http_host", "::", "'::'"), ("metrics_host", "", "''"),
    ],
)  # fmt: skip
def test_up_says_what_leads_elsewhere(name: str, value: str, shown: str) -> None:
    lines = local_run.in_force(Settings(**{name: value}, allow_unauthenticated=True, sources={name: "tuneloop.toml"}, file="tuneloop.toml"))  # type: ignore[arg-type]
    assert lines[0] == f"settings file: {Path('tuneloop.toml').absolute()}"
    assert len(lines) == 2 and shown in lines[1] and "(from tuneloop.toml)" in lines[1] and "u:p" not in lines[1]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "http://localhost:1", "127.8.8.8:1, 127.0.0.1:2"])
def test_what_stays_here_is_not_said(address: str) -> None:
    assert is_local(address)
    settings = Settings(kafka_bootstrap=address, artifacts="/srv/artifacts")
    assert local_run.in_force(settings) == ["settings file: none, built-in defaults"]


def test_spec_and_state_hold_their_environment_for_the_owner_alone(tmp_path, careless) -> None:
    from deploy.local.supervised import Spec, run_dir, write_spec

    write_spec(tmp_path / "data", Spec("id", ()))
    assert json.loads((run_dir(tmp_path / "data") / "spec.json").read_text())["run_id"] == "id"
    assert [path for path in tmp_path.rglob("*") if mode(path) & 0o077] == []
