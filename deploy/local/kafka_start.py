"""Starts the local broker in this very process: `python -m deploy.local.kafka_start DIR JAVA...` (its whole command).

After a kill it first lets the controller alone declare the dead broker fenced, and only then becomes Java. Kafka
does both side by side: the broker takes up its coordinators on what was known before its death, and is fenced a moment
later, so that for some milliseconds no partition has a leader. A transaction marker that is due just then is not sent
but skipped, as if its partition were deleted: the transaction counts as ended, and what was written in it, and
everything behind that, is hidden from committed readers for ever. (Seen in Kafka 4.3.1: 57 partitions lost their leader
at .447 of a second, two of three markers of an abort were skipped by .479.) Fenced beforehand, the broker begins
without leaders, gets them all at once and has its coordinators afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

FENCING, FENCING_LOG, STARTED = "fencing.properties", "fencing.log4j2.properties", "started"
# What Kafka says as it comes to them.
ACTIVE, FENCED = "controller activation", "Fencing broker"
# None is fenced where the broker was killed before it was ever unfenced.
LIMIT_S, NEVER_LIMIT_S, POLL_S = 30.0, 6.0, 0.02
FENCED_FIRST = "the broker was killed and has been fenced before it starts again"
FENCED_BEFORE = "the broker was killed and had been fenced before"
NOT_FENCED = "the broker was killed and does not become fenced"
# A BrokerRegistrationChangeRecord (17) of broker 1 as Kafka's BrokerRegistrationChangeRecord.json lays it out: frame
# version, kind, version, broker (int32), epoch (int64), how many tagged fields, and the first, `fenced`, of one byte.
_CHANGE = re.compile(rb"\x01\x11[\x00-\x05]\x00\x00\x00\x01.{8}[\x01-\x05]\x00\x01([\x01\xff])", re.DOTALL)


def was_killed(directory: Path) -> bool:
    """Whether a broker has run on the storage under `directory` and did not close it."""
    return (directory / STARTED).exists() and not (directory / "log" / ".kafka_cleanshutdown").exists()


def is_fenced(directory: Path) -> bool | None:
    """What the last change of the broker was that the controller's newest log holds; None where it holds none."""
    segment = max((directory / "log" / "__cluster_metadata-0").glob("*.log"), default=None)
    changes = _CHANGE.findall(segment.read_bytes()) if segment else []
    return changes[-1] == b"\x01" if changes else None


def fence(directory: Path, java: Sequence[str]) -> bool:
    """Run the controller until the broker's being fenced stands in its log (True), or it had the time for it.

    Kafka says so before it is written, and what is not written yet is lost with the controller's end.
    """
    fence_limit_s = NEVER_LIMIT_S if is_fenced(directory) is None else LIMIT_S
    command = [*java, "kafka.Kafka", str(directory / FENCING)]
    controller = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert controller.stdout is not None
    limits = [_ending(controller, LIMIT_S)]
    for line in controller.stdout:
        if ACTIVE in line:
            limits.append(_ending(controller, fence_limit_s))
        if FENCED in line:
            while controller.poll() is None and not is_fenced(directory):
                time.sleep(POLL_S)
            break
    controller.terminate()  # it closes its log properly
    controller.communicate()
    for limit in limits:
        limit.cancel()
    return bool(is_fenced(directory))


def _ending(controller: subprocess.Popen[str], limit_s: float) -> threading.Timer:
    limit = threading.Timer(limit_s, controller.terminate)
    limit.daemon = True
    limit.start()
    return limit


def main() -> None:
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    if was_killed(directory):
        plain, ours = (f"-Dlog4j2.configurationFile={directory / name}" for name in ("log4j2.properties", FENCING_LOG))
        if is_fenced(directory):
            print(FENCED_BEFORE, flush=True)
        else:
            fenced = fence(directory, [ours if part == plain else part for part in command[:-2]])
            print(FENCED_FIRST if fenced else NOT_FENCED, flush=True)
    (directory / STARTED).touch()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
