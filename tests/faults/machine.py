"""The machine: broker behind its proxy, ClickHouse, consumer processes under a supervisor, the feed, and the verdict.

Lanes: `copy` (transact, two slots), `prepare` (the real step), `sink` (the real store, two slots), `work` (a long job,
two slots with a child each). Each lane is a consumer group over one topic. Beside them, where `prepare` runs, one slot
erases persons. Consumers reach the broker through the
proxy alone; the feed, the oracle and whoever measures go past it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import httpx
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.cimpl import NewTopic

from deploy.local import kafka as local_kafka
from deploy.local.ports import LOOPBACK, free_ports
from schemas.topics import DATA_PARTITIONS
from streams import kafka
from streams.clickhouse import connect
from streams.monitor.migrate import migrate
from tests.faults import feed, judge
from tests.faults.feed import TOPICS, Aborter, Feed
from tests.faults.oracle import Verdict
from tests.faults.proxy import Proxy
from tests.faults.slots import PATIENCE_S, Ending, Slot, StuckError, Supervisor, until
from tests.faults.steps import COPIED, COPY_DEAD, NUMBERS
from tests.parts import clickhouse_command, clickhouse_passwords, credential

GROUPS = {"copy": "copy", "prepare": "prepare", "sink": "monitor", "work": "work"}
SLOTS = {"copy": 2, "prepare": 1, "sink": 2, "work": 2}
QUICK_SLOTS = {"copy": 2, "prepare": 1, "sink": 1, "work": 1}
NEVER_S = 120.0


@dataclass(frozen=True)
class Pace:
    """The clients' times. `LIVE` are the product's, but for the poll interval of jobs, which is a minute there."""

    session_ms: int = 7_000
    transaction_ms: int = 10_000
    poll_ms: int = 7_500
    linger_s: float = 1.0


LIVE = Pace()
# For tests: shorter times, and no heirs (each process costs a second to start) but in the copy lane.
QUICK = Pace(session_ms=2_000, transaction_ms=4_000, poll_ms=2_500, linger_s=0.3)


class Machine:
    """See the module. Use it as a context: leaving it kills every process."""

    def __init__(
        self, folder: Path, seed: int = 1, pace: Pace = LIVE, lanes: Sequence[str] = tuple(GROUPS)
    ) -> None:
        self.folder, self.pace, self.lanes, self.random = folder, pace, tuple(lanes), Random(seed)
        self.supervisor = Supervisor()
        self.slots: dict[str, list[Slot]] = {}
        self.hits: Counter[str] = Counter()
        self.erasures: list[str] = []
        self.recovered: dict[str, float] = {}  # after the last fault, by lane
        self._seed = seed
        port, behind, before = free_ports(3)
        self.prepared = local_kafka.prepare(folder / "kafka", port, credential(folder), behind_proxy=(behind, before))
        self.bootstrap, self.proxied = self.prepared.bootstrap, f"{LOOPBACK}:{before}"
        self.proxy = Proxy(before, behind)
        self.clickhouse_url = f"http://{LOOPBACK}:{free_ports(1)[0]}"
        self._observers: dict[str, Consumer] = {}

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None = None, *_: object) -> None:
        if isinstance(error, (StuckError, AssertionError)):
            for slot in self.supervisor.slots:
                endings = [ending.code for ending in slot.endings]
                print(f"--- {slot.name} ({endings}):\n{slot.tail(1_500)}", file=sys.stderr)
        self.supervisor.close()
        self.proxy.close()

    def _start(self) -> None:
        self.proxy.start()
        self.supervisor.start()
        self.broker = self._slot("broker", self.prepared.argv)
        self.broker.start()
        if "sink" in self.lanes:
            self._start_clickhouse()
        until(lambda: local_kafka.registered(self.bootstrap), PATIENCE_S, "the broker")
        kafka.ensure_topics(self.bootstrap)
        topics = [NewTopic(name, DATA_PARTITIONS, 1) for name in (NUMBERS, COPIED)] + [NewTopic(COPY_DEAD, 1, 1)]
        admin = kafka.admin(self.bootstrap)
        for future in admin.create_topics(topics).values():
            future.result(30)
        kafka.wait_until_known(admin, [topic.topic for topic in topics])
        self.feed = Feed(self.bootstrap, self._seed, self.lanes)
        self.aborter = Aborter(self.bootstrap, self._seed)
        slots = QUICK_SLOTS if self.pace is QUICK else SLOTS
        for lane in self.lanes:
            self.slots[lane] = [self._consumer(lane, number) for number in range(slots[lane])]
            for slot in self.slots[lane]:
                slot.start()
        if {"prepare", "sink"} <= set(self.lanes):  # an erasure needs both stores
            self.eraser = self._consumer("erase", 0)
            self.eraser.start()

    def _start_clickhouse(self) -> None:
        port = self.clickhouse_url.rpartition(":")[2]
        passwords = clickhouse_passwords(self.folder / "passwords")  # the environment has them for the consumers
        command = clickhouse_command(self.folder / "clickhouse", int(port), passwords)
        self.clickhouse = self._slot("clickhouse", command)
        self.clickhouse.start()
        until(self._clickhouse_answers, PATIENCE_S, "ClickHouse")
        migrate(connect(self.clickhouse_url))

    def _clickhouse_answers(self) -> bool:
        try:
            return httpx.get(f"{self.clickhouse_url}/ping", timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    def _slot(self, name: str, argv: Sequence[str]) -> Slot:
        slot = Slot(name, argv, self.folder)
        self.supervisor.slots.append(slot)
        return slot

    def _consumer(self, lane: str, number: int) -> Slot:
        told = {"bootstrap": self.proxied, "folder": str(self.folder), "clickhouse": self.clickhouse_url}
        spec, name = json.dumps({**told, **asdict(self.pace)}), f"{lane}-{number}"
        return self._slot(name, [sys.executable, "-m", "tests.faults.process", lane, name, spec])

    def extra(self, lane: str) -> Slot:
        """One more slot of a lane, not started."""
        slot = self._consumer(lane, len(self.slots[lane]))
        self.slots[lane].append(slot)
        return slot

    # --- looking ---

    def offsets(self, lane: str) -> dict[int, int]:
        """What the lane's group has committed, by partition. Raises `KafkaException` while the broker is away."""
        if lane not in self._observers:
            # Uncommitted: a committed reader would be made to wait while offsets hang in an open transaction.
            uncommitted = {"isolation.level": "read_uncommitted", "reconnect.backoff.max.ms": 200, **feed.QUIET}
            self._observers[lane] = kafka.consumer(self.bootstrap, GROUPS[lane], **uncommitted)
        places = [TopicPartition(TOPICS[lane], number) for number in range(1 if lane == "work" else DATA_PARTITIONS)]
        return {place.partition: max(place.offset, 0) for place in self._observers[lane].committed(places, timeout=5)}

    def moved(self, lane: str, before: dict[int, int]) -> bool:
        """True once every partition's committed offset lies beyond where it was."""
        try:
            return all(offset > before[partition] for partition, offset in self.offsets(lane).items())
        except KafkaException:
            return False

    def recovery(self, began: float, before: dict[str, dict[int, int]]) -> float:
        """Seconds from `began` until every one of these lanes has moved on everywhere; NEVER_S where they do not."""
        left, self.recovered = set(before), {}
        while left and time.monotonic() - began < NEVER_S:
            for lane in [lane for lane in left if self.moved(lane, before[lane])]:
                left.discard(lane)
                self.recovered[lane] = time.monotonic() - began
            time.sleep(0.05)
        return time.monotonic() - began if not left else NEVER_S

    def now(self, *lanes: str) -> dict[str, dict[int, int]]:
        """Where these lanes (all, if none is named) are; waits for a broker that is away."""
        return {lane: until(lambda lane=lane: self._offsets(lane), PATIENCE_S, f"{lane}'s offsets") for lane in lanes or self.lanes}

    def _offsets(self, lane: str) -> dict[int, int] | None:
        try:
            return self.offsets(lane)
        except KafkaException:
            return None

    def last(self, lane: str) -> dict[int, int]:
        """The last offset of each of the lane's partitions."""
        places = [TopicPartition(TOPICS[lane], number) for number in self.offsets(lane)]
        observer = self._observers[lane]
        return {place.partition: observer.get_watermark_offsets(place, timeout=5)[1] - 1 for place in places}

    def lag(self, lane: str) -> int:
        committed = self.offsets(lane)
        return sum(last + 1 - committed[partition] for partition, last in self.last(lane).items())

    # --- acting ---

    def forget(self, person: str) -> None:
        """Ask that a person be forgotten."""
        self.erasures.append(self.feed.forget(person))

    def has_prepared(self, person: str) -> bool:
        """Whether `prepare` has passed all that this person has said."""
        places = [said.place for said in list(self.feed.personal.values()) if said.person == person and said.place]
        committed = self._offsets("prepare")
        return committed is not None and all(offset < committed[partition] for partition, offset in places)

    def erase_says(self, text: str) -> int:
        """How often the erasing process has said this."""
        return (self.folder / f"{self.eraser.name}.out").read_text(errors="replace").count(text)

    def first_end(self, lane: str, armed: str, code: int, timeout_s: float = PATIENCE_S) -> Ending:
        """Arm the lane's processes and wait for the first that ends of it with this status; then disarm the others."""
        self.ready(lane)
        before = {slot.name: len(slot.endings) for slot in self.running(lane)}

        def ended() -> Ending | None:
            for slot in self.running(lane):
                for ending in slot.endings[before[slot.name] :]:
                    if (ending.armed, ending.code) == (armed, code):
                        return ending
                if slot.armed != armed:
                    slot.arm(armed)
            return None

        try:
            return until(ended, timeout_s, f"{armed} in {lane}")
        finally:
            for slot in self.running(lane):
                slot.arm("")

    def running(self, lane: str) -> list[Slot]:
        return [slot for slot in self.slots[lane] if slot.wanted]

    def warm(self) -> None:
        """Wait until every lane has committed something of every partition. The feed must be running."""
        for lane in self.lanes:
            self.ready(lane)
            nowhere = dict.fromkeys(range(DATA_PARTITIONS), 0)
            until(lambda lane=lane, nowhere=nowhere: self.moved(lane, nowhere), PATIENCE_S, f"{lane} moving")

    def ready(self, lane: str) -> None:
        """Wait until the lane's processes have started."""
        until(lambda: all(slot.ready() for slot in self.running(lane)), PATIENCE_S, f"{lane} ready")

    def settle(self, timeout_s: float = 300.0) -> None:
        """Wait until everything that was said is dealt with. The feed must be at rest.

        An erasure takes 30 s, 75 s on a busy machine, and begins anew where the broker died under it.
        """
        self.feed.flush()
        for lane in self.lanes:
            until(lambda lane=lane: self._done(lane), timeout_s, f"lag 0 of {lane}", every_s=0.2)
        asked = set(self.erasures)
        until(lambda: asked <= judge.receipts(self.bootstrap), timeout_s, "the receipts of all erasures", every_s=2)

    def _done(self, lane: str) -> bool:
        try:
            return self.lag(lane) == 0
        except KafkaException:
            return False

    def verdict(self) -> Verdict:
        """What the oracle says of everything up to now; call `settle` before."""
        total = Verdict()
        assert self.feed.failed == [], f"the broker refused input: {self.feed.failed[:3]}"
        for lane in self.lanes:
            total.merge(judge.LANES[lane](self))
        return total
