"""Which training record feedback on one answer makes, which of several counts, and what travels and is kept."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.codec import Envelope
from schemas.events import FeedbackGiven, InferenceServed, RecordSubmitted
from schemas.identity import partition_of
from schemas.topics import BY_NAME
from streams.join import rows
from streams.join.rules import Lesson, Mark, label_of, to_write, training_record
from streams.join_feedback import as_out
from streams.kafka import Record
from tests.examples import example

METRICS = {"correct": "boolean", "polite": "boolean", "rating": "float", "speed": "float"}
THRESHOLDS = {"rating": 4.0}
ANSWER: InferenceServed = example(InferenceServed, "support", answer="soon", subject_id="anna", conversation_id="talk")


def said(metric: str, value: Any) -> FeedbackGiven:
    return FeedbackGiven(inference_id=ANSWER.inference_id, metric_name=metric, value=value)


def record(metric: str, value: Any) -> RecordSubmitted:
    made = training_record(ANSWER, said(metric, value), METRICS, THRESHOLDS)
    assert made is not None
    assert (made.model, made.subject_id, made.conversation_id) == ("support", "anna", "talk")
    assert (made.messages, made.inference_id, made.origin) == (ANSWER.messages, ANSWER.inference_id, "feedback")
    return made


def lesson(metric: str, value: Any, time_ms: int, name: str = "f") -> Lesson:
    return Lesson(record(metric, value), Envelope(id=name, type="FeedbackGiven", source="app", time_ms=time_ms))


def after(*lessons: Lesson) -> tuple[list[Any], dict[str, Mark]]:
    """What is written when these come one by one, as completion or label, and the marks that stay."""
    made: dict[str, Mark] = {}
    written: list[Any] = []
    for one in lessons:
        now, made = to_write(made, [one])
        written += [each.record.completion if each.record.kind == "sft" else each.record.label for each in now]
    return written, made


def test_each_kind_of_feedback_makes_its_record() -> None:
    shown = record("demonstration", "tomorrow")
    assert (shown.kind, shown.completion, shown.record_id) == ("sft", "tomorrow", f"sft-{ANSWER.inference_id}")
    better = record("preferred", "tomorrow")
    assert (better.kind, better.chosen, better.rejected) == ("preference", "tomorrow", "soon")
    for thumb in (True, False):
        assert (record("correct", thumb).kind, record("correct", thumb).completion) == ("kto", "soon")
        assert record("correct", thumb).label is thumb


@pytest.mark.parametrize(("score", "good"), [(5, True), (4, True), (4.0, True), (3.9, False), (-1, False)])
def test_a_score_is_good_from_its_threshold_on(score: float, good: bool) -> None:
    made = record("rating", score)
    assert (made.kind, made.completion, made.label) == ("kto", "soon", good)
    assert made.record_id == f"kto-rating-{ANSWER.inference_id}"


def test_a_correction_replaces_and_another_metric_does_not() -> None:
    assert record("correct", True).record_id == record("correct", False).record_id
    spoken = (("correct", True), ("polite", True), ("rating", 5), ("demonstration", "x"), ("preferred", "x"))
    assert len({record(metric, value).record_id for metric, value in spoken}) == 5


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("rating", True), ("rating", "5"), ("speed", 9.5), ("correct", "yes"), ("correct", 1), ("mood", True), ("mood", 5),
        ("demonstration", True), ("preferred", 2),
    ],
)  # fmt: skip
def test_what_teaches_nothing_makes_no_record(metric: str, value: Any) -> None:
    assert training_record(ANSWER, said(metric, value), METRICS, THRESHOLDS) is None


def test_a_threshold_makes_no_metric_of_what_is_not_configured() -> None:
    assert label_of(said("rating", 5), {}, THRESHOLDS) is None
    assert label_of(said("rating", 5), METRICS, {}) is None
    assert label_of(said("correct", True), METRICS, {"correct": 1.0}) is True


def test_the_newest_counts_whenever_it_comes() -> None:
    first, second, third = (lesson("demonstration", text, time) for time, text in enumerate(("one", "two", "three")))
    assert after(first, second, third)[0] == ["one", "two", "three"]
    assert after(third, first, second)[0] == ["three"], "older feedback that comes late writes nothing"
    assert after(first, third, first, second, third)[0] == ["one", "three"], "nor does what comes again"


def test_of_one_moment_the_larger_id_counts_and_offset_10_comes_after_9() -> None:
    ninth = lesson("demonstration", "nine", 5, "usage.feedback/0/9")
    tenth = lesson("demonstration", "ten", 5, "usage.feedback/0/10")
    assert after(ninth, tenth)[0] == ["nine", "ten"] and after(tenth, ninth)[0] == ["ten"]


def test_the_same_said_twice_is_written_once_but_counts_from_then_on() -> None:
    up, down, again = lesson("correct", True, 1), lesson("correct", False, 2), lesson("correct", True, 3)
    assert after(up, up)[0] == [True] and after(up, again)[0] == [True]
    assert after(up, again, down)[0] == [True], "what was said in between no longer counts"
    assert after(up, down, again)[0] == [True, False, True], "to change one's mind and back is no repetition"


def test_of_what_waited_together_only_the_newest_of_each_kind_is_written() -> None:
    lessons = [lesson("correct", True, 3), lesson("correct", False, 1), lesson("demonstration", "x", 2)]
    written, made = to_write({}, lessons)
    assert {one.record.record_id: one.cause.time_ms for one in written} == {key: mark.time_ms for key, mark in made.items()}
    assert sorted(mark.time_ms for mark in made.values()) == [2, 3]
    assert to_write(made, lessons) == ([], made)


def test_the_record_goes_to_its_subject_and_names_its_cause() -> None:
    cause = Envelope(id="feedback-1", type="FeedbackGiven", source="app", time_ms=1_763_700_000_000)
    out = as_out(record("correct", True), cause, 4)
    headers = dict(out.headers)
    assert (out.topic, out.partition) == ("training.raw", partition_of("anna", 4))
    assert out.key == f"kto-correct-{ANSWER.inference_id}".encode()
    assert headers["ce_causationid"] == headers["ce_correlationid"] == b"feedback-1"
    assert headers["ce_time"] == b"2025-11-21T04:40:00.000Z" and b"anna" not in headers["ce_subject"]
    assert as_out(record("correct", True), cause, 4) == out, "said twice, it is the same record"


FEEDBACK = Record("usage.feedback", 3, 7, 1_763_700_000_000, b"k", b"\xff", [("mine", b"\x00\xff"), ("mine", None), ("join_clock", b"5")])


def came(out: Any) -> Record:
    """A record of the re-keyed topic, as the agent reads it."""
    return Record(out.topic, out.partition, 99, 1, out.key, out.value, out.headers)


def test_feedback_travels_and_waits_whole_under_its_own_key() -> None:
    out = rows.rekeyed(FEEDBACK, ANSWER.inference_id)
    assert (out.topic, out.key, out.partition) == (rows.REKEYED, b"k", rows.home(ANSWER.inference_id))
    assert rows.clock_of(came(out)) is None and rows.feedback_of(came(out)) == FEEDBACK
    waiting = rows.Waiting(5, FEEDBACK)
    assert rows.unpack_waiting(rows.pack(waiting)) == waiting
    answer = rows.Answer(5, {"sft-1": Mark(1, "f", "d")}, b"\xff{}")
    assert rows.unpack_answer(rows.pack(answer)) == answer


def test_the_clock_and_deletions_travel_too() -> None:
    tick = rows.clock(2, 1_763_700_000_000)
    assert (tick.partition, rows.clock_of(came(tick))) == (2, 1_763_700_000_000)
    assert {(out.partition, out.key, out.value) for out in rows.forgotten(b"k")} == {(n, b"k", None) for n in range(rows.PARTITIONS)}


def test_an_answers_home_is_where_kafkas_own_partitioner_puts_it() -> None:
    """Known murmur2 values of the Java client: a wrong one would part feedback from its answer for ever."""
    assert BY_NAME["usage.inferences"].partitions == rows.PARTITIONS == 4
    java = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    assert {text: rows.home(text) for text in java} == {text: (value & 0x7FFFFFFF) % 4 for text, value in java.items()}


def test_feedback_waits_for_its_own_answer_alone() -> None:
    key = rows.waiting_key(b"a", FEEDBACK)
    assert key.startswith(rows.waiting_prefix(b"a")) and rows.waits_for(key, b"a")
    other = rows.waiting_key(b"a\0b", FEEDBACK)
    assert other.startswith(rows.waiting_prefix(b"a")) and not rows.waits_for(other, b"a")
    assert not rows.waiting_key(b"ab", FEEDBACK).startswith(rows.waiting_prefix(b"a"))
