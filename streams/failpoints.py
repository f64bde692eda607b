"""Failpoints: named places before and after each durable action, where a test may have the process fail.

Free when off (one look at an empty dict). `TUNELOOP_FAILPOINTS="transact.produced=kill@3;sink.written=sleep:2"` kills
this process the third time it comes by the first, and has it wait two seconds whenever it passes the second.
Actions: `kill` (SIGKILL), `stop` (SIGSTOP, until somebody continues it), `sleep:SECONDS`, `diskfull` (an OSError),
`raise`. `@N`: at the Nth pass alone; without it at every pass.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

VARIABLE = "TUNELOOP_FAILPOINTS"
# Every failpoint there is, in the order in which a record passes them. A name that is not here is refused.
NAMES = (
    # the transact loop
    "transact.gathered", "transact.handled", "transact.begun", "transact.produced", "transact.offsets_sent",
    "transact.committed",
    # the sink loop, and inside its store
    "sink.gathered", "land.dead_letters_flushed", "land.deleted", "land.between_tables", "sink.written",
    "sink.committed",
    # the long-job loop
    "job.taken", "job.asked", "job.answered", "job.begun", "job.produced", "job.offsets_sent", "job.committed",
    # an erasure
    "erase.deleted", "erase.pointed", "erase.rewritten", "erase.rows_deleted", "erase.settings_noted",
    "erase.compacted", "erase.renamed",
    # the artifact store
    "artifact.written", "artifact.renamed",
    # putting dead letters back
    "dlq.produced", "dlq.committed",
)  # fmt: skip
_ACTIONS = ("kill", "stop", "sleep", "diskfull", "raise")


class FailpointError(RuntimeError):
    """What the action `raise` raises."""


@dataclass
class _Armed:
    action: str
    seconds: float
    at_pass: int
    passed: int = 0


def parse(text: str) -> dict[str, _Armed]:
    """The failpoints that `text` arms. Raises ValueError for a name or an action that does not exist."""
    armed = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, rest = part.partition("=")
        what, _, number = rest.partition("@")
        action, _, seconds = what.partition(":")
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: no failpoint {name!r}; known: {', '.join(NAMES)}")
        if action not in _ACTIONS:
            raise ValueError(f"{VARIABLE}: no action {action!r}; known: {', '.join(_ACTIONS)}")
        armed[name] = _Armed(action, float(seconds or 0), int(number or 0))
    return armed


_armed = parse(os.environ.get(VARIABLE, ""))


def arm(text: str) -> None:
    """Arm these failpoints in this process, and no others ("" = none)."""
    _armed.clear()
    _armed.update(parse(text))


def hit(name: str) -> None:
    """Pass the failpoint `name`; what happens is up to whoever armed it."""
    if not _armed:
        return
    one = _armed.get(name)
    if one is None:
        return
    one.passed += 1
    if one.at_pass not in (0, one.passed):
        return
    if one.action in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if one.action == "kill" else signal.SIGSTOP)
    elif one.action == "sleep":
        time.sleep(one.seconds)
    elif one.action == "diskfull":
        raise OSError(errno.ENOSPC, f"failpoint {name}: no space left on device")
    else:
        raise FailpointError(name)
