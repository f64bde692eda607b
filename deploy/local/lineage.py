"""Which running processes belong to a run, told by their environment, and ending exactly those.

Every process of a run starts with TUNELOOP_RUN (a random id) and TUNELOOP_PROCESS (a name) in its environment;
descendants inherit both, even those that leave their parent's session as Ray's daemons do. Nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

RUN_VARIABLE = "TUNELOOP_RUN"
PROCESS_VARIABLE = "TUNELOOP_PROCESS"
KILL_PATIENCE_S = 5.0
WAIT_POLL_S = 0.05


def members(run_id: str, name: str | None = None) -> list[psutil.Process]:
    """The live processes of a run (of its process NAME), without the caller and those that started the caller."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        environment = _environment(process)
        if environment.get(RUN_VARIABLE) == run_id and name in (None, environment.get(PROCESS_VARIABLE)):
            found.append(process)
    return found


def names_running(run_id: str) -> dict[str, psutil.Process]:
    """Of each process name of a run that has any live process, the oldest one."""
    oldest: dict[str, psutil.Process] = {}
    for process in sorted(members(run_id), key=lambda one: one.create_time(), reverse=True):
        oldest[_environment(process).get(PROCESS_VARIABLE, "")] = process
    return oldest


def end(processes: Iterable[psutil.Process], grace_s: float) -> None:
    """SIGTERM to each, SIGKILL to what is left after `grace_s`; returns when all are gone."""
    left = list(processes)
    for process in left:
        # psutil compares creation times first: a reused pid is never signalled.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    left = _wait(left, grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, KILL_PATIENCE_S)


def end_run(run_id: str, grace_s: float, name: str | None = None) -> int:
    """Ends all of a run (of its process NAME), also what those start meanwhile. Returns how many it ended."""
    count = 0
    for _ in range(5):
        found = members(run_id, name)
        if not found:
            break
        count += len(found)
        end(found, grace_s)
    return count


def is_alive(pid: int | None, create_time: float | None) -> bool:
    """True when the very process of this pid and creation time runs (a zombie does not)."""
    if pid is None or create_time is None:
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - create_time) < 0.1 and _runs(process)
    except psutil.NoSuchProcess:
        return False


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those of `processes` that still run after `timeout_s`. A zombie is gone: its parent may never collect it."""
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(WAIT_POLL_S)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess, OSError):
        # Another user's, or gone, or a zombie: not one that we could or should end.
        return {}
