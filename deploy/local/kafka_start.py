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
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

FENCING, FENCING_LOG, STARTED = "fencing.properties", "fencing.log4j2.properties", "started"
# What Kafka says as it comes to them. None is fenced where the broker was killed before it had been unfenced.
ACTIVE, FENCED = "controller activation", "Fencing broker"
START_LIMIT_S, FENCE_LIMIT_S, POLL_S = 30.0, 6.0, 0.02
FENCED_FIRST = "the broker was killed and has been fenced before it starts again"


def was_killed(directory: Path) -> bool:
    """Whether a broker has run on the storage under `directory` and did not close it."""
    return (directory / STARTED).exists() and not (directory / "log" / ".kafka_cleanshutdown").exists()


def fence(directory: Path, java: Sequence[str]) -> bool:
    """Run the controller until it has fenced the broker (True), or had the time for it."""
    command = [*java, "kafka.Kafka", str(directory / FENCING)]
    controller = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert controller.stdout is not None
    limits, fenced = [_ending(controller, START_LIMIT_S)], False
    for line in controller.stdout:
        if FENCED in line:
            fenced = _written(directory, controller)
            break
        if ACTIVE in line:
            limits.append(_ending(controller, FENCE_LIMIT_S))
    controller.terminate()  # it closes its log properly
    controller.communicate()
    for limit in limits:
        limit.cancel()
    return fenced


def _written(directory: Path, controller: subprocess.Popen[str]) -> bool:
    """Wait until what the controller said last stands in its log: said first, it may get lost at the end.

    The log grows by that, or, if it holds it already, by the next of the records that it writes when it is idle.
    """

    def size_bytes() -> int:
        return sum(path.stat().st_size for path in (directory / "log" / "__cluster_metadata-0").glob("*.log"))

    before = size_bytes()
    while controller.poll() is None:
        if size_bytes() > before:
            return True
        time.sleep(POLL_S)
    return False


def _ending(controller: subprocess.Popen[str], limit_s: float) -> threading.Timer:
    limit = threading.Timer(limit_s, controller.terminate)
    limit.daemon = True
    limit.start()
    return limit


def main() -> None:
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    if was_killed(directory):
        plain, ours = (f"-Dlog4j2.configurationFile={directory / name}" for name in ("log4j2.properties", FENCING_LOG))
        fenced = fence(directory, [ours if part == plain else part for part in command[:-2]])
        print(FENCED_FIRST if fenced else "the broker was killed before it had been unfenced", flush=True)
    (directory / STARTED).touch()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
