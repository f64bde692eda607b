"""The supervisor: a process of its own that keeps a run's processes running. `python -m deploy.local.supervisor DIR`.

Reads DIR/run/spec.json; writes DIR/run/state.json and DIR/logs/NAME.log. A process starts when all it comes after
are ready; one that dies is started again, after its leftover descendants were ended, with growing pauses; one that
never came up in START_ATTEMPTS is `failed` and left to whoever follows the state. SIGTERM ends all, dependents first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from filelock import FileLock

from deploy.local.folders import keep_private
from deploy.local.lineage import PROCESS_VARIABLE, RUN_VARIABLE, end_run
from deploy.local.probe import is_ready
from deploy.local.supervised import Process, Snapshot, Spec, State, log_path, read_spec, run_dir, write_snapshot

TICK_S = 0.1
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
START_ATTEMPTS = 2
LEFTOVER_GRACE_S = 3.0
LOG_LIMIT_BYTES = 16 * 2**20
LOG_CHECK_S = 10.0


def next_pause_s(last_pause_s: float, ran_s: float) -> float:
    """How long to wait before the next start of a process that was ready for `ran_s` and then died."""
    if ran_s >= HEALTHY_AFTER_S or last_pause_s == 0:
        return FIRST_PAUSE_S
    return min(last_pause_s * 2, LONGEST_PAUSE_S)


@dataclass
class Child:
    """One process of the run as the supervisor holds it."""

    process: Process
    state: State
    handle: subprocess.Popen[bytes] | None = None
    pause_s: float = 0.0
    retry_at: float = 0.0
    was_ready: bool = False
    failures: int = 0
    kill_at: float = 0.0

    def becomes(self, status: str, **changed: object) -> None:
        self.state = replace(self.state, status=status, since=time.time(), **changed)  # type: ignore[arg-type]


class Supervisor:
    """Keeps the processes of one spec; `run` returns after a SIGTERM, when all have ended."""

    def __init__(self, directory: Path, spec: Spec) -> None:
        self._directory = directory
        self._spec = spec
        self._children = {p.name: Child(p, State(p.name, since=time.time())) for p in spec.processes}
        self._written: tuple[State, ...] = ()
        self._ending = False
        self._logs_checked_at = 0.0

    def run(self) -> None:
        """Supervises until told to end, then ends everything."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_ending", True))
        while not self._ending:
            for child in self._children.values():
                self._look_after(child)
            self._tell()
            self._limit_logs()
            time.sleep(TICK_S)
        self._end_all()

    def _look_after(self, child: Child) -> None:
        status = child.state.status
        if status == "waiting" or (status == "backoff" and time.time() >= child.retry_at):
            if all(self._children[name].state.status == "ready" for name in child.process.after):
                self._spawn(child)
        elif status in ("starting", "ready"):
            assert child.handle is not None
            code = child.handle.poll()
            if code is not None:
                self._died(child, code)
            elif status == "starting" and is_ready(child.process.ready, child.state.started_at or 0.0):
                child.was_ready = True
                child.becomes("ready")
            elif status == "starting" and time.time() - child.state.since > child.process.start_limit_s:
                self._say(child, f"not ready within {child.process.start_limit_s:.0f} s: killed")
                child.handle.kill()

    def _spawn(self, child: Child) -> None:
        own = {RUN_VARIABLE: self._spec.run_id, PROCESS_VARIABLE: child.process.name}
        started_at = time.time()
        with log_path(self._directory, child.process.name).open("ab") as log:
            try:
                child.handle = subprocess.Popen(
                    child.process.argv,
                    env={**os.environ, **child.process.env, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                self._say(child, f"cannot be started: {error}")
                child.handle = None
                self._died(child, 127)
                return
        child.becomes("starting", pid=child.handle.pid, started_at=started_at, create_time=_born(child.handle.pid))

    def _say(self, child: Child, what: str) -> None:
        """A line of the supervisor's own in the process's log."""
        with log_path(self._directory, child.process.name).open("ab") as log:
            log.write(f"supervisor: {what}\n".encode())

    def _died(self, child: Child, code: int) -> None:
        end_run(self._spec.run_id, LEFTOVER_GRACE_S, child.process.name)
        child.failures += not child.was_ready
        gone = {"pid": None, "create_time": None, "last_exit": code}
        if child.failures >= START_ATTEMPTS:
            child.becomes("failed", **gone)
            return
        ran_s = time.time() - child.state.since if child.state.status == "ready" else 0.0
        child.pause_s = next_pause_s(child.pause_s, ran_s)
        child.retry_at = time.time() + child.pause_s
        child.becomes("backoff", restarts=child.state.restarts + 1, **gone)

    def _end_all(self) -> None:
        """Dependents first; those that nobody left depends on end side by side."""
        while left := [child for child in self._children.values() if child.state.status not in ("stopped", "failed")]:
            needed = {name for child in left for name in child.process.after}
            for child in left:
                if child.process.name not in needed:
                    self._end_one(child)
            self._tell()
            time.sleep(TICK_S / 2)
        end_run(self._spec.run_id, LEFTOVER_GRACE_S)
        self._tell()

    def _end_one(self, child: Child) -> None:
        code = child.handle.poll() if child.handle else 0
        if child.handle is None or code is not None:
            end_run(self._spec.run_id, LEFTOVER_GRACE_S, child.process.name)
            child.becomes("stopped", pid=None, create_time=None, last_exit=code)
        elif child.state.status != "stopping":
            child.kill_at = time.time() + child.process.grace_s
            child.handle.terminate()
            child.becomes("stopping")
        elif time.time() >= child.kill_at:
            child.handle.kill()

    def _tell(self) -> None:
        states = tuple(child.state for child in self._children.values())
        if states != self._written:
            me = psutil.Process()
            write_snapshot(self._directory, Snapshot(self._spec.run_id, me.pid, me.create_time(), states))
            self._written = states

    def _limit_logs(self) -> None:
        """Keeps the last LOG_LIMIT_BYTES beside the running log; the writers append, so cutting is safe."""
        if time.monotonic() - self._logs_checked_at < LOG_CHECK_S:
            return
        self._logs_checked_at = time.monotonic()
        for name in self._children:
            log = log_path(self._directory, name)
            if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)


def _born(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def main() -> int:
    """Detaches from the caller, takes the directory's lock and supervises."""
    keep_private()
    directory = Path(sys.argv[1])
    if os.fork():
        return 0
    os.setsid()
    spec = read_spec(directory)
    if spec is None:
        print(f"{directory}/run/spec.json is missing: start with `tuneloop up`", file=sys.stderr)
        return 1
    with FileLock(run_dir(directory) / "supervisor.lock", timeout=5):
        Supervisor(directory, spec).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
