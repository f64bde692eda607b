"""Metrics over HTTP while the loops run on a real broker: counts, lag that falls to 0, and a port that is taken."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from deploy.local.ports import free_ports
from schemas import events as e
from streams import kafka, lag, metrics, sink, transact
from streams.clickhouse import connect
from streams.dead_letters import dead_letter
from streams.kafka import Out, Record
from streams.monitor.land import ClickHouseStore
from tests.broker import Running, fresh, fresh_topic, group_from, mark, publish, since, until
from tests.broker import lag as committed_lag
from tests.examples import example
from tests.scraping import Scrape

N = 60


@pytest.fixture(scope="module")
def said() -> Scrape:
    """The metrics of this very process, in whose threads the loops of these tests run."""
    (port,) = free_ports(1)
    assert metrics.listen("prepare", "127.0.0.1", port)
    return Scrape(port)


@pytest.fixture(autouse=True)
def at_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lag is noted at every round, not once a second."""
    monkeypatch.setattr(lag, "NOTE_EVERY_S", 0.0)


class Refusing:
    """Copies what is good, refuses what is not; waits before its first batch until it may go on."""

    def __init__(self, target: str) -> None:
        self._target, self.may = target, threading.Event()
        self.batches: list[int] = []

    def assigned(self, partitions: list[tuple[str, int]]) -> None: ...

    def handle(self, batch: list[Record]) -> list[Out]:
        self.batches.append(len(batch))
        assert self.may.wait(30)
        good = [Out(self._target, record.key or b"", record.value) for record in batch if record.value != b"bad"]
        return good + [dead_letter("prepare", record, "bad") for record in batch if record.value == b"bad"]


def test_a_transact_loop_counts_what_it_committed_and_its_lag_falls_to_0(kafka_bootstrap, said) -> None:
    source, target = fresh_topic(kafka_bootstrap, "source"), fresh_topic(kafka_bootstrap, "target")
    values = [b"bad" if i in (7, 8) else b"good" for i in range(N)]
    publish(kafka_bootstrap, [Out(source, b"k%d" % i, value) for i, value in enumerate(values)])
    commits, batches = said("tuneloop_commits_total"), said("tuneloop_batch_seconds_count")
    assert commits is not None and batches is not None
    group, step = fresh("group"), Refusing(target)

    def loop(stop: threading.Event) -> None:
        transact.run(kafka_bootstrap, group, [source], step, stop, transactional_id=group, batch_records=20)

    with Running(loop) as running:
        behind = lambda: said("tuneloop_lag_records", topic=source)  # noqa: E731
        running.until(lambda: step.batches, 15, "the first batch")
        assert behind() == N - step.batches[0] > 0, "all but the batch in hand"
        assert said("tuneloop_records_consumed_total", topic=source) is None, "nothing is committed"
        step.may.set()
        running.until(lambda: behind() == 0, 15, "a lag of 0")
        running.until(lambda: said("tuneloop_records_consumed_total", topic=source) == N, 15, "all records")
        assert committed_lag(kafka_bootstrap, group, source) == 0
        assert (said("tuneloop_heartbeat_age_seconds") or 0) < 2
    assert said("tuneloop_records_produced_total", topic=target) == N - 2
    assert said("tuneloop_dead_letters_total", group="prepare", topic=source) == 2
    assert said("tuneloop_commits_total") == commits + len(step.batches)
    assert said("tuneloop_batch_seconds_count") == batches + len(step.batches)
    assert said("tuneloop_lag_records", topic=source) is None, "the client is closed"


def test_an_aborted_transaction_counts_as_one_and_its_records_do_not(kafka_bootstrap, said) -> None:
    source = fresh_topic(kafka_bootstrap, "source")
    target = fresh_topic(kafka_bootstrap, "target", **{"max.message.bytes": "20000"})
    publish(kafka_bootstrap, [Out(source, b"k", b"v")] * 5)
    aborted, group = said("tuneloop_transactions_aborted_total"), fresh("group")
    assert aborted is not None

    class TooLargeOnce(Refusing):
        tries = 0

        def handle(self, batch: list[Record]) -> list[Out]:
            self.tries += 1
            value = os.urandom(50_000) if self.tries == 1 else b"v"
            return [Out(target, b"k", value)]

    def loop(stop: threading.Event) -> None:
        transact.run(kafka_bootstrap, group, [source], TooLargeOnce(target), stop, transactional_id=group)

    with Running(loop) as running:
        running.until(lambda: said("tuneloop_records_consumed_total", topic=source) == 5, 20, "the second try")
    assert said("tuneloop_transactions_aborted_total") == aborted + 1
    assert said("tuneloop_records_produced_total", topic=target) == len(since(kafka_bootstrap, target)) == 1


def test_a_sink_loop_counts_rows_and_dead_letters(kafka_bootstrap, clickhouse_url, said) -> None:
    topic, model = "usage.inferences", fresh("model")
    start = mark(kafka_bootstrap, topic)
    group = group_from(kafka_bootstrap, start)
    taken = said("tuneloop_records_consumed_total", topic=topic) or 0
    dead = said("tuneloop_dead_letters_total", group="monitor", topic=topic) or 0
    answers = [kafka.out(example(e.InferenceServed, model), source="test") for _ in range(20)]
    publish(kafka_bootstrap, [*answers, Out(topic, b"k1", b"{not json", answers[0].headers)])

    class FromTheMark(ClickHouseStore):
        def resume_at(self, topic: str, partition: int) -> int | None:
            return start[topic, partition]

    store = FromTheMark(connect(clickhouse_url), kafka.producer(kafka_bootstrap, linger_ms=0))
    with Running(lambda stop: sink.run(kafka_bootstrap, group, [topic], store, stop, linger_s=0.1)) as running:
        running.until(lambda: said("tuneloop_records_consumed_total", topic=topic) == taken + 21, 20, "21 records")
        running.until(lambda: said("tuneloop_lag_records", topic=topic) == 0, 10, "a lag of 0")
    assert said("tuneloop_dead_letters_total", group="monitor", topic=topic) == dead + 1


def test_a_consumer_that_finds_nothing_new_has_no_lag(kafka_bootstrap, said) -> None:
    """It has no position before its first record, and stands where its group has committed."""
    source = fresh_topic(kafka_bootstrap, "source")
    publish(kafka_bootstrap, [Out(source, b"k", b"v")] * 3)
    group = group_from(kafka_bootstrap, {(source, 0): 3})

    def loop(stop: threading.Event) -> None:
        transact.run(kafka_bootstrap, group, [source], Refusing(source), stop, transactional_id=group)

    with Running(loop) as running:
        running.until(lambda: said("tuneloop_lag_records", topic=source) is not None, 15, "a lag")
        assert said("tuneloop_lag_records", topic=source) == 0


def copy_with_metrics(bootstrap: str, source: str, target: str, port: int, log: str) -> None:
    """In a process of its own: a transact loop that wants its metrics on `port`."""
    logging.basicConfig(filename=log, level=logging.INFO)
    metrics.listen("prepare", "127.0.0.1", port)
    step = Refusing(target)
    step.may.set()
    transact.run(bootstrap, fresh("group"), [source], step, threading.Event(), transactional_id=fresh("slot"))


def test_a_second_process_on_the_same_port_says_so_and_works(kafka_bootstrap, said, tmp_path: Path) -> None:
    source, target = fresh_topic(kafka_bootstrap, "source"), fresh_topic(kafka_bootstrap, "target")
    publish(kafka_bootstrap, [Out(source, b"k", b"v")])
    port, log = int(said.url.rsplit(":", 1)[1].split("/")[0]), tmp_path / "log"
    arguments = (kafka_bootstrap, source, target, port, str(log))
    process = multiprocessing.get_context("spawn").Process(target=copy_with_metrics, args=arguments)
    process.start()
    try:
        until(lambda: since(kafka_bootstrap, target), 30, "its first record")
        lines = [line for line in log.read_text().splitlines() if str(port) in line]
        assert len(lines) == 1 and "cannot listen on 127.0.0.1" in lines[0]
        assert process.is_alive() and said("tuneloop_commits_total") is not None
    finally:
        process.kill()
        process.join()
