"""Start, follow, restart and stop a run of processes in a data directory. The only door to the supervisor.

Starting spawns `deploy.local.supervisor` as a process of its own and follows what it writes; whoever starts may leave.
What a killed supervisor left behind is found by its run id and ended before anything new starts. Shows nothing:
`on_state` is told every change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from deploy.local import supervised
from deploy.local.folders import import_environment
from deploy.local.lineage import RUN_VARIABLE, end, end_run, is_alive, names_running
from deploy.local.ports import free_ports, port_free
from deploy.local.probe import port_of
from deploy.local.supervised import Process, Snapshot, Spec, State, log_path

__all__ = ["Process", "SpecChanged", "State", "SupervisorError", "free_ports", "is_running", "log_path", "port_free"]
__all__ += ["restart", "start", "status", "stop", "why_ended"]

POLL_S = 0.1
SPAWN_TIMEOUT_S = 20.0
LEFTOVER_GRACE_S = 5.0
TAIL_LINES = 12
ERROR, LOOKED_THROUGH_BYTES = "error: ", 65_536
OnState = Callable[[dict[str, State]], None]


class SupervisorError(RuntimeError):
    """What could not be started or stopped, why, and where its log is."""


class SpecChanged(SupervisorError):
    """A run with other processes or settings is up: stop it first."""


def start(directory: Path, processes: Sequence[Process], on_state: OnState, timeout_s: float) -> None:
    """Brings a run up and returns when every process is ready; at once when the same run is up already.

    Raises SupervisorError, naming the process, its last lines and its log, when one cannot start or is not ready in
    `timeout_s`; what this call started is then ended again. Raises SpecChanged when another run is up here.
    """
    directory = directory.absolute()
    ordered = supervised.starting_order(processes)
    with _alone(directory, timeout_s):
        if is_running(directory):
            _refuse_other(directory, ordered)
            _follow(directory, on_state, time.monotonic() + timeout_s)
            return
        _sweep(directory)
        _refuse_taken_ports(ordered)
        run_id = uuid.uuid4().hex
        supervised.write_spec(directory, Spec(run_id, ordered))
        try:
            _spawn(directory, run_id)
            _follow(directory, on_state, time.monotonic() + timeout_s)
        except BaseException:
            _stop(directory, on_state)
            raise


def status(directory: Path) -> list[State]:
    """How each process is doing, in starting order; `orphaned` where it runs without its supervisor."""
    snapshot = supervised.read_snapshot(directory)
    if snapshot is None:
        return []
    if _supervised(snapshot):
        return list(snapshot.states)
    running = names_running(snapshot.run_id)
    return [_without_supervisor(state, running.get(state.name)) for state in snapshot.states]


def is_running(directory: Path) -> bool:
    """True when a supervisor looks after this directory's run."""
    snapshot = supervised.read_snapshot(directory)
    return snapshot is not None and _supervised(snapshot)


def stop(directory: Path, on_state: OnState = lambda states: None) -> None:
    """Ends the run, dependents first, and everything it left, also after its supervisor died. Ends nothing else."""
    directory = directory.absolute()
    if supervised.read_spec(directory) is None:
        return
    with _alone(directory, timeout_s=30.0):
        _stop(directory, on_state)


def restart(directory: Path, name: str, timeout_s: float = 60.0) -> None:
    """Ends one process, descendants included; returns when the supervisor has it ready again."""
    before = {state.name: state for state in status(directory)}
    if name not in before or not is_running(directory):
        known = ", ".join(before) or "none: nothing was started here"
        raise SupervisorError(f"no running process is named {name} (there are: {known})")
    _end_alone(directory, before[name])
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        now = next(state for state in status(directory) if state.name == name)
        if now.status == "ready" and now.started_at != before[name].started_at:
            return
        time.sleep(POLL_S)
    raise SupervisorError(f"{name} was not ready again within {timeout_s:.0f} s.{_tail(directory, name)}")


def _end_alone(directory: Path, state: State) -> None:
    """Ends the process itself; its supervisor sees that, ends what it left and starts it again."""
    spec = supervised.read_spec(directory)
    assert spec is not None
    grace_s = next(process.grace_s for process in spec.processes if process.name == state.name)
    if state.pid is not None and is_alive(state.pid, state.create_time):
        end([psutil.Process(state.pid)], grace_s)


def _without_supervisor(state: State, process: psutil.Process | None) -> State:
    if process is None:
        return supervised.stopped(state, time.time())
    return replace(state, status="orphaned", pid=process.pid, create_time=process.create_time())


def _supervised(snapshot: Snapshot) -> bool:
    return is_alive(snapshot.supervisor_pid, snapshot.supervisor_create_time)


@contextmanager
def _alone(directory: Path, timeout_s: float) -> Iterator[None]:
    """Only one start or stop at a time works on a directory; the second waits for the first."""
    lock = FileLock(supervised.run_dir(directory) / "start.lock")
    try:
        held = lock.acquire(timeout=timeout_s)
    except Timeout:
        raise SupervisorError(f"another start or stop has been working on {directory} for {timeout_s:.0f} s") from None
    with held:
        yield


def _refuse_other(directory: Path, ordered: tuple[Process, ...]) -> None:
    held = supervised.read_spec(directory)
    if held is None or held.processes != ordered:
        before = {process.name: process for process in held.processes} if held else {}
        now = {process.name: process for process in ordered}
        differing = sorted(name for name in before | now if before.get(name) != now.get(name))
        raise SpecChanged(f"{directory} runs with other settings for {', '.join(differing)}: stop it first")


def _refuse_taken_ports(ordered: tuple[Process, ...]) -> None:
    for process in ordered:
        port = port_of(process.ready)
        if port is not None and not port_free(port):
            raise SupervisorError(
                f"port {port}, which {process.name} needs, is in use{_owner(port)}: "
                "stop what listens there, or choose another port"
            )


def _owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
    return ""


def _spawn(directory: Path, run_id: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE} | import_environment()
    with log_path(directory, "supervisor").open("ab") as log:
        command = [sys.executable, "-m", "deploy.local.supervisor", str(directory)]
        subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    deadline = time.monotonic() + SPAWN_TIMEOUT_S
    while time.monotonic() < deadline:
        snapshot = supervised.read_snapshot(directory)
        if snapshot is not None and snapshot.run_id == run_id:
            return
        time.sleep(POLL_S / 2)
    raise SupervisorError(f"the supervisor did not come up.{_tail(directory, 'supervisor')}")


def _follow(directory: Path, on_state: OnState, deadline: float) -> None:
    told: dict[str, State] = {}
    while True:
        snapshot = supervised.read_snapshot(directory)
        assert snapshot is not None
        states = {state.name: state for state in snapshot.states}
        if states != told:
            on_state(told := states)
        if all(state.status == "ready" for state in states.values()):
            return
        for state in states.values():
            if state.status == "failed":
                raise SupervisorError(f"{state.name} ended with {state.last_exit}.{_tail(directory, state.name)}")
        if not _supervised(snapshot):
            raise SupervisorError(f"the supervisor ended.{_tail(directory, 'supervisor')}")
        if time.monotonic() > deadline:
            raise SupervisorError(_late(directory, snapshot.states))
        time.sleep(POLL_S)


def _late(directory: Path, states: Sequence[State]) -> str:
    late = next(state for state in states if state.status != "ready")
    return f"{late.name} was not ready in time (it is {late.status}).{_tail(directory, late.name)}"


def _tail(directory: Path, name: str) -> str:
    log = log_path(directory, name)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = "".join(f"\n  {line}" for line in text.splitlines()[-TAIL_LINES:]) or "\n  (it wrote nothing)"
    return f" Its last lines:{lines}\n  The whole log: {log}"


def why_ended(directory: Path, state: State) -> str:
    """Why a process ended the last time: a signal, or the error that it said last; "" where neither is known."""
    log = log_path(directory, state.name)
    if state.last_exit is not None and state.last_exit < 0:
        return f"killed by signal {-state.last_exit}"
    if not state.last_exit or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOOKED_THROUGH_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.removeprefix(ERROR) for line in reversed(lines) if line.startswith(ERROR)), "")


def _stop(directory: Path, on_state: OnState) -> None:
    spec = supervised.read_spec(directory)
    snapshot = supervised.read_snapshot(directory)
    if spec is None:
        return
    if snapshot is not None and _supervised(snapshot):
        psutil.Process(snapshot.supervisor_pid).terminate()
        patience_s = sum(process.grace_s for process in spec.processes) + 30
        _await_end(directory, on_state, time.monotonic() + patience_s)
    _sweep(directory)
    on_state({state.name: state for state in status(directory)})


def _await_end(directory: Path, on_state: OnState, deadline: float) -> None:
    told: dict[str, State] = {}
    while time.monotonic() < deadline:
        snapshot = supervised.read_snapshot(directory)
        if snapshot is None or not _supervised(snapshot):
            return
        states = {state.name: state for state in snapshot.states}
        if states != told:
            on_state(told := states)
        time.sleep(POLL_S)
    assert snapshot is not None
    psutil.Process(snapshot.supervisor_pid).kill()


def _sweep(directory: Path) -> None:
    """Ends what the last run left; its supervisor is gone when this is called."""
    for run_id in {
        held.run_id for held in (supervised.read_spec(directory), supervised.read_snapshot(directory)) if held
    }:
        end_run(run_id, LEFTOVER_GRACE_S)
