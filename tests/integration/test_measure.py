"""The monitor's measurements, from Kafka through the sink and ClickHouse to the alarm, on real parts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from schemas import events as e
from schemas.identity import subject_key
from schemas.policy import ModelPolicy
from streams import kafka, sink
from streams.clickhouse import connect
from streams.kafka import Out
from streams.monitor import measure
from streams.monitor.known import judged, quality_of
from streams.monitor.land import ClickHouseStore
from streams.monitor.measure import Measurer, note_policies
from tests.broker import Mark, Running, fresh, group_from, lag, mark, publish, since
from tests.examples import example
from tests.ids import SPLIT_KEY

POLICY = ModelPolicy()
DRIFT, PERFORMANCE = "monitor.drift", "monitor.performance"
TOPICS = ["usage.inferences", "usage.feedback", "models.registry", "training.shards", DRIFT]


class Bench:
    """One model whose version 1 serves; answers are produced, landed, and looked at."""

    def __init__(self, bootstrap: str, url: str) -> None:
        self.bootstrap, self.url, self.model = bootstrap, url, fresh("support")
        self.start: Mark = mark(bootstrap, *TOPICS, PERFORMANCE)
        landed = {place: end for place, end in self.start.items() if place[0] in TOPICS}
        self._group = group_from(bootstrap, landed)
        self._random = random.Random(7)
        note_policies(connect(url), {self.model: POLICY})
        self.champion(1)

    def champion(self, version: int) -> None:
        state = example(e.ModelStateChanged, self.model, champion=version, epoch=version)
        publish(self.bootstrap, [kafka.out(state, source="test")])

    def answers(self, n: int, quality: float, version: int = 1, **fields: Any) -> None:
        """`n` answers of which a share of `quality` is right, scored in the order in which they were given; to another
        person each, where `fields` name nobody."""
        outs: list[Out] = []
        for _ in range(n):
            talk = {"conversation_id": fresh("talk")}
            served = example(e.InferenceServed, self.model, version=version, **talk | fields)
            right = self._random.random() < quality
            scored = e.FeedbackGiven(inference_id=served.inference_id, metric_name="correct", value=right)
            outs += [kafka.out(served, source="test"), kafka.out(scored, source="test", partition=1)]
        publish(self.bootstrap, outs)

    def shown(self, n: int, quality: float) -> None:
        """`n` answers of which nothing is said but what the right one is."""
        outs: list[Out] = []
        for _ in range(n):
            served = example(e.InferenceServed, self.model, version=1, answer="refund")
            right = "refund" if self._random.random() < quality else "parcel"
            shown = e.FeedbackGiven(inference_id=served.inference_id, metric_name="demonstration", value=right)
            outs += [kafka.out(served, source="test"), kafka.out(shown, source="test", partition=1)]
        publish(self.bootstrap, outs)

    def land(self) -> None:
        store = ClickHouseStore(connect(self.url), kafka.producer(self.bootstrap))
        with Running(lambda stop: sink.run(self.bootstrap, self._group, TOPICS, store, stop)) as running:
            running.until(lambda: lag(self.bootstrap, self._group, *TOPICS) == 0, what="lag 0")

    def shared(self, subject: str) -> None:
        name = subject_key(SPLIT_KEY, self.model, subject)
        publish(self.bootstrap, [kafka.out(e.SubjectShared(model=self.model, subject_key=name, rows=200), source="test")])

    def measurer(self) -> Measurer:
        producer = kafka.producer(self.bootstrap, linger_ms=0)
        return Measurer(connect(self.url), {self.model: POLICY}, producer, key=SPLIT_KEY)

    def said(self, topic: str) -> list[tuple[Any, Any]]:
        decoded = [kafka.decode(record) for record in since(self.bootstrap, topic, self.start)]
        return [(envelope, event) for envelope, event in decoded if event.model == self.model]


@pytest.fixture
def bench(kafka_bootstrap: str, clickhouse_url: str) -> Bench:
    return Bench(kafka_bootstrap, clickhouse_url)


def test_performance_is_measured_and_said_once(bench) -> None:
    bench.answers(150, 0.9)
    bench.land()
    measurer = bench.measurer()
    (said,) = measurer.measure(bench.model, POLICY)
    assert measurer.measure(bench.model, POLICY) == [], "nothing new, nothing said"
    assert (said.version, said.requests, said.quality_n, said.feedback_share) == (1, 150, 150, 1.0)
    assert said.quality_people == said.recent_people == 150
    assert said.quality is not None and said.quality_low < said.quality < said.quality_high
    assert said.recent_n == 150 and said.recent_quality == said.quality
    assert said.latency_ms_p50 == said.latency_ms_p99 == 12.5 and said.rating is None
    ((envelope, event),) = bench.said(PERFORMANCE)
    assert event == said and envelope.subject == f"{bench.model}@1"


def test_recent_quality_is_of_the_last_answers(bench) -> None:
    bench.answers(200, 1.0)
    bench.answers(200, 1.0, subject_id="somebody")
    bench.land()
    bench.answers(199, 0.0)
    bench.answers(30, 0.0, subject_id="somebody")
    bench.land()
    (said,) = bench.measurer().measure(bench.model, POLICY)
    assert said.quality == pytest.approx((200 + 200 / 230) / 400)
    assert said.recent_quality == pytest.approx(0.0, abs=0.05)
    assert (said.quality_n, said.quality_people, said.recent_people, said.recent_n) == (629, 400, 200, 199 + 20)


@pytest.mark.slow
def test_one_person_a_probe_and_tries_raise_no_alarm(bench) -> None:
    bench.answers(250, 0.93)
    for _ in range(4):
        bench.answers(80, 0.95)
        bench.answers(20, 0.0, subject_id="probe")
        bench.answers(20, 0.0, requested="support@1")
    bench.answers(100, 0.0, subject_id="annoyed")
    bench.land()
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None
    bench.answers(60, 0.3)
    bench.land()
    drift = bench.measurer().look_for_drift(bench.model, POLICY)
    assert drift is not None and drift.people > 10


@pytest.mark.slow
def test_a_fall_raises_one_alarm_that_a_replay_repeats_to_the_letter(bench) -> None:
    bench.answers(250, 0.93)
    bench.land()
    measurer = bench.measurer()
    assert measurer.look_for_drift(bench.model, POLICY) is None, "all is well so far"
    bench.answers(150, 0.45)
    bench.land()
    drift = measurer.look_for_drift(bench.model, POLICY)
    assert drift is not None and drift.version == 1 and 250 < drift.answers <= 400
    assert drift.current < drift.threshold < drift.baseline
    times = sorted(envelope.time_ms for envelope, _ in bench.said("usage.inferences"))
    assert times[230] <= drift.changed_at <= times[drift.answers - 1], "about where the fall began"
    assert drift.first_partition == 1 and drift.first_offset == bench.start["usage.feedback", 1]
    # A process that starts from scratch before the alarm has landed says the same thing under the same id.
    assert bench.measurer().look_for_drift(bench.model, POLICY) == drift
    first, second = bench.said(DRIFT)
    assert first[0].id == second[0].id == drift.drift_id and first[1] == second[1]
    assert {record.key for record in since(bench.bootstrap, DRIFT, bench.start)} >= {drift.drift_id.encode()}
    bench.answers(50, 0.3)
    bench.land()
    assert measurer.look_for_drift(bench.model, POLICY) is None, "after its alarm the detector rests"
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None, "also in a process started anew"
    assert len(bench.said(DRIFT)) == 2


def test_feedback_on_a_retired_version_is_recorded_and_never_alarms(bench) -> None:
    bench.answers(250, 0.93)
    bench.champion(2)
    bench.land()
    bench.answers(200, 0.1, version=1)
    bench.answers(30, 0.95, version=2)
    bench.land()
    measurer = bench.measurer()
    assert measurer.champion(bench.model) == 2
    assert measurer.look_for_drift(bench.model, POLICY) is None
    measured = {event.version: event for event in measurer.measure(bench.model, POLICY)}
    assert measured[1].quality_n == 450 and measured[2].quality_n == 30


def test_the_base_has_no_baseline_to_fall_from(kafka_bootstrap, clickhouse_url) -> None:
    bench = Bench(kafka_bootstrap, clickhouse_url)
    bench.champion(0)
    publish(
        bench.bootstrap,
        [kafka.out(example(e.ModelStateChanged, bench.model, champion=0, epoch=5), source="test")],
    )
    bench.answers(200, 0.9, version=0)
    bench.answers(200, 0.1, version=0)
    bench.land()
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None


@pytest.mark.slow
def test_a_fall_that_demonstrations_alone_tell_of_is_found(bench) -> None:
    bench.shown(250, 0.93)
    bench.land()
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None
    bench.shown(150, 0.45)
    bench.land()
    measured = bench.measurer().measure(bench.model, POLICY)
    assert measured[0].quality_n == 400 and measured[0].quality == pytest.approx(0.75, abs=0.06)
    drift = bench.measurer().look_for_drift(bench.model, POLICY)
    assert drift is not None and drift.current < drift.threshold and drift.changed_at > 0


def test_failures_alone_raise_no_alarm_and_it_is_said_why(bench) -> None:
    """A thumbs-down button alone: each of 400 opinions says that an answer was wrong."""
    bench.answers(400, 0.0)
    bench.land()
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None
    quality = quality_of(connect(bench.url), bench.model)
    assert not quality.known and "0 of the last 400 opinions" in quality.why


@pytest.mark.slow
def test_no_alarm_rests_on_a_quality_that_is_unknown_any_more(bench, monkeypatch) -> None:
    bench.answers(250, 0.93)
    bench.answers(150, 0.45)
    bench.land()
    monkeypatch.setattr(measure, "quality_of", lambda client, model: judged(500, 24, 500))
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None and bench.said(DRIFT) == []
    monkeypatch.setattr(measure, "quality_of", lambda client, model: judged(500, 25, 500))
    assert bench.measurer().look_for_drift(bench.model, POLICY) is not None


def test_of_a_subject_that_many_people_share_conversations_are_counted(bench) -> None:
    """`user="api"`: all answers are one subject's, and a fall is found all the same."""
    bench.shared("api")
    bench.answers(250, 0.93, subject_id="api")
    bench.land()
    assert bench.measurer().look_for_drift(bench.model, POLICY) is None
    bench.answers(150, 0.4, subject_id="api")
    bench.land()
    alone = Measurer(connect(bench.url), {bench.model: POLICY}, kafka.producer(bench.bootstrap))
    assert alone.look_for_drift(bench.model, POLICY) is None, "one person raises none"
    (said,) = bench.measurer().measure(bench.model, POLICY)
    assert said.quality_people == 400
    drift = bench.measurer().look_for_drift(bench.model, POLICY)
    assert drift is not None and drift.people > 10
