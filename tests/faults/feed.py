"""The steady producer: numbered events for every lane, 1% of them poison, some in transactions that are aborted.

Every record's Kafka key is LANE-KEY-N: N counts each KEY's records without a gap, and a KEY lives on one partition, so
whoever reads a topic can tell whether the broker kept what it acknowledged. It talks to the broker directly, past the
proxy: what it says is the input that the oracle takes as given.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.events import ErasureRequested, JobRequested
from schemas.identity import erasure_id, subject_hash
from schemas.topics import DATA_PARTITIONS
from streams import kafka
from streams.kafka import Out
from tests.examples import example
from tests.faults.steps import NUMBERS
from tests.ids import KEY_ID, SECRET, answer

TOPICS = {"copy": NUMBERS, "prepare": "training.raw", "sink": "usage.feedback", "work": "training.jobs"}
SHARES = {"copy": 0.7, "sink": 0.2, "prepare": 0.1}
QUIET = {"log_level": 0}  # a broker that is killed now and then is no news
KEYS = 16
POISON_SHARE = 0.01
FORGET_SHARE = 0.002
POISON = b'{"broken": '
ABORTED = "aborted"
WORDS = [
    "parcel", "late", "refund", "broken", "screen", "battery", "invoice", "address", "charge", "delivery", "colour",
    "button", "window", "garden", "silver", "morning", "letter", "change", "cancel", "update", "account", "phone",
    "winter", "summer", "travel", "ticket", "coffee", "bottle", "camera", "engine", "bridge", "market", "doctor",
    "pencil", "orange", "mirror", "candle", "basket", "ladder", "pillow", "rocket", "violin", "hammer", "island",
    "forest", "desert", "harbor", "lantern", "compass", "anchor", "feather", "blanket", "carpet", "drawer",
    "kettle", "saddle", "thunder", "valley", "meadow",
]  # fmt: skip


def body(lane: str, name: str, random: Random, person: str = "") -> bytes:
    """What a record of this lane says, by `person`; enough of it is random that none is like another."""
    n = int(name.rsplit("-", 1)[1])
    if lane == "copy":
        return json.dumps({"key": name, "n": n, "pad": "x" * random.randrange(100)}).encode()
    if lane == "sink":
        said = {
            "inference_id": answer(name), "metric_name": "demonstration", "value": f"answer {n}", "feedback_id": name,
        }  # fmt: skip
        return json.dumps(said).encode()
    prompt = " ".join(random.choices(WORDS, k=12))
    said = {"model": "m", "prompt": prompt, "completion": "yes", "record_id": name}
    return json.dumps({**said, **({"subject_id": person} if person else {})}).encode()


@dataclass
class Personal:
    """A record by `person`; `early`: it was there when they asked to be forgotten."""

    person: str
    early: bool = False
    place: tuple[int, int] | None = None


class Aborter:
    """Records in transactions that are aborted: nobody may ever act on them."""

    def __init__(self, bootstrap: str, seed: int) -> None:
        self._bootstrap, self._random = bootstrap, Random(seed)
        self._producer: Producer | None = None
        self.open = False

    def abort(self, lane: str, count: int = 20) -> None:
        """One such transaction. Raises `KafkaException` where the broker is away; then call it again soon: while a
        transaction is open no committed reader gets past it."""
        producer, self._producer = self._producer, None  # one that met an error is never used again
        self.open = True
        if producer is None:
            producer = kafka.producer(self._bootstrap, transactional_id="feed-aborter", **QUIET)
            producer.init_transactions(5)
        producer.begin_transaction()
        for n in range(count):
            name = f"{ABORTED}-{lane}-{n}"
            value = body(lane, name, self._random)
            kafka.produce(producer, Out(TOPICS[lane], name.encode(), value, [], n % DATA_PARTITIONS))
        producer.flush(5)
        producer.abort_transaction(5)
        self._producer, self.open = producer, False


class Feed:
    """See the module. `said` counts the records by lane and key; all of them were acknowledged after `flush`."""

    def __init__(self, bootstrap: str, seed: int, lanes: tuple[str, ...]) -> None:
        self._producer = kafka.producer(bootstrap, linger_ms=20, **QUIET)
        self._random = Random(seed)
        self._guard = threading.RLock()
        self.lanes = lanes
        self.said: Counter[tuple[str, int]] = Counter()
        self.events = 0
        self.failed: list[str] = []
        self.flooded: set[str] = set()  # lanes that get nothing but poison for now
        self.personal: dict[bytes, Personal] = {}  # by key: what persons said who ask to be forgotten

    def say_as(self, person: str) -> None:
        """One record for `prepare` by somebody who will ask to be forgotten, or has."""
        with self._guard:
            number = self._random.randrange(KEYS)
            name = self._name("prepare", number)
            self.personal[name.encode()] = Personal(person)
            self._produce("prepare", number, name, body("prepare", name, self._random, person))

    def say(self, lane: str, *, poison: bool | None = None) -> None:
        """One record for a lane."""
        with self._guard:
            chance = self._random.random()
            if poison is None:
                poison = chance < POISON_SHARE or lane in self.flooded
            if lane == "sink" and not poison and chance > 1 - FORGET_SHARE:
                self._forget()
                return
            number = self._random.randrange(KEYS)
            name = self._name(lane, number)
            self._produce(lane, number, name, POISON if poison else body(lane, name, self._random))

    def _name(self, lane: str, number: int) -> str:
        n = self.said[lane, number]
        self.said[lane, number] += 1
        return f"{lane}-{number}-{n}"

    def _produce(self, lane: str, number: int, name: str, value: bytes | None) -> None:
        kafka.produce(self._producer, Out(TOPICS[lane], name.encode(), value, [], number % DATA_PARTITIONS), self._told)
        self.events += 1

    def _told(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failed.append(f"{message.topic()} {message.key()!r}: {error}")
        elif (said := self.personal.get(message.key() or b"")) is not None:
            said.place = (message.partition() or 0, message.offset() or 0)

    def _forget(self) -> None:
        """A tombstone for a feedback record of before, on its own partition."""
        number = self._random.randrange(KEYS)
        if not (n := self.said["sink", number]):
            return
        # One half of them are about what is just under way.
        oldest = 0 if self._random.random() < 0.5 else max(0, n - 20)
        name = f"sink-{number}-{self._random.randrange(oldest, n)}"
        self._produce("sink", number, name, None)

    def forget(self, person: str) -> str:
        """Ask that a person be forgotten, with all they have said; returns the erasure's id."""
        self.flush()
        with self._guard:
            for said in self.personal.values():
                said.early |= said.person == person
        hashed = subject_hash(SECRET, person)
        asked = ErasureRequested(
            erasure_id=erasure_id(hashed), subject_hash=hashed, key_id=KEY_ID, subject_id=person
        )
        kafka.produce(self._producer, kafka.out(asked, source="feed"), self._told)
        self.flush()
        return asked.erasure_id

    def job(self, seconds: float, poison: bool = False) -> None:
        """One job that takes the child this long."""
        with self._guard:
            name = self._name("work", 0)
            job = example(JobRequested, "m", job_id=name, recipe={"seconds": seconds})
            record = kafka.out(job, source="feed")
            value = POISON if poison else record.value
            kafka.produce(self._producer, Out(record.topic, name.encode(), value, record.headers, 0), self._told)
            self.events += 1

    def flush(self, timeout_s: float = 60.0) -> None:
        """Return once everything is acknowledged. Raises TimeoutError."""
        if left := self._producer.flush(timeout_s):
            raise TimeoutError(f"{left} records of the feed were not acknowledged within {timeout_s:.0f} s")


class Steady:
    """Says `rate` records a second over the feed's lanes, and a job a second, until it is left."""

    def __init__(self, feed: Feed, aborter: Aborter, rate: float, abort_every_s: float = 5.0) -> None:
        self._feed, self._aborter, self._rate, self._abort_every_s = feed, aborter, rate, abort_every_s
        self._lanes = [lane for lane in feed.lanes if lane in SHARES]
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._threads = [threading.Thread(target=self._guarded, args=(run,)) for run in (self._say, self._abort)]

    def __enter__(self) -> Steady:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
        if self.error is not None:
            raise self.error

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - raised where the feed is left
            self.error = error

    def _say(self) -> None:
        random, began, said, jobs = Random(1), time.monotonic(), 0, 0
        weights = [SHARES[lane] for lane in self._lanes]
        while not self._stop.wait(0.02):
            elapsed_s = time.monotonic() - began
            for lane in random.choices(self._lanes, weights, k=int(elapsed_s * self._rate) - said):
                self._feed.say(lane)
            said = int(elapsed_s * self._rate)
            if "work" in self._feed.lanes and elapsed_s > jobs:
                jobs += 1
                self._feed.job(random.choice([0.0, 0.1, 0.3]), poison=random.random() < POISON_SHARE)

    def _abort(self) -> None:
        random, wait_s = Random(2), self._abort_every_s
        while not self._stop.wait(wait_s):
            wait_s = self._abort_every_s
            try:
                self._aborter.abort(random.choice(self._lanes))
            except KafkaException:
                wait_s = 0.2
        while self._aborter.open:
            with contextlib.suppress(KafkaException):
                self._aborter.abort(self._lanes[0])
