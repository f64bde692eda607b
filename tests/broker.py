"""What tests say to the shared broker, and how they look at it: fresh names, plain clients, records since a mark."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from schemas.codec import now_ms
from streams import kafka
from streams.kafka import Out, Record

Mark = dict[tuple[str, int], int]
# How long a test waits for what takes seconds: other tests run beside it, on machines with two cores.
PATIENCE_S = 90.0


def fresh(word: str) -> str:
    """A name that nothing else in this run has."""
    return f"{word}-{uuid.uuid4().hex[:10]}"


def fresh_topic(bootstrap: str, word: str, partitions: int = 1, **config: str) -> str:
    admin, name = kafka.admin(bootstrap), fresh(word)
    admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(30)
    kafka.wait_until_known(admin, [name])
    return name


def mark(bootstrap: str, *topics: str) -> Mark:
    """Where these topics end now."""
    reader = kafka.consumer(bootstrap, fresh("mark"))
    try:
        return {
            (topic, number): kafka.end_of(reader, TopicPartition(topic, number))
            for topic in topics
            for number in kafka.partitions_of(reader, topic)
        }
    finally:
        reader.close()


def since(bootstrap: str, topic: str, start: Mark | None = None, settled: bool = True) -> list[Record]:
    """The committed records of `topic` from `start` on, in the order of (partition, offset).

    A lag of 0 does not say that what was committed with the offsets shows already: `settled` waits for it.
    """
    records = kafka.read_to_end(bootstrap, topic, settled=settled)
    found = [record for record in records if record.offset >= (start or {}).get((topic, record.partition), 0)]
    return sorted(found, key=lambda record: (record.partition, record.offset))


def group_from(bootstrap: str, start: Mark) -> str:
    """A new consumer group whose committed offsets are `start`."""
    group = fresh("group")
    reader = Consumer({**kafka.client_settings(bootstrap), "group.id": group})
    offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in start.items()]
    reader.commit(offsets=offsets, asynchronous=False)
    reader.close()
    return group


def lag(bootstrap: str, group: str, *topics: str) -> int:
    """Records (control markers included) between the group's committed offsets and these topics' ends."""
    reader = kafka.consumer(bootstrap, group)
    try:
        places = [
            TopicPartition(topic, number) for topic in topics for number in kafka.partitions_of(reader, topic)
        ]
        ends = [kafka.end_of(reader, place) for place in places]
        done = [max(place.offset, 0) for place in reader.committed(places, timeout=15)]
        return sum(ends) - sum(done)
    finally:
        reader.close()


def members(bootstrap: str, group: str) -> int:
    admin = kafka.admin(bootstrap)
    return len(admin.describe_consumer_groups([group])[group].result(15).members)


_producers: dict[str, Producer] = {}


def publish(bootstrap: str, records: Iterable[Out], **settings: Any) -> None:
    """Produce with a client of our own, or, with `settings`, as somebody else's client would."""
    if settings:
        client = Producer({**kafka.client_settings(bootstrap), "linger.ms": 0, **settings})
    else:  # kept: an idempotent producer's first record waits half a second for its number
        if bootstrap not in _producers:
            _producers[bootstrap] = kafka.producer(bootstrap, linger_ms=0, log_level=0)  # its broker may have gone
        client = _producers[bootstrap]
    for record in records:
        kafka.produce(client, record)
    assert client.flush(20) == 0


def landed(out: Out, offset: int = 0, timestamp_ms: int | None = None, partition: int = 0) -> Record:
    """What was to be produced, as whoever reads it has it; just now, where no time is given."""
    said_ms = now_ms() if timestamp_ms is None else timestamp_ms
    return Record(out.topic, partition, offset, said_ms, out.key, out.value, out.headers)


@contextmanager
def open_transaction(bootstrap: str, records: Iterable[Out]) -> Iterator[None]:
    """Within: these records stand in a transaction of somebody else's, who commits it a second later."""
    writer = kafka.producer(bootstrap, transactional_id=fresh("writer"))
    writer.init_transactions(30)
    writer.begin_transaction()
    for record in records:
        kafka.produce(writer, record)
    writer.flush(10)
    ending = threading.Timer(1.0, writer.commit_transaction)
    ending.start()
    yield
    ending.join()


def until(holds: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str | Callable[[], str] = "it") -> Any:
    """Wait until `holds` returns something true, and return that. `what` may be worked out when it did not come."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        if time.monotonic() >= deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"{said} did not come about within {timeout_s:.0f} s")
        time.sleep(0.05)
    return value


class Running(AbstractContextManager["Running"]):
    """A delivery loop in a thread. `error` is what ended it; leaving stops it and raises that error."""

    def __init__(self, loop: Callable[[threading.Event], None]) -> None:
        self.stop, self.error = threading.Event(), None  # type: threading.Event, BaseException | None
        self._loop = loop
        self._thread = threading.Thread(target=self._body, daemon=True)

    def _body(self) -> None:
        try:
            self._loop(self.stop)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def ended(self, timeout_s: float = PATIENCE_S) -> BaseException | None:
        """Wait for the loop to end by itself; the error that ended it, which is then settled."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the loop still runs after {timeout_s:.0f} s"
        error, self.error = self.error, None
        return error

    def until(self, holds: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "it") -> Any:
        """`until`, failing at once with the loop's error where it has ended."""

        def watched() -> Any:
            if self.error is not None:
                raise self.error
            return holds()

        return until(watched, timeout_s, what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        if kind is None:
            assert not self._thread.is_alive(), "the loop did not stop"
            if self.error is not None:
                raise self.error
