"""Ends a process that has fallen out of its loop or out of its group without a word, to be started again.

Seen after a broker that stood still for 10 s: no error reached the loop, and its lag grew until somebody killed it.
Whether it hung or was out of its group is not known, so both are watched.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException

from streams import kafka
from streams.kafka import EX_TEMPFAIL

log = logging.getLogger(__name__)
# A consumer that has not polled for so long has lost its partitions anyway (`max.poll.interval.ms`).
STUCK_S = 60.0
# Longer than a rebalance takes. A spare member of a group has no partitions either, so the broker is asked.
ALONE_S = 20.0


class LostMembershipError(RuntimeError):
    """The group does not know this consumer, and the client does nothing about it."""


class Membership:
    """A loop's place in its group."""

    def __init__(self, client: Consumer, bootstrap: str, group: str, instance: str = "") -> None:
        self._client, self._bootstrap, self._group, self._instance = client, bootstrap, group, instance
        self._well_at = time.monotonic()

    def check(self) -> None:
        """Call once a round, from the thread that owns the consumer. Raises `LostMembershipError`."""
        now = time.monotonic()
        if self._client.assignment():
            self._well_at = now
        elif now - self._well_at > ALONE_S:
            self._well_at = now
            if not self._known():
                raise LostMembershipError(f"{self._group} has lost this member, which does not join again")

    def _known(self) -> bool:
        admin = kafka.admin(self._bootstrap, log_level=0)
        try:
            group = admin.describe_consumer_groups([self._group], request_timeout=5)[self._group].result(5)
        except (KafkaException, TimeoutError):  # no broker, no group to be in
            return True
        if self._instance:  # who else joins under this name has it, and this one is told by an error
            return self._instance in {member.group_instance_id for member in group.members}
        return self._client.memberid() in {member.member_id for member in group.members}


def watch(silent_s: Callable[[], float], limit_s: float = STUCK_S) -> None:
    """Watch in a thread that the loop gives a sign of life; where it does not, say where it stands and end the process.

    `silent_s` gives the seconds since the last sign.
    """

    def body() -> None:
        while True:
            time.sleep(limit_s / 20)
            if silent_s() > limit_s:
                log.critical("no sign of life for %.0f s: ending this process; it stands here:", silent_s())
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EX_TEMPFAIL)

    threading.Thread(target=body, daemon=True, name="watchdog").start()
