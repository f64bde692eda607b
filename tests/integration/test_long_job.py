"""The long-job loop on a real broker with a real child process: slow, killed and failing work."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.codec import Envelope
from schemas.events import JobEnded, JobProgressed, JobRequested, JobSpec
from streams import kafka, long_job, metrics
from streams.kafka import Out
from streams.long_job import Limits, WarmChild
from tests.broker import Mark, Running, group_from, lag, mark, publish, since, until
from tests.examples import example

JOBS, PROGRESS = "training.jobs", "training.progress"
FIRST_IN_LINE = {"client.id": "0"}  # the assignor sorts members by their ids


class Ask:
    """The parent's side: `recipe` of the job is the request; results and progress go to `training.progress`."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.results: list[Any] = []
        self._done: set[str] = set()
        self._current: JobRequested | None = None
        self.instead: list[Out] = []
        self.most = Limits()

    def limits(self) -> Limits:
        return self.most

    def accept(self, envelope: Envelope, event: JobRequested) -> Any | None:
        self.accepted.append(event.job_id)
        if event.job_id in self._done:
            return None
        self._current = event
        if self.instead:
            return self.instead
        wants = {"job_id": event.job_id, **event.recipe}
        return wants | ({"fails": event.spec.method} if event.spec else {})

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        fields = message or {"phase": "heartbeat"}
        return [self._out(JobProgressed(model="m", job_id=self._job_id, **fields))]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        self._done.add(self._job_id)
        self.results.append(result)
        outcome = "failed" if isinstance(result, Exception) else "succeeded"
        return [self._out(JobEnded(model="m", job_id=self._job_id, outcome=outcome, reason=str(result)))]

    @property
    def _job_id(self) -> str:
        assert self._current is not None
        return self._current.job_id

    def _out(self, event: Any) -> Out:
        return kafka.out(event, source="test")


class Bench:
    """A long-job loop over `training.jobs` from its present end on."""

    def __init__(self, bootstrap: str, child: WarmChild) -> None:
        self.bootstrap, self.child, self.job = bootstrap, child, Ask()
        self.client: dict[str, str] = {}  # settings of the loops that are started from now on
        self.start: Mark = mark(bootstrap, JOBS, PROGRESS, "dead.work")
        self.group = group_from(bootstrap, {(JOBS, 0): self.start[JOBS, 0]})

    def request(self, spec: JobSpec | None = None, **recipe: float) -> str:
        job = example(JobRequested, "m", spec=spec, recipe=recipe)
        publish(self.bootstrap, [kafka.out(job, source="test")])
        return str(job.job_id)

    def run(self, stop: threading.Event) -> None:
        long_job.run(self.bootstrap, "work", JOBS, self.job, self.child, stop, transactional_id=self.group)

    def ended(self) -> dict[str, JobEnded]:
        said = self.said()
        ended = [event for event in said if isinstance(event, JobEnded)]
        assert len({event.job_id for event in ended}) == len(ended), "a job ends once"
        return {event.job_id: event for event in ended}

    def said(self) -> list[Any]:
        return [kafka.decode(record)[1] for record in since(self.bootstrap, PROGRESS, self.start)]

    def done(self) -> bool:
        return lag(self.bootstrap, self.group, JOBS) == 0


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmChild]:
    child = WarmChild("tests.slow_child", (str(tmp_path_factory.mktemp("tries")),))
    child.wait_warm(threading.Event())
    yield child
    child.close()


@pytest.fixture
def bench(kafka_bootstrap: str, child: WarmChild, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Short sessions and heartbeats, in a group of its own, with a child that outlives the loop."""
    bench = Bench(kafka_bootstrap, child)
    monkeypatch.setattr(kafka, "SESSION_TIMEOUT_MS", 2_000)
    monkeypatch.setattr(long_job, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(child, "close", lambda: None)
    own = kafka.consumer

    def impatient(where: str, group: str, instance: str = "", **more: Any) -> Any:
        # Dead letters go by the group's own name; its offsets are this bench's.
        return own(where, bench.group if group == "work" else group, instance, **more | bench.client | {"max.poll.interval.ms": 2_500})

    monkeypatch.setattr(kafka, "consumer", impatient)
    return bench


def counted(kind: str, topic: str) -> float:
    return metrics.registry.get_sample_value(f"tuneloop_records_{kind}_total", {"topic": topic}) or 0.0


def test_a_result_and_its_offset_come_together_with_progress_before(bench) -> None:
    jobs, said = counted("consumed", JOBS), counted("produced", PROGRESS)
    with Running(bench.run) as running:
        job_id = bench.request()
        running.until(lambda: bench.ended(), what="the end of the job")
        running.until(bench.done, 5, "lag 0")
    assert bench.ended()[job_id].outcome == "succeeded"
    steps = [event for event in bench.said() if isinstance(event, JobProgressed)]
    assert [(event.phase, event.step) for event in steps] == [("training", 1)]
    places = [type(event) for event in bench.said()]
    assert places == [JobProgressed, JobEnded]
    assert (counted("consumed", JOBS) - jobs, counted("produced", PROGRESS) - said) == (1, 2)


@pytest.mark.slow
def test_a_job_longer_than_every_timeout_keeps_its_partition_and_beats(bench) -> None:
    """5 s of work under a session of 2 s and a poll interval of 2.5 s, then the job behind it."""
    with Running(bench.run) as running:
        slow, quick = bench.request(seconds=5), bench.request()
        running.until(lambda: len(bench.ended()) == 2, what="both ends")
        running.until(bench.done, 5, "lag 0")
    assert bench.job.accepted == [slow, quick], "each was taken once"
    beats = [event for event in bench.said() if isinstance(event, JobProgressed) and event.phase == "heartbeat"]
    assert len(beats) >= 4 and {event.job_id for event in beats} == {slow}


def test_a_killed_child_gets_a_second_attempt(bench) -> None:
    with Running(bench.run) as running:
        job_id = bench.request(killed=1)
        running.until(lambda: bench.ended(), what="the end of the job")
    assert bench.ended()[job_id].outcome == "succeeded"
    assert bench.job.results[0]["attempt"] == 2


def test_a_child_killed_twice_is_a_failed_job_and_the_next_one_runs(bench) -> None:
    with Running(bench.run) as running:
        lost, fine = bench.request(killed=2), bench.request()
        running.until(lambda: len(bench.ended()) == 2, what="both ends")
        running.until(bench.done, 5, "lag 0")
    assert bench.ended()[lost].outcome == "failed" and "exit code -9" in bench.ended()[lost].reason
    assert bench.ended()[fine].outcome == "succeeded"


@pytest.mark.parametrize(
    ("limits", "why"),
    [(Limits(silent_s=1.0), "made no progress for 1 s, and was ended"), (Limits(total_s=1.0), "did not end within 1 s, and was ended")],
)
def test_a_child_that_hangs_is_ended_and_the_next_job_has_another(bench: Bench, limits: Limits, why: str) -> None:
    bench.job.most = limits
    hanging = bench.request(seconds=600.0)
    with Running(bench.run) as running:
        running.until(lambda: hanging in bench.ended(), what="the end of what hangs")
        bench.job.most = Limits()
        next_one = bench.request()
        running.until(lambda: next_one in bench.ended(), what="the next job")
    assert bench.ended()[hanging].outcome == "failed" and why in bench.ended()[hanging].reason
    assert bench.ended()[next_one].outcome == "succeeded"


def test_what_is_not_worth_its_time_is_answered_without_work(bench: Bench) -> None:
    bench.job.instead = [kafka.out(JobEnded(model="m", job_id="superseded", outcome="cancelled"), source="test")]
    bench.request()
    with Running(bench.run) as running:
        running.until(bench.done)
    assert bench.job.results == [] and bench.ended()["superseded"].outcome == "cancelled"


def test_an_error_of_the_work_is_told_and_leaves_the_child_warm(bench) -> None:
    with Running(bench.run) as running:
        before, wrong, fine = bench.request(), bench.request(JobSpec(method="qlora needs a GPU")), bench.request()
        running.until(lambda: len(bench.ended()) == 3, what="all ends")
    assert "ValueError: qlora needs a GPU" in bench.ended()[wrong].reason
    assert bench.ended()[before].outcome == bench.ended()[fine].outcome == "succeeded"
    pids = [result["pid"] for result in bench.job.results if isinstance(result, dict)]
    assert len(pids) == 2 and len(set(pids)) == 1


def test_a_bad_record_is_a_dead_letter_and_a_tombstone_passes(bench) -> None:
    publish(
        bench.bootstrap,
        [Out(JOBS, b"a", b"{]", [("ce_type", b"JobRequested")]), Out(JOBS, b"b", b"{}"), Out(JOBS, b"c", None)],
    )
    with Running(bench.run) as running:
        job_id = bench.request()
        running.until(lambda: bench.ended().get(job_id), what="the job behind them")
        running.until(bench.done, 5, "lag 0")
    letters = since(bench.bootstrap, "dead.work", bench.start)
    assert [letter.value for letter in letters] == [b"{]", b"{}"]


def test_a_job_done_before_is_answered_without_work(bench) -> None:
    job = example(JobRequested, "m")
    with Running(bench.run) as running:
        publish(bench.bootstrap, [kafka.out(job, source="test") for _ in range(2)])
        running.until(bench.done, what="lag 0")
    assert bench.job.accepted == [job.job_id] * 2 and len(bench.job.results) == 1
    assert list(bench.ended()) == [job.job_id]


@pytest.mark.slow
def test_a_partition_that_was_away_during_a_job_is_read_again(bench) -> None:
    """Another process takes the partition in the middle of a job, holds it past its end, and leaves without a word."""
    with Running(bench.run) as running:
        slow = bench.request(seconds=4)
        waiting = [bench.request() for _ in range(3)]
        running.until(lambda: slow in bench.job.accepted, what="the slow job")
        other = kafka.consumer(bench.bootstrap, bench.group, **FIRST_IN_LINE)
        other.subscribe([JOBS])
        running.until(lambda: other.poll(0.05) or other.assignment(), what="the other's turn")
        assert bench.job.results == [], "all this was in the middle of the job"
        running.until(lambda: other.poll(0.05) is None and bench.job.results, what="the end of the slow work")
        assert bench.ended() == {}, "the job is the other's now"
        other.close()
        running.until(lambda: set(bench.ended()) >= {slow, *waiting}, 20, "the end of every job")
        running.until(bench.done, 5, "lag 0")
    assert bench.job.accepted == [slow, *waiting], "each was worked on once"


@pytest.mark.slow
def test_a_job_that_another_process_took_over_ends_once(bench, tmp_path: Path) -> None:
    """It is not finished when the partition goes, so the other process does it as well; one result stands."""
    child, heir = WarmChild("tests.slow_child", (str(tmp_path),)), Ask()
    child.wait_warm(threading.Event())
    slot = f"a-{bench.group}"  # partitions go to members by their names

    def take_over(stop: threading.Event) -> None:
        long_job.run(bench.bootstrap, "work", JOBS, heir, child, stop, transactional_id=slot)

    with Running(bench.run) as first:
        slow = bench.request(seconds=4)
        first.until(lambda: bench.job.accepted, what="the slow job")
        with Running(take_over) as second:
            second.until(lambda: heir.accepted == [slow], what="the heir at the same job")
            assert bench.job.results == [], "all this was in the middle of the job"
            second.until(bench.done, what="lag 0")
            first.until(lambda: bench.job.results, what="the first process's result")
            after = bench.request()
            second.until(lambda: after in bench.ended(), what="the job behind it")
    assert set(bench.ended()) == {slow, after}
    assert bench.job.results and len(heir.results) == 2


def test_stopping_in_the_middle_leaves_the_job_for_the_next_process(bench, tmp_path: Path) -> None:
    with Running(bench.run) as running:
        job_id = bench.request(seconds=1)
        running.until(lambda: bench.job.accepted, what="the job")
    assert bench.ended() == {} and not bench.done()
    heir = WarmChild("tests.slow_child", (str(tmp_path),))
    bench.child = heir
    try:
        with Running(bench.run) as running:
            running.until(lambda: bench.ended(), what="the end of the job")
    finally:
        WarmChild.close(heir)
    assert list(bench.ended()) == [job_id]


def lonely(folder: str, pipe: Connection) -> None:
    child = WarmChild("tests.slow_child", (folder,))
    child.wait_warm(threading.Event())
    child.ask({"job_id": "one", "seconds": 600})
    pipe.send(child._process.pid)
    time.sleep(600)


@pytest.mark.slow
def test_the_child_of_a_parent_that_was_killed_goes_with_it(tmp_path: Path) -> None:
    """Its work would be done twice at a time, by it and by the child of whoever takes its parent's place."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=lonely, args=(str(tmp_path), theirs))
    parent.start()
    child = psutil.Process(ours.recv())
    until(lambda: (tmp_path / "one").exists(), 30, "the job begun")
    parent.kill()
    parent.join()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10, "the child gone")
