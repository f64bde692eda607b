"""The conductor on a real broker and a real ClickHouse: a trigger and a job each once, whatever happens in between."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import waiting
from schemas import events as e
from schemas.codec import now_ms
from schemas.policy import ModelPolicy
from schemas.topics import TOPIC_OF
from streams import kafka, transact, transaction
from streams.artifacts import get_shard_set, put_shard_set
from streams.clickhouse import connect
from streams.conduct.conditions import TrainerBudget
from streams.conduct.situation import Knowledge
from streams.conduct.step import OWN_TOPICS, TOPICS, ConductStep
from streams.monitor.land import ClickHouseStore
from streams.watchdog import LostMembershipError
from tests.broker import Mark, Running, fresh, group_from, landed, mark, open_transaction, publish, since, until
from tests.examples import example
from tests.stores import store_at


class Bench:
    """A model with a base, what the monitor has landed of it, and conductors over their topics' present ends."""

    def __init__(self, bootstrap: str, url: str, folder: Path, **policy: Any) -> None:
        self.bootstrap, self.url, self.model = bootstrap, url, fresh("support")
        self.base = fresh("base")
        self.policy = ModelPolicy(base=self.base, **{"triggers": ["drift"], **policy})
        self.store = store_at(folder)
        self.start: Mark = mark(bootstrap, *TOPICS, *OWN_TOPICS, "training.progress")
        self.group = group_from(bootstrap, {place: end for place, end in self.start.items() if place[0] in TOPICS})
        self.landing = ClickHouseStore(connect(url), kafka.producer(bootstrap))
        # Shards are read on from the last offset, of whichever model.
        self.partition, self.offset = 10**6 + uuid.uuid4().int % 10**8, now_ms()
        base = example(e.BaseRegistered, self.base)
        self.base_digest = base.digest
        self.land(base)

    def land(self, event: Any, **attributes: Any) -> None:
        """As the monitor lands it."""
        self.offset += 1
        out = kafka.out(event, source="test", **attributes)
        self.landing.write([self.landing.read([landed(out, self.offset, now_ms(), self.partition)])])

    def shard(self, examples: int) -> None:
        said = example(
            e.ShardWritten, self.model, rows=examples * 2, rows_by_split={"train": examples, "test": examples},
            units_by_split={"train": examples, "test": examples},
        )  # fmt: skip
        self.land(said)

    def serve(self, version: int, job: str = "", change: str = "promoted") -> None:
        entry = example(
            e.Version, self.model, version=version, base=self.base, base_digest=self.base_digest, job_id=job or fresh("job"),
            new_data=put_shard_set(self.store, self.model, []),
        )  # fmt: skip
        state = {"base": self.base, "epoch": version, "champion": version, "versions": [entry], "change": change}
        self.land(example(e.ModelStateChanged, self.model, **state))

    def step(self) -> ConductStep:
        return ConductStep(
            self.bootstrap, {self.model: self.policy}, Knowledge(connect(self.url), self.store), self.store,
            TrainerBudget(trainers=10**6),
        )  # fmt: skip

    def loop(self, step: ConductStep) -> Callable[[Any], None]:
        return lambda stop: transact.run(
            self.bootstrap, self.group, TOPICS, step, stop, transactional_id=self.group, tick=step.tick, tick_s=0.1
        )

    def said(self, kind: type[Any]) -> list[Any]:
        records = since(self.bootstrap, TOPIC_OF[kind].name, self.start)
        found = [kafka.decode(record)[1] for record in records]
        return [event for event in found if isinstance(event, kind) and event.model == self.model]

    def drift(self, version: int = 1) -> str:
        said = example(e.DriftDetected, self.model, version=version, changed_at=now_ms() - 60_000)
        publish(self.bootstrap, [kafka.out(said, source="test", event_id=said.drift_id)])
        return str(said.drift_id)

    def until(self, kind: type[Any], count: int) -> list[Any]:
        return list(until(lambda: found if len(found := self.said(kind)) >= count else None, 30, f"{count} {kind.__name__}"))


@pytest.fixture
def bench(kafka_bootstrap: str, clickhouse_url: str, tmp_path: Path) -> Bench:
    return Bench(kafka_bootstrap, clickhouse_url, tmp_path)


def test_a_drift_goes_from_its_event_to_its_job_to_its_close(bench: Bench) -> None:
    bench.serve(1)
    bench.shard(150)
    with Running(bench.loop(bench.step())):
        drift = bench.drift()
        (trigger,) = bench.until(e.TriggerOpened, 1)
        assert (trigger.kind, trigger.drift_id, trigger.version, trigger.ordinal) == ("drift", drift, 1, 1)
        (deferred,) = bench.until(e.JobDeferred, 1)
        assert deferred.waits_for == {"new examples": "150 of 200 committed in shards"}
        bench.shard(50)
        (job,) = bench.until(e.JobRequested, 1)
        assert (job.reason, job.answers, job.parent_version, job.new_examples) == ("drift", [trigger.trigger_id], 1, 200)
        assert sorted(ref.rows for ref in get_shard_set(bench.store, job.new_data)) == [100, 300]
        bench.land(e.JobEnded(model=bench.model, job_id=job.job_id, outcome="succeeded"))
        bench.land(e.DecisionMade(model=bench.model, decision="promoted", reason="better", job_id=job.job_id))
        bench.serve(2, job.job_id)
        (closed,) = bench.until(e.TriggerClosed, 1)
    assert (closed.because, closed.job_id, closed.trigger_id) == ("answered", job.job_id, trigger.trigger_id)
    assert len(bench.said(e.JobRequested)) == 1


def test_status_tells_what_each_model_waits_for(bench: Bench) -> None:
    told = lambda: waiting.told(connect(bench.url), {bench.model: bench.policy}, bench.store)  # noqa: E731
    assert told() == [f"{bench.model}: nothing asks for a job; data: nothing was submitted yet that could be learned"]
    bench.serve(1)
    bench.shard(150)
    assert told() == [f"{bench.model}: nothing asks for a job; drift: none was found"]
    opened = e.TriggerOpened(model=bench.model, trigger_id=fresh("trigger"), ordinal=1, kind="drift", reason="it fell")
    bench.land(opened)
    bench.land(e.JobDeferred(
        model=bench.model, trigger_id=opened.trigger_id, waits_for={"new examples": "150 of 200 committed in shards"},
        new_examples=150, min_new_examples=200,
    ))  # fmt: skip
    assert told() == [f"{bench.model}: drift waits for new examples: 150 of 200 committed in shards"]
    job = example(e.JobRequested, bench.model, answers=[opened.trigger_id])
    bench.land(job)
    assert told() == [f"{bench.model}: drift asked for {job.job_id}, training or queued"]
    bench.land(e.JobEnded(model=bench.model, job_id=job.job_id, outcome="succeeded"))
    assert told() == [f"{bench.model}: drift asked for {job.job_id}, being judged"]
    bench.land(e.DecisionMade(model=bench.model, decision="refused", reason="worse", job_id=job.job_id))
    assert told() == [f"{bench.model}: drift waits for new examples: 150 of 200 committed in shards"]
    bench.land(e.TriggerClosed(model=bench.model, trigger_id=opened.trigger_id, ordinal=1, because="person"))
    assert told() == [f"{bench.model}: nothing asks for a job; drift: none was found"]


def test_a_refused_job_is_followed_by_another_and_a_conductor_that_starts_anew_repeats_nothing(bench: Bench) -> None:
    bench.serve(1)
    bench.shard(200)
    bench.drift()
    with Running(bench.loop(bench.step())):
        (job,) = bench.until(e.JobRequested, 1)
    with Running(bench.loop(bench.step())):
        bench.shard(100)  # nothing is known of the job's end: it is under way
        bench.land(e.DecisionMade(model=bench.model, decision="refused", reason="worse", job_id=job.job_id))
        first, second = bench.until(e.JobRequested, 2)
    assert first.job_id != second.job_id and second.new_examples == 300
    assert len(bench.said(e.TriggerOpened)) == 1


def test_of_two_conductors_one_is_fenced_and_the_job_is_asked_for_once(bench: Bench) -> None:
    bench.serve(1)
    bench.shard(200)
    with Running(bench.loop(bench.step())) as first:
        bench.drift()
        bench.until(e.TriggerOpened, 1)
        with Running(bench.loop(bench.step())):
            bench.until(e.JobRequested, 1)
            bench.drift()
            bench.until(e.TriggerOpened, 2)
            error = first.error
            first.error = None
    assert error is None or isinstance(error, transaction.FencedError | LostMembershipError)
    assert len(bench.said(e.JobRequested)) == 1


def test_what_stands_in_an_aborted_or_open_transaction_asks_for_nothing(bench: Bench) -> None:
    bench.serve(1)
    bench.shard(200)
    asked = kafka.out(e.TrainingRequested(model=bench.model), source="test")
    with open_transaction(bench.bootstrap, [asked]), Running(bench.loop(bench.step())):
        bench.drift()
        assert bench.said(e.TriggerOpened) == []
    with Running(bench.loop(bench.step())):
        assert {one.kind for one in bench.until(e.TriggerOpened, 2)} == {"person", "drift"}


def test_the_first_job_of_a_model_without_a_version(bench: Bench) -> None:
    bench.shard(199)
    with Running(bench.loop(bench.step())):
        (trigger,) = bench.until(e.TriggerOpened, 1)
        assert (trigger.kind, trigger.version) == ("initial", 0)
        bench.shard(1)
        (job,) = bench.until(e.JobRequested, 1)
    assert (job.reason, job.parent_version, job.new_data.shards) == ("initial", 0, 2)
