"""Slots: places for processes, and the supervisor that starts again whatever ends there.

A slot's process may be killed, stopped (SIGSTOP) and continued, or told to fail at a failpoint: at once through a
file that it watches, or from its first record on through TUNELOOP_FAILPOINTS.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from streams import failpoints

ROOT = Path(__file__).parents[2]
RESTART_S = 0.2
# A process that ends within this of its start is started again less eagerly.
SHORT_LIFE_S, SHORT_LIFE_RESTART_S = 3.0, 1.0
# For what must happen but says nothing of how soon: enough for a machine that is busy with other things.
PATIENCE_S = 120.0


class StuckError(RuntimeError):
    """Something that had to happen did not."""


@dataclass(frozen=True)
class Ending:
    """One end of a process: when (monotonic), its exit status (-9 = killed) and what was armed."""

    at: float
    code: int
    armed: str


@dataclass
class Slot:
    """One place for a process; see the module."""

    name: str
    argv: Sequence[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wanted = False
        self.endings: list[Ending] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.armed = ""
        self._guard = threading.RLock()
        self._started = 0.0

    def start(self, armed: str = "", **environment: str) -> None:
        """Start it and keep it running. `armed` and `environment` hold for this one life."""
        with self._guard:
            self.wanted = True
            self._spawn(armed, environment)

    def _spawn(self, armed: str, environment: dict[str, str]) -> None:
        self.armed, self._started = armed, time.monotonic()
        for name in ("arm", "ready"):
            (self.folder / f"{self.name}.{name}").unlink(missing_ok=True)
        more = {failpoints.VARIABLE: armed} if armed else {}
        known = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment, **more, **environment}
        with (self.folder / f"{self.name}.out").open("ab") as out:
            self.process = subprocess.Popen(self.argv, stdout=out, stderr=out, cwd=ROOT, env=known)

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def send(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def stopped(self) -> bool:
        """True while a SIGSTOP holds it."""
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    def ready(self) -> bool:
        """True once this very process is about to take its first record."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / f"{self.name}.ready").read_text() == str(self.pid)
        return False

    def arm(self, text: str) -> None:
        """Have the running process fail there; "" takes it back."""
        self.armed = text
        staged = self.folder / f"{self.name}.arming"
        staged.write_text(text)
        staged.replace(self.folder / f"{self.name}.arm")

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> None:
        """End it for good (until `start`)."""
        with self._guard:
            self.wanted = False
        self.send(number)
        self.send(signal.SIGCONT)
        if self.process is not None:
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.look()

    def look(self) -> None:
        """Note an end, and start anew what is wanted. Called by the supervisor."""
        with self._guard:
            if self.process is None or (code := self.process.poll()) is None:
                return
            now = time.monotonic()
            if not self.endings or self.endings[-1].at < self._started:
                self.endings.append(Ending(now, code, self.armed))
            rest_s = SHORT_LIFE_RESTART_S if self.endings[-1].at - self._started < SHORT_LIFE_S else RESTART_S
            if self.wanted and now - self.endings[-1].at >= rest_s:
                self._spawn("", {})

    def said(self, words: str) -> int:
        """How often it has printed these words, in all its lives."""
        return (self.folder / f"{self.name}.out").read_text(errors="replace").count(words)

    def tail(self, characters: int = 3_000) -> str:
        """The end of what it printed, without the client's lines of a broker that is away."""
        lines = (self.folder / f"{self.name}.out").read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if "|rdkafka#" not in line)[-characters:]


class Supervisor:
    """Looks after slots in a thread."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="supervisor")

    def start(self) -> None:
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.03):
            for slot in list(self.slots):
                slot.look()

    def close(self) -> None:
        """Kill everything, last started first."""
        self._stop.set()
        self._thread.join(10)
        for slot in reversed(self.slots):
            slot.end(signal.SIGKILL)


def until(holds, timeout_s: float, what: str, every_s: float = 0.03):  # type: ignore[no-untyped-def]
    """Wait until `holds` returns something true, and return that. Raises StuckError."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise StuckError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)
    return value
