"""From a topic to typed events: `typed_vs_faust` and `typed_vs_bare`, events/s of one process.

Ours is what every consumer of ours does with a batch: `kafka.consumer`, `consume(250)`, `kafka.messages_of`,
`kafka.decode`. Faust is an agent over `stream.events()` that decodes with the same codec (`tests.bench.faust_peer`,
uvloop, its own process). The bare loop is confluent-kafka at its best settings (`fetch.queue.backoff.ms` 10, 250
messages at a time as ours, but its default of 64 MB read ahead); it looks at `error()` of each message and decodes
nothing.

Two topics, each filled once by our producer (lz4) over 4 partitions: `part: "header-less"` is `usage.feedback` as an
application writes it (FeedbackGiven, about 200 bytes of JSON), `part: "8 headers"` is `usage.inferences` as the gateway
writes it (InferenceServed, about 640 bytes under 8 CloudEvents headers, which the client turns into Python objects one
by one as soon as anybody looks at them; the bare loop does not). 20,000 different bodies, repeated with keys of their
own. Every clock runs from the first batch to the last: joining a group and starting up count for nobody.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from streams import kafka
from streams.kafka import Out
from tests.bench import load
from tests.bench.measure import DifferentOutputError, Figure, Parts, Timed, ratio
from tests.broker import Mark, fresh, group_from, mark
from tests.parts import ROOT

TOPICS = {"usage.feedback": "header-less", "usage.inferences": "8 headers"}
PARTITIONS = 4


def records(parts: Parts, topic: str, count: int) -> Iterator[Out]:
    """`count` records of one of the two topics, bodies repeated, keys not."""
    distinct = min(count, parts.size(20_000, 500))
    if topic == "usage.feedback":
        made: Iterator[msgspec.Struct] = load.feedback(distinct)
        bodies = [Out(topic, b"", msgspec.json.encode(event)) for event in made]
    else:
        bodies = [kafka.out(event, source="serve", subject="support@3") for event in load.inferences(distinct)]
    for number, body in enumerate(islice(cycle(bodies), count)):
        yield Out(topic, b"key-%d" % number, body.value, body.headers, partition=number % PARTITIONS)


def fill(parts: Parts, topic: str, count: int) -> Mark:
    """Publish `count` records; where they begin."""
    start = mark(parts.bootstrap, topic)
    client = kafka.producer(parts.bootstrap, linger_ms=50)
    for record in records(parts, topic, count):
        kafka.produce(client, record)
    assert client.flush(60) == 0
    return start


def read(parts: Parts, start: Mark, count: int, take: Callable[[list[Message]], int], **settings: Any) -> Timed:
    """Read `count` records from `start`; `take` makes a checksum of each batch, `settings` are the client's."""
    client = kafka.consumer(parts.bootstrap, fresh("bench"), **settings)
    client.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in start.items()])
    try:
        return _timed(client, count, take)
    finally:
        client.close()


def _timed(client: Consumer, count: int, take: Callable[[list[Message]], int]) -> Timed:
    batch = client.consume(1, timeout=30)
    done, total, begun = len(batch), take(batch), time.perf_counter()
    while done < count:
        batch = client.consume(min(kafka.CONSUME_RECORDS, count - done), timeout=1)
        total += take(batch)
        done += len(batch)
    return Timed(count, time.perf_counter() - begun, total)


def typed(batch: list[Message]) -> int:
    """What our consumers do; the checksum is over the decoded events."""
    total = 0
    for record in kafka.messages_of(batch):
        _, event = kafka.decode(record)
        total += len(event.subject_id)
    return total


def bare(batch: list[Message]) -> int:
    for message in batch:
        if message.error() is not None:
            raise RuntimeError(message.error())
        message.value()
    return 0


def _figures(parts: Parts, name: str, peer: Callable[[Parts, Mark, str, int], Timed], count: int) -> list[Figure]:
    figures = []
    for topic, part in list(TOPICS.items())[: parts.size(2, 1)]:
        start = fill(parts, topic, count)
        ours = _with_checksum(parts, topic, count)
        figures.append(ratio(
            name, parts, lambda start=start, ours=ours: ours(read(parts, start, count, typed)),
            lambda start=start, topic=topic: peer(parts, start, topic, count), "events/s", part,
        ))  # fmt: skip
    return figures


def _with_checksum(parts: Parts, topic: str, count: int) -> Callable[[Timed], Timed]:
    """Raises `DifferentOutputError` where what was read is not what was written."""
    wanted = sum(len(json.loads(record.value or b"{}")["subject_id"]) for record in records(parts, topic, count))

    def checked(timed: Timed) -> Timed:
        if timed.checksum != wanted:
            raise DifferentOutputError(f"{topic}: read {timed.checksum}, written {wanted}")
        return timed

    return checked


def typed_vs_bare(parts: Parts) -> list[Figure]:
    count = parts.size(600_000, 4_000)
    return _figures(parts, "typed_vs_bare", lambda _, start, topic, n: _bare(parts, start, n), count)


def _bare(parts: Parts, start: Mark, count: int) -> Timed:
    timed = read(parts, start, count, bare, **{"queued.max.messages.kbytes": 65_536})
    return Timed(timed.items, timed.seconds)


def typed_vs_faust(parts: Parts) -> list[Figure]:
    return _figures(parts, "typed_vs_faust", faust, parts.size(600_000, 4_000))


def faust(parts: Parts, start: Mark, topic: str, count: int) -> Timed:
    """A Faust worker in a process of its own over the same records, or as many of them as take it some five seconds."""
    read = min(count, parts.size(80_000, 4_000))
    group = group_from(parts.bootstrap, start)
    command = [sys.executable, "-m", "tests.bench.faust_peer", parts.bootstrap, topic, str(read), group]
    done = subprocess.run(
        [*command, str(parts.folder / group)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the Faust worker failed: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    _check_partitions(said["partitions"], [record.value or b"" for record in records(parts, topic, count)])
    return Timed(read, said["seconds"])


def _check_partitions(partitions: dict[str, list[int]], values: list[bytes]) -> None:
    """Each partition's (records, checksum), which are a beginning of it: how far each came differs from run to run."""
    for partition, (number, total) in partitions.items():
        mine = islice(values, int(partition), None, PARTITIONS)
        wanted = sum(len(json.loads(value)["subject_id"]) for value in islice(mine, number))
        if total != wanted:
            raise DifferentOutputError(f"partition {partition}: Faust read {total}, written {wanted}")
