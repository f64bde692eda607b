"""What a consumer process says of itself to Prometheus: records, drops, dead letters, batches, lag, signs of life.

The loops count once per batch, never per record, and note their lag once a second. `listen` serves all of it as
/metrics on a port of the process's own. Labels hold names of topics, groups and rules, never a person's words.
The gateway's figures are another matter: `serving.metrics`.
"""

from __future__ import annotations

import logging
import math
import platform
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter

import msgspec
from confluent_kafka import Consumer, KafkaException
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.events import ShardWritten
from schemas.topics import TOPIC_OF, TOPICS
from streams import kafka
from streams.kafka import Out, Record
from streams.lag import ConsumerLag, Place, of_group

log = logging.getLogger(__name__)
WINDOW_S = 10
GROUP_LAG_TIMEOUT_S = 2.0
_SHARDS = TOPIC_OF[ShardWritten].name
_DEAD = "dead."
_ORIGIN = "__connect.errors.topic"
_topic = attrgetter("topic")
# From a small batch to a training job.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

disable_created_metrics()  # a second series per counter that says when it was made; nobody asks for it
registry = CollectorRegistry()
ProcessCollector(registry=registry)
PROCESS = Info("tuneloop_process", "Which process this is.", registry=registry)
CONSUMED = Counter("tuneloop_records_consumed", "Records taken and dealt with.", ["topic"], registry=registry)
PRODUCED = Counter("tuneloop_records_produced", "Records written, dead letters included.", ["topic"], registry=registry)
DROPPED = Counter("tuneloop_records_dropped", "Records that no shard took, by rule.", ["reason"], registry=registry)
DEAD_LETTERS = Counter(
    "tuneloop_dead_letters", "Records that broke the contract, by the topic they came from.", ["group", "topic"],
    registry=registry,
)  # fmt: skip
UNREADABLE = Counter(
    "tuneloop_unreadable_records", "Records of our own topics that a reader without dead letters passed over.",
    ["topic"], registry=registry,
)  # fmt: skip
MEASURING_FAILED = Counter(
    "tuneloop_measuring_failed", "Looks at live quality that failed and were tried again.", registry=registry
)
SLOWED = Counter(
    "tuneloop_slowed_seconds", "Waited because most of what came in had to be refused.", registry=registry
)
BATCH_SECONDS = Histogram(
    "tuneloop_batch_seconds", "From a gathered batch (or a job) to its commit.", buckets=_BUCKETS, registry=registry
)
COMMITS = Counter("tuneloop_commits", "Commits of offsets, alone or in a transaction.", registry=registry)
ABORTED = Counter("tuneloop_transactions_aborted", "Transactions aborted and done again.", registry=registry)


class Rate:
    """How many a second over the last `WINDOW_S` whole seconds. One entry a second; safe between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._counts: deque[list[int]] = deque(maxlen=WINDOW_S + 1)

    def add(self, n: int) -> None:
        second = math.floor(self._clock())
        with self._lock:
            if self._counts and self._counts[-1][0] == second:
                self._counts[-1][1] += n
            else:
                self._counts.append([second, n])

    def per_second(self) -> float:
        now = math.floor(self._clock())
        with self._lock:
            return sum(n for second, n in self._counts if now - WINDOW_S <= second < now) / WINDOW_S


class Age:
    """Seconds since `touch` was last called, before that since the process started: waiting for the first counts."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def touch(self) -> None:
        self._at = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._at


class Lag(Collector):
    """Reads every watched source at the moment somebody asks, in the asker's thread."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Mapping[Place, int]]] = []

    def watch(self, source: Callable[[], Mapping[Place, int]]) -> Callable[[], None]:
        """Ask `source` at every scrape, until the function that this returns is called."""
        self._sources.append(source)
        return lambda: self._sources.remove(source)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        said = "From the position (jobs, Faust: the committed offset) to the end of the partition."
        family = GaugeMetricFamily("tuneloop_lag_records", said, labels=["topic", "partition"])
        found: dict[Place, int] = {}
        for source in list(self._sources):
            try:
                found |= source()
            except KafkaException as error:  # the broker is away; the rest is worth saying
                log.warning("lag unknown: %s", error)
        for (topic, partition), records in sorted(found.items()):
            family.add_metric([topic, str(partition)], records)
        yield family


_rate, _last_record, _last_sign, _lag = Rate(), Age(), Age(), Lag()
registry.register(_lag)
Gauge(
    "tuneloop_records_per_second", f"Records consumed a second, over the last {WINDOW_S} s.", registry=registry
).set_function(_rate.per_second)
Gauge(
    "tuneloop_last_record_age_seconds", "Since the last record was dealt with; before the first, since the start.",
    registry=registry,
).set_function(_last_record.seconds)  # fmt: skip
Gauge(
    "tuneloop_heartbeat_age_seconds", "Since the loop last came round, with a record or without.",
    registry=registry,
).set_function(_last_sign.seconds)  # fmt: skip
heartbeat, silent_s = _last_sign.touch, _last_sign.seconds


class Watched:
    """A loop's consumer under watch: the loop says when it came round, a scrape reads how far it is behind."""

    def __init__(self, client: Consumer) -> None:
        self._lag = ConsumerLag(client)
        self.close = _lag.watch(lambda: self._lag.records)

    def came_round(self) -> None:
        """Call once a batch, and as often as there is none, from the thread that owns the consumer."""
        heartbeat()
        try:
            self._lag.note()
        except KafkaException as error:  # the work goes on without this figure
            log.warning("lag unknown: %s", error)


def watch_group(bootstrap: str, group: str) -> Callable[[], None]:
    """Have every scrape ask the broker for the group's lag, where the consumer itself cannot tell.

    A paused one hears nothing of new ends, and Faust's client is not ours. Returns what ends it.
    """
    client = kafka.asking(bootstrap, group)
    return _lag.watch(lambda: of_group(client, GROUP_LAG_TIMEOUT_S))


def listen(process: str, host: str, port: int) -> bool:
    """Serve /metrics on `host`:`port`, in a thread; 0 = do not. False where nothing listens: the work goes on."""
    PROCESS.info({"name": process, "version": _version(), "python": platform.python_version()})
    for topic in TOPICS:  # a counter that begins at 1 has not increased, as far as Prometheus can see
        if process in topic.consumers:
            CONSUMED.labels(topic.name)
            DEAD_LETTERS.labels(process, topic.name)
    if not port:
        return False
    try:
        start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        log.warning("no metrics of %s: cannot listen on %s:%d: %s; its work goes on", process, host, port, error)
        return False
    log.info("metrics of %s on http://%s:%d/metrics", process, host, port)
    return True


def by_topic(records: Sequence[Record]) -> Tally[str]:
    """How many of these records came from each topic."""
    return Tally(map(_topic, records))


def batch_done(counts: Tally[str], outs: Sequence[Out], seconds: float) -> None:
    """Count a batch whose offsets are committed (`by_topic` of its records), and what it made."""
    for topic, n in counts.items():
        CONSUMED.labels(topic).inc(n)
    _rate.add(counts.total())
    _last_record.touch()
    BATCH_SECONDS.observe(seconds)
    produced(outs)


def consumed(topic: str) -> None:
    """Count one record of a slow stream (Faust, which has no batches)."""
    CONSUMED.labels(topic).inc()
    _rate.add(1)
    _last_record.touch()


def produced(outs: Sequence[Out]) -> None:
    """Count records that were written; dead letters and drops are read from the records themselves."""
    for topic, n in Tally(map(_topic, outs)).items():
        PRODUCED.labels(topic).inc(n)
        if topic == _SHARDS:
            _count_drops([out for out in outs if out.topic == topic])
        elif topic.startswith(_DEAD):
            _count_dead_letters(topic.removeprefix(_DEAD), [out for out in outs if out.topic == topic])


class _Drops(msgspec.Struct):
    """What any event of `training.shards` says of drops."""

    dropped: dict[str, int] = {}


def _count_drops(shards: Sequence[Out]) -> None:
    # From the committed events, not from the step: what an aborted batch dropped is dropped again with the next.
    for out in shards:
        if out.value is not None:
            for reason, n in msgspec.json.decode(out.value, type=_Drops).dropped.items():
                DROPPED.labels(reason).inc(n)


def _count_dead_letters(group: str, letters: Sequence[Out]) -> None:
    origins = Tally(dict(letter.headers).get(_ORIGIN, b"").decode() for letter in letters)
    for topic, n in origins.items():
        DEAD_LETTERS.labels(group, topic).inc(n)


def _version() -> str:
    try:
        return version("tuneloop")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
