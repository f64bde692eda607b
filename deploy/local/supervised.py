"""What is supervised and how it is doing, as values, and the two files that hold them.

DIR/run/spec.json: what the run consists of, written once by `supervise.start`. DIR/run/state.json: how each process
is doing, written by the supervisor alone. Both are replaced atomically and readable by their owner only (a process's
environment may hold secrets). Pure apart from those two files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deploy.local.folders import own_folder

Status = Literal["waiting", "starting", "ready", "backoff", "failed", "stopping", "stopped", "orphaned"]


@dataclass(frozen=True)
class Process:
    """One program to keep running.

    `env` is added to the caller's environment. `after` names what must be ready first. `ready` is a probe
    ("tcp:HOST:PORT", "kafka:HOST:PORT" for a broker, "http:URL" for a 200, "file:PATH" for a file written since the
    start), None: running is ready. On stop it gets SIGTERM and, `grace_s` later, SIGKILL. One that is not ready
    `start_limit_s` after its start hangs: it is killed and counts as one that died.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    ready: str | None = None
    grace_s: float = 10.0
    start_limit_s: float = 240.0


@dataclass(frozen=True)
class State:
    """How one process is doing. Times are seconds since the epoch; `since`: when it took this status.

    `waiting`: for what it comes after. `backoff`: it died and starts again. `failed`: it never came up.
    `orphaned`: it runs, but its supervisor is gone.
    """

    name: str
    status: Status = "waiting"
    pid: int | None = None
    create_time: float | None = None
    restarts: int = 0
    since: float = 0.0
    started_at: float | None = None
    last_exit: int | None = None


@dataclass(frozen=True)
class Spec:
    """A run: its id, which every process of it carries in its environment, and its processes in starting order."""

    run_id: str
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Snapshot:
    """state.json: who supervises (pid and creation time) and how each process is doing."""

    run_id: str
    supervisor_pid: int
    supervisor_create_time: float
    states: tuple[State, ...]


def starting_order(processes: Sequence[Process]) -> tuple[Process, ...]:
    """The processes, each behind all it comes after. Raises ValueError for a double, unknown or circular name."""
    names = [process.name for process in processes]
    for process in processes:
        if names.count(process.name) > 1:
            raise ValueError(f"two processes are named {process.name}")
        if unknown := set(process.after) - set(names):
            raise ValueError(f"{process.name} comes after {', '.join(sorted(unknown))}, which is not there")
    ordered: list[Process] = []
    left = [_plain(process) for process in processes]
    while left:
        placed = {process.name for process in ordered}
        able = [process for process in left if placed.issuperset(process.after)]
        if not able:
            raise ValueError(f"these wait for each other: {', '.join(process.name for process in left)}")
        ordered += able
        left = [process for process in left if process not in able]
    return tuple(ordered)


def _plain(process: Process) -> Process:
    """The process as it will be read back from JSON, so that two specs can be compared."""
    env = {str(name): str(value) for name, value in process.env.items()}
    argv = tuple(str(part) for part in process.argv)
    times = {"grace_s": float(process.grace_s), "start_limit_s": float(process.start_limit_s)}
    return replace(process, argv=argv, env=env, after=tuple(process.after), **times)  # type: ignore[arg-type]


def run_dir(directory: Path) -> Path:
    """Where the run's own files are; it and DIR/logs are made for their owner alone. Raises LocalPartError."""
    own_folder(directory)
    own_folder(directory / "logs")
    return own_folder(directory / "run")


def log_path(directory: Path, name: str) -> Path:
    """The log of the process NAME."""
    return directory / "logs" / f"{name}.log"


def write_spec(directory: Path, spec: Spec) -> None:
    """Replaces spec.json."""
    _replace(run_dir(directory) / "spec.json", asdict(spec))


def read_spec(directory: Path) -> Spec | None:
    """The last run's spec, None where there never was one."""
    held = _read(directory / "run" / "spec.json")
    if held is None:
        return None
    return Spec(held["run_id"], tuple(_process(one) for one in held["processes"]))


def write_snapshot(directory: Path, snapshot: Snapshot) -> None:
    """Replaces state.json."""
    _replace(run_dir(directory) / "state.json", asdict(snapshot))


def read_snapshot(directory: Path) -> Snapshot | None:
    """The last state that a supervisor wrote, None where there never was one."""
    held = _read(directory / "run" / "state.json")
    if held is None:
        return None
    return Snapshot(**{**held, "states": tuple(State(**one) for one in held["states"])})


def stopped(state: State, now: float) -> State:
    """The state of a process that no longer runs."""
    if state.status in ("stopped", "failed"):
        return replace(state, pid=None, create_time=None)
    return replace(state, status="stopped", pid=None, create_time=None, since=now)


def _process(held: dict[str, Any]) -> Process:
    return Process(**{**held, "argv": tuple(held["argv"]), "after": tuple(held["after"])})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return held


def _replace(path: Path, value: dict[str, Any]) -> None:
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
    staged.replace(path)
