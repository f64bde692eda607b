"""The fault machine for under a minute: every lane, quick sessions, a fault in each; `make test-long` has one of each
kind that can be short.

The long run is `make faults`. And the oracle on planted defects: loops that do what ours must not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException

from deploy.local.errors import LocalPartError
from deploy.local.kafka import fetch_jars
from schemas.policy import ModelPolicy
from streams import kafka, transact
from streams.kafka import Out, Record
from streams.prepare.step import Committed, PrepareStep
from tests.broker import Mark, Running, fresh, fresh_topic, group_from, lag, mark, publish, since
from tests.faults import judge, oracle
from tests.faults.feed import Steady
from tests.faults.machine import NEVER_S, QUICK, Machine
from tests.faults.oracle import Expected
from tests.faults.plan import BY_NAME
from tests.ids import SPLIT_KEY
from tests.stores import store_at

SEED = 20261121
# One after the other within a lane, the lanes at the same time.
PARTED = {
    "copy": ["kill at transact.offsets_sent", "stop in a transaction"],
    "prepare": ["kill at artifact.renamed", "erase while preparing", "disk full"],
    "sink": ["kill at land.between_tables", "flood of poison", "replay from the beginning"],
    "work": ["kill at job.produced", "job longer than its poll interval"],
}
SHORT = {
    "copy": ["kill at transact.offsets_sent"],
    "prepare": ["erase while preparing"],
    "sink": ["kill at land.between_tables"],
    "work": ["kill at job.produced"],
}
# These strike every lane.
TOGETHER = ["kill the broker in EndTxn", "lose the answer to EndTxn", "lose the answer to TxnOffsetCommit"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("parted", "together"),
    [pytest.param(SHORT, TOGETHER[:1], id="short"), pytest.param(PARTED, TOGETHER, id="each", marks=pytest.mark.long)],
)
def test_nothing_is_lost_doubled_or_torn(tmp_path: Path, parted: dict[str, list[str]], together: list[str]) -> None:
    try:
        fetch_jars()
    except LocalPartError as error:
        pytest.skip(str(error))
    with Machine(tmp_path, SEED, QUICK) as machine:
        began = time.monotonic()
        with Steady(machine.feed, machine.aborter, rate=200, abort_every_s=2.0):
            machine.warm()
            print(f"warm after {time.monotonic() - began:.1f} s")
            with ThreadPoolExecutor(len(parted)) as lanes:
                recovered = list(lanes.map(lambda lane: strikes(machine, lane, parted[lane]), parted))
            recovered.append(strikes(machine, "copy", together))
        print(f"struck after {time.monotonic() - began:.1f} s: {recovered}")
        machine.settle()
        verdict = machine.verdict()
        assert verdict.clean, verdict.findings
        assert machine.feed.events > 2_000
        assert max(max(seconds.values()) for seconds in recovered) < NEVER_S, recovered


def strikes(machine: Machine, lane: str, names: list[str]) -> dict[str, float]:
    random = Random(SEED)
    return {f"{lane}: {name}": BY_NAME[name].fault(machine, random, lane) for name in names}


# --- the oracle on defects that are planted --------------------------------------------------------------


def number_topics(bootstrap: str) -> tuple[str, str]:
    """(topic with 40 numbers over 2 partitions, empty topic with as many partitions)."""
    source, target = fresh_topic(bootstrap, "numbers", 2), fresh_topic(bootstrap, "copied", 2)
    keys = [b"copy-%d-%d" % (n % 2, n // 2) for n in range(40)]
    publish(bootstrap, [Out(source, key, b"v" + key, [], n % 2) for n, key in enumerate(keys)])
    return source, target


def copy_badly(bootstrap: str, source: str, target: str, batches: Callable[[Consumer, list[Record]], bool]) -> None:
    """Run a loop over `source`, starting again whenever `batches` says that it has crashed, until the end is reached."""
    group = fresh("group")
    for _ in range(2):
        client = kafka.consumer(bootstrap, group, **{"session.timeout.ms": 2_000, "heartbeat.interval.ms": 600})
        client.subscribe([source])
        crashed = False
        while not crashed and left(bootstrap, group, source):
            if batch := kafka.messages_of(client.consume(10, timeout=1)):
                crashed = batches(client, batch)
        client.close()


def left(bootstrap: str, group: str, source: str) -> int:
    try:
        return lag(bootstrap, group, source)
    except KafkaException:  # a broker that has just started may have no coordinator yet
        return 1


def verdict_of(bootstrap: str, source: str, target: str) -> oracle.Verdict:
    said = [(record.key, record.value) for record in since(bootstrap, source)]
    assert len(said) == 40

    def expect(record: Record) -> Expected:
        return Expected(record.key or b"", record.value or b"")

    return oracle.copied(since(bootstrap, source), since(bootstrap, target), [], expect)


@pytest.mark.parametrize(("offsets_first", "kind"), [(True, "lost"), (False, "doubled")])
def test_a_loop_without_transactions_is_found_out(kafka_bootstrap: str, offsets_first: bool, kind: str) -> None:
    """Offsets before output loses what a crash in between leaves out; output before offsets doubles it."""
    source, target = number_topics(kafka_bootstrap)
    crashes = iter([False, True])

    def batch_done(client: Consumer, batch: list[Record]) -> bool:
        def say() -> None:
            publish(kafka_bootstrap, [Out(target, r.key or b"", r.value, [], r.partition) for r in batch])

        def commit() -> None:
            client.commit(offsets=kafka.positions(client), asynchronous=False)

        first, then = (commit, say) if offsets_first else (say, commit)
        first()
        if next(crashes, False):
            return True
        then()
        return False

    copy_badly(kafka_bootstrap, source, target, batch_done)
    verdict = verdict_of(kafka_bootstrap, source, target)
    assert verdict.counts[kind] > 0 and set(+verdict.counts) == {kind}, verdict.findings


class Numbers:
    """A step that copies, stamping each record with its batch as the machine's does."""

    def __init__(self, target: str) -> None:
        self._target = target

    def assigned(self, partitions: list[tuple[str, int]]) -> None: ...

    def handle(self, batch: list[Record]) -> list[Out]:
        stamp = ("batch", f"{fresh('b')}/{len(batch)}".encode())
        return [Out(self._target, r.key or b"", r.value, [stamp], r.partition) for r in batch]


def test_half_a_transaction_is_found_out(kafka_bootstrap: str) -> None:
    source, target = number_topics(kafka_bootstrap)
    group = fresh("group")
    step = Numbers(target)
    loop = lambda stop: transact.run(kafka_bootstrap, group, [source], step, stop, transactional_id=group)  # noqa: E731
    with Running(loop) as running:
        running.until(lambda: lag(kafka_bootstrap, group, source) == 0, what="lag 0")
    assert verdict_of(kafka_bootstrap, source, target).clean
    whole = since(kafka_bootstrap, target)

    def expect(record: Record) -> Expected:
        return Expected(record.key or b"", record.value or b"")

    half = oracle.copied(since(kafka_bootstrap, source), whole[1:], [], expect)
    assert half.counts["torn"] == 1 and "of transaction" in "".join(half.findings)


@pytest.mark.parametrize("damage", ["truncated", "gone", "of another batch"])
def test_a_damaged_shard_is_found_out(kafka_bootstrap: str, tmp_path: Path, damage: str) -> None:
    model, store = fresh("model"), store_at(tmp_path)
    start: Mark = mark(kafka_bootstrap, "training.raw")
    group = group_from(kafka_bootstrap, start)
    body = '{"model": "%s", "prompt": "%s", "completion": "yes"}'
    prompts = ["Where is my parcel?", "The camera broke after two days", "Please change my address to the island"]
    publish(kafka_bootstrap, [Out("training.raw", fresh("r").encode(), (body % (model, p)).encode(), [], 0) for p in prompts])

    def shards() -> list:
        return [shard for shard in judge.shards_of(kafka_bootstrap) if shard.model == model]

    def loop(stop: threading.Event) -> None:
        step = PrepareStep({model: ModelPolicy()}, store, lambda: Committed(shards(), []), SPLIT_KEY)
        transact.run(kafka_bootstrap, group, ["training.raw"], step, stop, transactional_id=group, linger_s=0.3)

    with Running(loop) as running:
        running.until(lambda: lag(kafka_bootstrap, group, "training.raw") == 0, what="lag 0")
    found = shards()
    first = start["training.raw", 0]
    accepted = {0: [first, first + 1, first + 2]}
    assert oracle.prepared(accepted, found, judge.shard_rows(store)).clean
    file = tmp_path / found[0].path
    if damage == "gone":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        found = [msgspec.structs.replace(found[0], first_offset=first + 1), *found[1:]]
    assert oracle.prepared(accepted, found, judge.shard_rows(store)).counts["torn"] > 0


def test_an_artifact_of_a_job_is_whole_or_not(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    said = f"adapters/a {store.put_bytes('adapters/a', b'adapter')}"
    whole = judge.whole_in(store)
    assert oracle.worked(["a"], [("a", said)], whole).clean
    (tmp_path / "adapters" / "a").write_bytes(b"adapt")
    assert oracle.worked(["a"], [("a", said)], whole).counts == {"torn": 1}
