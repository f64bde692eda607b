"""Which training record feedback on one answer makes, which of several counts, and what travels and is kept."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from schemas.codec import Envelope
from schemas.events import FeedbackGiven, InferenceServed, Message, RecordSubmitted
from schemas.identity import partition_of
from schemas.topics import BY_NAME
from streams.join import rows
from streams.join.rules import MOST_MARKS, Lesson, Mark, label_of, to_write, training_record, unfit
from streams.join_feedback import as_out
from streams.kafka import Record
from tests.examples import example

METRICS = {"correct": "boolean", "polite": "boolean", "rating": "float", "speed": "float"}
THRESHOLDS = {"rating": 4.0}
ANSWER: InferenceServed = example(InferenceServed, "support", answer="soon", subject_id="anna", conversation_id="talk")


def said(metric: str, value: Any, **fields: Any) -> FeedbackGiven:
    return FeedbackGiven(inference_id=ANSWER.inference_id, metric_name=metric, value=value, **fields)


def record(metric: str, value: Any) -> RecordSubmitted:
    made = training_record(ANSWER, said(metric, value), METRICS, THRESHOLDS)
    assert made is not None
    assert (made.model, made.subject_id, made.conversation_id) == ("support", "anna", "talk")
    assert (made.messages, made.inference_id, made.origin) == (ANSWER.messages, ANSWER.inference_id, "feedback")
    return made


def lesson(metric: str, value: Any, time_ms: int, name: str = "f", **fields: Any) -> Lesson:
    """One word of a piece of feedback: of the record `name`, where `fields` give the feedback no id of its own."""
    envelope = Envelope(id=name, type="FeedbackGiven", source="app", time_ms=time_ms)
    return Lesson(record(metric, value), envelope, said(metric, value, **fields))


def after(*lessons: Lesson) -> tuple[list[Any], dict[str, list[Mark]]]:
    """What is written when these come one by one, as completion or label, and the marks that stay."""
    made: dict[str, list[Mark]] = {}
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


def test_a_demonstration_says_whether_the_answer_was_right_who_says_so_and_how_it_was_chosen() -> None:
    assert record("demonstration", "tomorrow").label is False and record("demonstration", " soon\n").label is True
    by = said("demonstration", "x", author="agent-7", tags={"sampled": "random"})
    made = training_record(ANSWER, by, METRICS, THRESHOLDS)
    assert made is not None and (made.author, made.sampled) == ("agent-7", "random")
    served = msgspec.structs.replace(ANSWER, labels={"sampled": "bad"})
    for answer, tags, sampled in ((ANSWER, {}, ""), (ANSWER, {"sampled": "import"}, ""), (served, {}, "bad"),
                                  (served, {"sampled": "all"}, "all"), (served, {"sampled": "strange"}, "")):  # fmt: skip
        made = training_record(answer, said("correct", True, tags=tags), METRICS, THRESHOLDS)
        assert made is not None and made.sampled == sampled


def test_turns_are_taken_over_whole() -> None:
    turns = [
        Message(role="user", content="where is it"),
        Message(role="assistant", content="", tool_calls='[{"id":"1"}]', weight=0.0),
        Message(role="tool", content="on its way", tool_call_id="1", name="track"),
    ]
    made = training_record(msgspec.structs.replace(ANSWER, messages=turns), said("correct", True), METRICS, THRESHOLDS)
    assert made is not None and made.messages == turns


@pytest.mark.parametrize("ended", ["cancelled", "error"])
def test_praise_of_an_answer_that_was_cut_off_makes_it_no_right_one(ended: str) -> None:
    cut = msgspec.structs.replace(ANSWER, finish_reason=ended)

    def made(metric: str, value: Any) -> RecordSubmitted | None:
        return training_record(cut, said(metric, value), METRICS, THRESHOLDS)

    assert made("correct", True) is None and made("rating", 5) is None
    for metric, value in (("correct", False), ("rating", 1)):
        bad = made(metric, value)
        assert bad is not None and (bad.completion, bad.label) == ("soon", False)
    shown, better = made("demonstration", "soon"), made("preferred", "soon enough")
    assert shown is not None and (shown.completion, shown.label) == ("soon", False)
    assert better is not None and (better.chosen, better.rejected) == ("soon enough", "soon")


UNFIT = {"correct": ["true", 1, 0.5], "rating": [True, "5"], "demonstration": [True, 1, " "], "preferred": [2, ""]}


@pytest.mark.parametrize(("metric", "value"), [(metric, value) for metric, values in UNFIT.items() for value in values])
def test_a_value_of_another_type_is_refused_by_field_and_quotes_nobody(metric: str, value: Any) -> None:
    reason = unfit(said(metric, value), METRICS)
    assert reason.startswith(f"`value`: {metric} takes a ") and training_record(ANSWER, said(metric, value), METRICS, THRESHOLDS) is None
    assert isinstance(value, str) == reason.endswith(("a text", "blanks")) and "true" not in reason


def test_what_fits_and_what_is_no_metric_of_this_model_is_not_refused() -> None:
    for metric, value in (("correct", False), ("rating", 4), ("rating", 4.5), ("demonstration", "x"), ("mood", "true"), ("mood", 1)):
        assert unfit(said(metric, value), METRICS) == ""


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


def told(*said: tuple[str, Any, int]) -> tuple[Any, int]:
    """What holds of one answer and since when, after these (feedback id, value, time) came one by one."""
    lessons = [lesson("correct", value, time, f"record-{n}", feedback_id=name) for n, (name, value, time) in enumerate(said)]
    written, made = after(*lessons)
    (marks,) = made.values()
    return written[-1], marks[-1].time_ms


def test_feedback_is_known_by_its_own_id_not_by_its_records() -> None:
    """A retry of the first does not displace what another said in between; without an id each record is one."""
    assert told(("a", True, 10), ("b", False, 15), ("a", True, 20)) == (False, 15)
    assert told(("", True, 10), ("", False, 15), ("", True, 20)) == (True, 20)


HISTORIES = {
    "said again": ([("a", True, 1), ("a", True, 9)], (True, 1)),
    "corrected": ([("a", True, 1), ("a", False, 2)], (False, 2)),
    "corrected and back": ([("a", True, 1), ("a", False, 2), ("a", True, 3)], (True, 3)),
    "corrected, each said twice": ([("a", True, 1), ("a", True, 2), ("a", False, 3), ("a", False, 4)], (False, 3)),
    "two people, one who comes round": ([("a", False, 1), ("b", False, 2), ("a", True, 3)], (True, 3)),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_the_newest_word_of_the_newest_feedback_holds_in_whatever_order_it_comes(name: str) -> None:
    said, holds = HISTORIES[name]
    for order in itertools.permutations(said):
        assert told(*order)[0] == holds[0], order
    assert told(*said) == told(*said, *said) == holds


def test_a_retry_that_comes_before_its_first_time_gives_it_back() -> None:
    """But not the record: that what another said in between would count then is not kept."""
    assert told(("b", False, 2), ("a", True, 3), ("a", True, 1)) == (True, 3)
    assert told(("a", True, 9), ("a", True, 1)) == (True, 1)
    assert told(("a", True, 9), ("a", False, 5), ("a", True, 1)) == (True, 9), "before that it said something else"


def test_an_answer_keeps_a_bounded_number_of_marks() -> None:
    _, made = after(*(lesson("correct", bool(n % 2), n, feedback_id=f"f{n}") for n in range(100)))
    (marks,) = made.values()
    assert len(marks) == MOST_MARKS and [mark.time_ms for mark in marks] == list(range(84, 100))


def test_of_what_waited_together_only_the_newest_of_each_kind_is_written() -> None:
    lessons = [lesson("correct", True, 3), lesson("correct", False, 1), lesson("demonstration", "x", 2)]
    written, made = to_write({}, lessons)
    assert {one.record.record_id: one.cause.time_ms for one in written} == {key: marks[-1].time_ms for key, marks in made.items()}
    assert sorted(marks[-1].time_ms for marks in made.values()) == [2, 3]
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
    answer = rows.Answer(5, {"sft-1": [Mark(1, "f", "d"), Mark(2, "g", "d", 5, 1)]}, b"\xff{}")
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
