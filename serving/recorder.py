"""The gateway's events on their way to Kafka: never waited for, kept until the broker has them, tried again if refused.

Answers are given while the broker is away, as long as there is room for their events (`has_room`). An event that was
not taken stays in memory and is tried again, at growing intervals; after the last attempt it is counted as lost, which
has an alarm. Nothing of an event's content is logged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from serving.metrics import ReplicaMetrics
from streams import kafka
from streams.kafka import Out

log = logging.getLogger(__name__)
# Room is refused while at least as much is left as the requests under way can still bring.
ROOM_EVENTS = 10_000
ROOM_BYTES = 32 * 1024 * 1024
ATTEMPTS = 10
LONGEST_PAUSE_S = 60.0
# The client's own queue: above the room, so that it is full only where the room was given out.
PRODUCER: dict[str, Any] = {
    "linger.ms": 2,
    "queue.buffering.max.messages": 4 * ROOM_EVENTS,
    "queue.buffering.max.kbytes": 4 * ROOM_BYTES // 1024,
    "message.timeout.ms": 0,  # a broker that is away is waited for; only what it refuses comes back
}

Told = Callable[[KafkaError | None], None]


@dataclass(eq=False)
class _Event:
    """One event that the broker does not have yet. `told` hears of its first attempt, which is then the only one."""

    out: Out
    told: Told | None = None
    attempts: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.out.value or b"") + len(self.out.key or b"")


class Recorder:
    """See the module. `make_producer` is called again where a producer has failed for good."""

    def __init__(
        self, make_producer: Callable[[], Producer], metrics: ReplicaMetrics,
        clock: Callable[[], float] = time.monotonic, room_bytes: int = ROOM_BYTES, attempts: int = ATTEMPTS,
    ) -> None:  # fmt: skip
        self._make, self._metrics, self._clock = make_producer, metrics, clock
        self._room_bytes, self._attempts = room_bytes, attempts
        self._producer = make_producer()
        self._lock = threading.Lock()  # guards what follows
        self._events = self._bytes = 0
        self._again: list[tuple[float, int, _Event]] = []
        self._order = itertools.count()
        self._failed_for_good = False
        metrics.watch_events(lambda: self._events)

    def has_room(self) -> bool:
        """Whether an answer that is begun now can be recorded."""
        with self._lock:
            return self._events < ROOM_EVENTS and self._bytes < self._room_bytes

    def record(self, out: Out) -> None:
        """Send an event, again if it is refused. Neither waits nor raises."""
        self._begin(_Event(out))

    def send(self, out: Out, told: Told) -> None:
        """Send an event once and hear of it, on the polling thread. Raises `BufferError` where there is no room."""
        if not self.has_room():
            raise BufferError("too many events wait for the broker")
        self._begin(_Event(out, told))

    def poll(self, timeout_s: float) -> None:
        """Hear of what was sent, and send again what is due. To be called on and on, by one thread."""
        if self._failed_for_good:
            self._replace_producer()
        self._producer.poll(timeout_s)
        now = self._clock()
        while True:
            with self._lock:
                if not self._again or self._again[0][0] > now:
                    return
                event = heapq.heappop(self._again)[2]
            self._hand_over(event)

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait a little for what is under way."""
        self._producer.flush(timeout_s)
        if self._events:
            log.error("%d events end with this process: the broker did not take them", self._events)

    def _begin(self, event: _Event) -> None:
        with self._lock:
            self._events += 1
            self._bytes += event.size_bytes
        self._hand_over(event)

    def _hand_over(self, event: _Event) -> None:
        try:
            kafka.enqueue(self._producer, event.out, partial(self._heard, event))
        except BufferError:
            self._refused(event, KafkaError(KafkaError._QUEUE_FULL))
        except KafkaException as error:
            self._refused(event, error.args[0])

    def _heard(self, event: _Event, error: KafkaError | None, _: Any) -> None:
        if error is None:
            self._end(event)
            if event.told is not None:
                event.told(None)
        else:
            self._refused(event, error)

    def _refused(self, event: _Event, error: KafkaError) -> None:
        event.attempts += 1
        topic, may_again = event.out.topic, event.told is None and event.attempts < self._attempts
        self._metrics.refused_event(topic)
        log.warning("an event for %s was not taken, attempt %d: %s", topic, event.attempts, error.name())
        self._failed_for_good = self._failed_for_good or error.fatal() or error.code() == KafkaError._FATAL
        if may_again:
            pause_s = min(LONGEST_PAUSE_S, 2.0 ** (event.attempts - 1))
            with self._lock:
                heapq.heappush(self._again, (self._clock() + pause_s, next(self._order), event))
            return
        self._end(event)
        if event.told is not None:
            event.told(error)
            return
        self._metrics.lost_event(topic)
        log.error("an event for %s is lost: not taken in %d attempts", topic, event.attempts)

    def _end(self, event: _Event) -> None:
        with self._lock:
            self._events -= 1
            self._bytes -= event.size_bytes

    def _replace_producer(self) -> None:
        """What the old one still holds comes back as refused."""
        log.error("the Kafka producer failed for good: going on with another")
        old, self._failed_for_good = self._producer, False
        self._producer = self._make()
        old.purge()
        old.flush(1)
        self._failed_for_good = False
