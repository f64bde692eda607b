"""Which opinion on an answer holds, what scores it, and whether a model's quality is known: on the real engine."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from schemas import codec
from schemas import events as e
from schemas.policy import ModelPolicy
from streams import kafka
from streams.clickhouse import connect, rows
from streams.join.rules import Lesson, Mark, to_write, training_record
from streams.kafka import Out
from streams.monitor.known import Quality, quality_of
from streams.monitor.land import ClickHouseStore
from streams.monitor.measure import note_policies
from streams.prepare.shard import LONGEST_CLASS
from tests.broker import fresh, landed
from tests.examples import example

POLICY = ModelPolicy()
NOW = codec.now_ms() - 60_000
offsets = itertools.count(random.randrange(10**9, 10**12))


class Told:
    """One model: what was answered and said, as it stands in the topics, landed at once."""

    def __init__(self, url: str) -> None:
        self.client, self.model = connect(url), fresh("support")
        self._store = ClickHouseStore(self.client, None)  # type: ignore[arg-type]
        self._outs: list[Out] = []
        self._time = itertools.count(NOW)
        note_policies(self.client, {self.model: POLICY})

    def answer(self, text: str = "refund", **fields: Any) -> str:
        one = example(e.InferenceServed, self.model, answer=text, **{"requested": self.model, "version": 1, **fields})
        self._outs.append(kafka.out(one, source="serve"))
        return str(one.inference_id)

    def say(self, inference: str, metric: str, value: Any, **fields: Any) -> e.FeedbackGiven:
        said = e.FeedbackGiven(inference_id=inference, metric_name=metric, value=value, **fields)
        self._outs.append(kafka.out(said, source="app", time_ms=next(self._time)))
        return said

    def land(self, backwards: bool = False) -> None:
        """Write all of it, in the order of its offsets or the other way round; in no partition that there is, for a sink
        resumes behind what has landed of one."""
        records = [landed(out, next(offsets), NOW + 60_000, 77) for out in self._outs]
        self._outs.clear()
        for name, table in self._store.read(records[::-1] if backwards else records).tables.items():
            self.client.insert_arrow(f"tuneloop.{name}", table)

    def scores(self) -> dict[str, bool]:
        found = rows(self.client, "SELECT inference_id, correct FROM tuneloop.scored_answers WHERE model = {m:String}", m=self.model)
        assert len({row["inference_id"] for row in found}) == len(found), "one score an answer"
        return {row["inference_id"]: bool(row["correct"]) for row in found}

    def score(self, inference: str) -> bool | None:
        self.land()
        return self.scores().get(inference)

    def quality(self) -> Quality:
        self.land()
        return quality_of(self.client, self.model)


@pytest.fixture
def told(clickhouse_url: str) -> Told:
    return Told(clickhouse_url)


def test_of_every_history_the_join_and_the_views_hold_the_same(told: Told) -> None:
    """Two pieces of feedback with ids, and such as have none; retried, corrected, and back."""
    rng, expected, policy = random.Random(11), {}, POLICY
    for _ in range(120):
        answer = told.answer()
        served = kafka.decode(landed(told._outs[-1]))[1]
        marks: dict[str, list[Mark]] = {}
        holds = None
        for _ in range(rng.randrange(1, 7)):
            said = told.say(answer, "correct", rng.random() < 0.5, feedback_id=rng.choice(["1", "2", ""]))
            record = training_record(served, said, policy.metrics, policy.thresholds)
            assert record is not None
            envelope = kafka.decode(landed(told._outs[-1]))[0]
            written, marks = to_write(marks, [Lesson(record, envelope, said)])
            holds = written[-1].record.label if written else holds
        expected[answer] = holds
    told.land(backwards=True)
    assert told.scores() == expected


def test_said_ms_says_what_is_newer_not_the_order_in_which_it_comes(told: Told) -> None:
    answer, other = told.answer(), told.answer()
    for value, at in ((True, 3), (True, 1), (False, 2)):
        told.say(answer, "correct", value, feedback_id="1", said_ms=NOW + at)
    told.say(other, "correct", True, feedback_id="1", said_ms=NOW + 2)
    told.say(other, "correct", False, feedback_id="1", said_ms=NOW + 1)
    told.say(other, "correct", False, feedback_id="2", said_ms=NOW - 40 * 86_400_000)
    told.land()
    assert told.scores() == {answer: True, other: True}


DEMONSTRATIONS: dict[str, tuple[str, Any, bool | None]] = {
    "the same": ("refund", "refund", True),
    "the same, with blanks around": ("refund", " refund\n", True),
    "the same, with a blank of another kind": ("refund", "refund\u00a0", True),
    "another": ("refund", "parcel", False),
    "another case": ("refund", "Refund", False),
    "as long as a class": ("refund", "x" * LONGEST_CLASS, False),
    "in letters that take two bytes": ("refund", "é" * LONGEST_CLASS, False),
    "longer": ("refund", "x" * (LONGEST_CLASS + 1), None),
    "quotes and a line break": ('a "b"\nc', 'a "b"\nc', True),
    "blanks": ("refund", "  ", None),
    "of another type": ("refund", True, None),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_short_demonstration_is_a_score(told: Told, name: str) -> None:
    text, value, right = DEMONSTRATIONS[name]
    answer = told.answer(text)
    told.say(answer, "demonstration", value)
    assert told.score(answer) is right


def test_the_quality_metric_comes_first_and_an_answer_has_one_score(told: Told) -> None:
    first, second, third = (told.answer() for _ in range(3))
    told.say(first, "demonstration", "parcel")
    told.say(first, "correct", True)
    told.say(second, "correct", False)
    told.say(second, "demonstration", "refund")
    told.say(third, "demonstration", "refund")
    told.say(third, "demonstration", "parcel")
    told.say(third, "rating", 5)
    told.land()
    assert told.scores() == {first: True, second: False, third: False}


@pytest.mark.parametrize("value", ["true", 1, 0, 1.0, "false"])
def test_what_does_not_fit_the_metric_neither_scores_nor_displaces_what_does(told: Told, value: Any) -> None:
    bare, scored = told.answer(), told.answer()
    told.say(bare, "correct", value, feedback_id="1")
    told.say(scored, "correct", True, feedback_id="1")
    told.say(scored, "correct", value, feedback_id="1")
    told.land()
    assert told.scores() == {scored: True}


def test_an_answer_that_was_cut_off_is_never_a_right_one(told: Told) -> None:
    praised, blamed, shown = (told.answer(finish_reason="cancelled") for _ in range(3))
    told.say(praised, "correct", True)
    told.say(blamed, "correct", False)
    told.say(shown, "demonstration", "refund")
    told.land()
    assert told.scores() == {blamed: False, shown: False}


def view(told: Told) -> dict[str, Any]:
    (row,) = rows(told.client, "SELECT * FROM tuneloop.quality_known WHERE model = {m:String}", m=told.model)
    return row


def test_quality_is_unknown_of_failures_alone_of_texts_and_of_nothing(told: Told) -> None:
    assert told.quality() == quality_of(told.client, fresh("nobody")) and "nothing was said" in told.quality().why
    for _ in range(30):
        told.say(told.answer(), "demonstration", "a long answer " * 10)
    assert "of 30 answers with feedback none says whether it was right" in told.quality().why
    for n in range(60):
        told.say(told.answer(), "correct", n == 0)
    unknown = told.quality()
    assert not unknown.known and unknown.live is None and unknown.opinions == 60
    assert "1 of the last 60 opinions" in unknown.why and "right answers too" in unknown.why
    assert not view(told)["known"] and view(told)["why"] == "hardly an opinion says that an answer was right"
    for _ in range(2):
        told.say(told.answer(), "demonstration", "refund")
    told.land()
    assert not told.quality().known, "3 of 62"
    told.say(told.answer(requested=f"{told.model}@1"), "correct", True)
    assert told.quality().opinions == 62, "who names a version tries it"
    told.say(told.answer(), "correct", True)
    known = told.quality()
    assert known.known and known.why == "" and known.share_right == pytest.approx(4 / 63)
    assert view(told)["known"] and view(told)["why"] == ""


def test_the_last_500_opinions_count_and_live_is_of_the_version_that_serves_by_people(told: Told) -> None:
    for _ in range(600):
        told.say(told.answer(), "correct", False)
    assert not told.quality().known
    for n in range(40):
        told.say(told.answer(version=2, subject_id="keen"), "correct", False)
        told.say(told.answer(version=2), "correct", n % 4 != 0)
    state = example(e.ModelStateChanged, told.model, champion=2, epoch=1)
    told._outs.append(kafka.out(state, source="register"))
    known = told.quality()
    assert known.known and known.opinions == 500 and known.share_right == pytest.approx(30 / 500)
    assert known.live == pytest.approx(30 / 41), "one of 41 people is never content"
