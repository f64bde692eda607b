"""The transact loop on a real broker: what goes in comes out once, whatever ends the loop in between."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import islice

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition

from schemas.topics import dead_letters
from streams import failpoints, kafka, transact, transaction
from streams.dead_letters import dead_letter
from streams.kafka import Out, Record
from streams.transaction import FencedError
from tests.broker import Running, fresh, fresh_topic, group_from, lag, mark, members, publish, since, until

N = 60


class Copy:
    """Copies each record once per key: the keys it has seen are those of committed output."""

    def __init__(
        self, bootstrap: str, target: str, before_return: Callable[[list[Record]], None] | None = None
    ) -> None:
        self._bootstrap, self._target = bootstrap, target
        self._before_return = before_return or (lambda batch: None)
        self._seen: set[bytes | None] = set()
        self.batches: list[int] = []
        self.rebuilt = 0

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self._seen = {record.key for record in since(self._bootstrap, self._target)}
        self.rebuilt += 1

    def handle(self, batch: list[Record]) -> list[Out]:
        self.batches.append(len(batch))
        outs = []
        for record in batch:
            if record.key not in self._seen:
                self._seen.add(record.key)
                outs.append(Out(self._target, record.key or b"", record.value, record.headers))
        self._before_return(batch)
        return outs


class Plain(Copy):
    """Copies every record it is given, without looking at what is there: doubles would show."""

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self.rebuilt += 1

    def handle(self, batch: list[Record]) -> list[Out]:
        self.batches.append(len(batch))
        self._before_return(batch)
        return [Out(self._target, record.key or b"", record.value, record.headers) for record in batch]


@pytest.fixture(autouse=True)
def quick_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed consumer's partitions come back after 2 s instead of 6."""
    monkeypatch.setattr(kafka, "SESSION_TIMEOUT_MS", 2_000)


@pytest.fixture
def pipe(kafka_bootstrap: str) -> tuple[str, str, str]:
    """(bootstrap, source with N records over 4 partitions, empty target)."""
    source = fresh_topic(kafka_bootstrap, "source", partitions=4)
    target = fresh_topic(kafka_bootstrap, "target", **{"max.message.bytes": "20000"})
    numbers = range(N)
    publish(kafka_bootstrap, [Out(source, b"k%d" % i, b"v%d" % i, partition=i % 4) for i in numbers])
    return kafka_bootstrap, source, target


def loop(pipe: tuple[str, str, str], group: str, step: transact.Step, slot: str = "", **more: float | int):
    bootstrap, source, _ = pipe
    return lambda stop: transact.run(
        bootstrap, group, [source], step, stop, transactional_id=slot or group, **more  # type: ignore[arg-type]
    )


def keys_out(pipe: tuple[str, str, str]) -> list[bytes | None]:
    bootstrap, _, target = pipe
    return sorted(record.key or b"" for record in since(bootstrap, target))


def expected(n: int = N) -> list[bytes]:
    return sorted(b"k%d" % i for i in range(n))


def done(pipe: tuple[str, str, str], group: str) -> Callable[[], bool]:
    bootstrap, source, _ = pipe
    return lambda: lag(bootstrap, group, source) == 0


def test_a_crash_between_handle_and_commit_neither_loses_nor_doubles(pipe) -> None:
    group = fresh("group")

    def crash(batch: list[Record]) -> None:
        raise OSError("no space left for the shard")

    with Running(loop(pipe, group, Plain(pipe[0], pipe[2], crash), batch_records=10)) as first:
        assert isinstance(first.ended(), OSError)
    assert keys_out(pipe) == []
    with Running(loop(pipe, group, Plain(pipe[0], pipe[2]), batch_records=10)) as second:
        second.until(done(pipe, group), what="lag 0")
    assert keys_out(pipe) == expected()


def run_until(failpoint: str, bootstrap: str, source: str, target: str, group: str) -> None:
    """In a process of its own: the loop, with a failpoint armed."""
    kafka.SESSION_TIMEOUT_MS = 2_000
    failpoints.arm(failpoint)
    step = Plain(bootstrap, target)
    transact.run(bootstrap, group, [source], step, threading.Event(), transactional_id=group, batch_records=10)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["transact.offsets_sent", "transact.committed"])  # the others: tests.faults
def test_kill_9_at_any_failpoint_neither_loses_nor_doubles(pipe, failpoint) -> None:
    group = fresh("group")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run_until, args=(f"{failpoint}=kill@3", *pipe, group))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with Running(loop(pipe, group, Plain(pipe[0], pipe[2]), batch_records=10)) as second:
        second.until(done(pipe, group), what="lag 0")
    assert keys_out(pipe) == expected()


def test_a_batch_is_bounded_by_its_bytes_too(pipe, monkeypatch) -> None:
    monkeypatch.setattr(kafka, "BATCH_BYTES", 100)
    bootstrap, source, target = pipe
    publish(bootstrap, [Out(source, b"k%d" % i, b"v%d" % i, partition=i % 4) for i in range(N, 1_000)])
    step, group = Plain(bootstrap, target), fresh("group")
    with Running(loop(pipe, group, step, linger_s=1.0)) as running:
        running.until(done(pipe, group), what="lag 0")
    assert max(step.batches) <= kafka.CONSUME_RECORDS
    assert keys_out(pipe) == expected(1_000)


@pytest.mark.parametrize("step_type", [Copy, Plain])
def test_an_abort_is_done_again_and_its_own_output_is_no_duplicate(pipe, step_type) -> None:
    """The broker refuses one oversized record of the second batch, after that batch's others were written."""
    group = fresh("group")
    bootstrap, _, target = pipe

    class RefusedOnce(step_type):  # type: ignore[valid-type, misc]
        refused = False

        def handle(self, batch: list[Record]) -> list[Out]:
            outs: list[Out] = super().handle(batch)
            if len(self.batches) == 2 and not self.refused:
                self.refused = True
                outs.append(Out(target, b"too large", os.urandom(50_000)))
            return outs

    step = RefusedOnce(bootstrap, target)
    with Running(loop(pipe, group, step, batch_records=10)) as running:
        running.until(done(pipe, group), what="lag 0")
    assert step.refused and step.rebuilt >= 2
    assert keys_out(pipe) == expected()
    aborted = sum(step.batches) - N
    assert 0 < aborted <= 10, "only the aborted batch was handled twice"


def test_a_zombie_is_fenced_and_its_records_are_nobodys_duplicates(pipe) -> None:
    group = fresh("group")
    awake, asleep = threading.Event(), threading.Event()

    def sleep(batch: list[Record]) -> None:
        asleep.set()
        assert awake.wait(30)

    with Running(loop(pipe, group, Plain(pipe[0], pipe[2], sleep), slot=group)) as zombie:
        zombie.until(asleep.is_set)
        own = Plain(pipe[0], pipe[2])
        with Running(loop(pipe, group, own, slot=group)) as heir:
            heir.until(lambda: own.rebuilt, what="the place of the first")
            assert members(pipe[0], group) == 1
            awake.set()
            assert isinstance(zombie.ended(), FencedError)
            heir.until(done(pipe, group), what="lag 0")
    assert keys_out(pipe) == expected()


def test_who_comes_back_under_its_name_has_its_partitions_at_once(pipe) -> None:
    """However long the session of the one that was killed would still have lasted."""
    (bootstrap, source, _), group = pipe, fresh("group")
    patient = {"session.timeout.ms": 60_000, "heartbeat.interval.ms": 20_000}
    killed = kafka.consumer(bootstrap, group, "slot", **patient)
    killed.subscribe([source])
    until(lambda: killed.poll(0.1) or killed.assignment(), what="the first's partitions")
    heir = kafka.consumer(bootstrap, group, "slot", **patient)
    heir.subscribe([source])
    until(lambda: heir.poll(0.1) or len(heir.assignment()) == 4, 10, what="the heir's")
    heir.close()
    with pytest.raises(KafkaException, match="fenced"):
        killed.commit(offsets=[TopicPartition(source, 0, 1)], asynchronous=False)
    killed.close()


class Hanging:
    """A producer whose first offsets are never answered, as after the death of a broker."""

    def __init__(self, writer: Producer) -> None:
        self._writer, self.hung = writer, threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._writer, name)

    def send_offsets_to_transaction(self, *_: object) -> None:
        self.hung.set()
        time.sleep(30)


def test_a_request_that_never_returns_is_given_up_and_its_batch_done_again(pipe, monkeypatch) -> None:
    monkeypatch.setattr(transaction, "HUNG_S", 0.3)
    own, made = transaction.fresh_producer, []

    def first_hangs(bootstrap: str, name: str) -> object:
        made.append(own(bootstrap, name) if made else Hanging(own(bootstrap, name)))
        return made[-1]

    monkeypatch.setattr(transaction, "fresh_producer", first_hangs)
    group, step = fresh("group"), Plain(pipe[0], pipe[2])
    with Running(loop(pipe, group, step, batch_records=10)) as running:
        running.until(done(pipe, group), what="lag 0")
    # On a busy machine the second may be given up as well.
    assert made[0].hung.is_set() and len(made) >= 2 and step.rebuilt >= 2
    assert keys_out(pipe) == expected()


@pytest.mark.slow
def test_a_rebalance_while_a_batch_is_gathered_doubles_nothing(pipe) -> None:
    group = fresh("group")
    first = Plain(pipe[0], pipe[2])
    with Running(loop(pipe, group, first, slot=fresh("slot"), linger_s=4.0, batch_records=1000)) as early:
        early.until(lambda: members(pipe[0], group) == 1 and first.rebuilt, what="an assignment")
        second = Plain(pipe[0], pipe[2])
        with Running(loop(pipe, group, second, slot=fresh("slot"))) as late:
            late.until(done(pipe, group), what="lag 0")
            early.until(done(pipe, group), what="lag 0")
    assert second.batches, "the second process took part"
    assert keys_out(pipe) == expected()


def test_the_committed_position_leaves_no_lag_behind_a_control_marker(kafka_bootstrap) -> None:
    source, target = fresh_topic(kafka_bootstrap, "source"), fresh_topic(kafka_bootstrap, "target")
    group = fresh("group")
    writer = kafka.producer(kafka_bootstrap, transactional_id=fresh("writer"))
    writer.init_transactions(30)
    with Running(loop((kafka_bootstrap, source, target), group, Plain(kafka_bootstrap, target))) as running:
        for end in (writer.commit_transaction, writer.abort_transaction):
            writer.begin_transaction()
            kafka.produce(writer, Out(source, b"k", b"v"))
            writer.flush(10)
            end(10)
            running.until(lambda: lag(kafka_bootstrap, group, source) == 0, 10, "lag 0 behind the marker")
    assert [record.value for record in since(kafka_bootstrap, target)] == [b"v"]


def test_dead_letters_keep_their_bytes_and_headers(kafka_bootstrap) -> None:
    source, topic = fresh_topic(kafka_bootstrap, "source"), dead_letters("prepare").name
    before, group = mark(kafka_bootstrap, topic), fresh("group")
    value, headers = b"\xff\xfe not json \x00", [("trace", b"\x80\x01"), ("ce_type", b"Nonsense"), ("trace", b"two")]

    class Refuse:
        def assigned(self, partitions: list[tuple[str, int]]) -> None: ...

        def handle(self, batch: list[Record]) -> list[Out]:
            return [dead_letter("prepare", record, "no such event") for record in batch if record.value is not None]

    publish(kafka_bootstrap, [Out(source, b"first", None), Out(source, b"\x00key", value, headers)])
    with Running(loop((kafka_bootstrap, source, ""), group, Refuse())) as running:
        running.until(lambda: lag(kafka_bootstrap, group, source) == 0, what="lag 0")
    (letter,) = since(kafka_bootstrap, topic, before)
    assert letter.value == value and letter.headers[:3] == headers
    reasons = dict(letter.headers[3:])
    assert reasons["__connect.errors.exception.message"] == b"no such event"
    assert reasons["__connect.errors.topic"] == source.encode() and reasons["__connect.errors.offset"] == b"1"
    assert letter.key == f"{source}/0/1".encode()


def test_a_tombstone_passes(kafka_bootstrap) -> None:
    source, target = fresh_topic(kafka_bootstrap, "source"), fresh_topic(kafka_bootstrap, "target")
    publish(kafka_bootstrap, [Out(source, b"forget me", None)])
    group = group_from(kafka_bootstrap, {(source, 0): 0})
    with Running(loop((kafka_bootstrap, source, target), group, Plain(kafka_bootstrap, target))) as running:
        (passed,) = running.until(lambda: since(kafka_bootstrap, target), what="the tombstone")
    assert passed.key == b"forget me" and passed.value is None
    until(lambda: lag(kafka_bootstrap, group, source) == 0)


def hang(bootstrap: str, source: str, group: str) -> None:
    """In a process of its own: a member whose session is long, stuck in a request."""
    client = kafka.consumer(bootstrap, group, **{"session.timeout.ms": 60_000})
    client.subscribe([source])
    while not client.assignment():
        client.poll(0.1)
    with kafka.at_most(0.5, "a request that never returns", client):
        time.sleep(60)


def test_a_process_that_hangs_ends_itself_and_leaves_its_group(kafka_bootstrap) -> None:
    source, group = fresh_topic(kafka_bootstrap, "source"), fresh("group")
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(kafka_bootstrap, source, group))
    process.start()
    process.join(40)
    assert process.exitcode == kafka.EX_TEMPFAIL
    until(lambda: members(kafka_bootstrap, group) == 0, 5, "no member left behind")


@pytest.mark.parametrize("end", ["commit_transaction", "abort_transaction"])
def test_a_settled_reader_waits_for_what_is_open(kafka_bootstrap, end: str) -> None:
    topic = fresh_topic(kafka_bootstrap, "open", 2)
    publish(kafka_bootstrap, [Out(topic, b"k", b"before", [], 0)])
    writer = kafka.producer(kafka_bootstrap, transactional_id=fresh("writer"))
    writer.init_transactions(30)
    writer.begin_transaction()
    kafka.produce(writer, Out(topic, b"k", b"within", [], 0))
    writer.flush(10)
    assert [record.value for record in kafka.read_to_end(kafka_bootstrap, topic)] == [b"before"]
    ending = threading.Timer(1.0, getattr(writer, end))
    ending.start()
    seen = [record.value for record in kafka.read_to_end(kafka_bootstrap, topic, settled=True)]
    assert not ending.is_alive() and seen == [b"before", b"within"][: 2 if end == "commit_transaction" else 1]


@pytest.mark.parametrize("settled", [False, True])
def test_a_busy_topic_is_read_to_where_it_ended_when_asked(kafka_bootstrap, settled: bool) -> None:
    """There is always another record: each that is read is answered by one more."""
    topic, busy = fresh_topic(kafka_bootstrap, "busy"), kafka.producer(kafka_bootstrap, linger_ms=0)
    for _ in range(3):
        kafka.produce(busy, Out(topic, b"k", b"before", [], 0))
    busy.flush(10)
    seen = []
    for record in islice(kafka.read_to_end(kafka_bootstrap, topic, settled=settled), 50):
        seen.append(record.value)
        kafka.produce(busy, Out(topic, b"k", b"meanwhile", [], 0))
        busy.flush(10)
    assert seen == [b"before"] * 3
    assert len(since(kafka_bootstrap, topic)) == 6


def test_a_topic_that_is_not_there_is_not_an_empty_one(kafka_bootstrap) -> None:
    """State is rebuilt from topics: taking an absent one for empty would number every version from 1 again."""
    with pytest.raises(KafkaException, match="Unknown topic"):
        list(kafka.read_to_end(kafka_bootstrap, fresh("nowhere")))


class Leaving(Plain):
    """Deals with the first half of each batch and leaves the rest; its ticks say their number."""

    ticks = 0

    def handle(self, batch: list[Record]) -> list[Out]:
        if len(batch) > 1:
            del batch[len(batch) // 2 :]
        return super().handle(batch)

    def tick(self) -> list[Out]:
        self.ticks += 1
        return [Out(self._target, b"tick %d" % self.ticks, b"")]


@pytest.mark.parametrize("step_type", [Plain, Leaving])
def test_a_tick_has_its_turn_however_much_comes_in_and_commits_nothing_that_was_left(pipe, step_type) -> None:
    bootstrap, source, _ = pipe
    group, step = fresh("group"), step_type(bootstrap, pipe[2])
    tick = Leaving.tick.__get__(step)  # type: ignore[attr-defined]
    step.ticks = 0
    with Running(loop(pipe, group, step, batch_records=10, tick=tick, tick_s=0.2)) as running:
        began, number = time.monotonic(), N
        while time.monotonic() - began < 3:
            publish(bootstrap, [Out(source, b"k%d" % number, b"v", partition=number % 4)])
            number += 1
        running.until(done(pipe, group), what="lag 0")
        running.until(lambda: step.ticks >= 5, what="five ticks")
    said = keys_out(pipe)
    ticks = [key for key in said if key.startswith(b"tick")]
    assert len(set(ticks)) == len(ticks) >= 5
    assert [key for key in said if not key.startswith(b"tick")] == expected(number)
