"""Records dated by who says them: none is the newest for ever, none goes back further than who says it may correct."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec
from schemas.codec import MOST_AHEAD_MS, MOST_BACK_MS, ContractError, Envelope, bounded_time, decode, iso_time
from schemas.events import FeedbackGiven, InferenceServed, RecordSubmitted
from schemas.policy import ModelPolicy
from schemas.topics import CONSUMER_GROUPS, DAY_MS, all_topics
from streams.join.rules import Lesson, to_write, training_record
from streams.prepare.admit import Admission
from streams.prepare.rules import Prepared, prepare
from tests.examples import example
from tests.ids import SPLIT_KEY, answer

NOW, HOUR = 1_790_000_000_000, 3_600_000
POLICY = ModelPolicy(near_duplicate_similarity=1.0)
RAW, FEEDBACK = "training.raw", "usage.feedback"
AHEAD = {
    "the last millisecond there is": b"9999-12-31T23:59:59.999Z",
    "the year 9999": b"9999-12-31T00:00:00Z",
    "by another zone": b"9999-06-30T12:00:00+05:30",
    "next year": iso_time(NOW + 365 * DAY_MS).encode(),
    "tomorrow": iso_time(NOW + DAY_MS).encode(),
    "an hour and a millisecond": iso_time(NOW + HOUR + 1).encode(),
    "text instead of bytes": "9999-12-31T00:00:00Z",
}
# Whatever a stranger calls itself, the future is nobody's.
SOURCES = ("", "app", "tuneloop/tuneloop", "tuneloop/prepare", "tuneloop/join-feedback")


def said(topic: str, body: bytes, time: object, timestamp_ms: int, source: str = "", offset: int = 0) -> tuple[Envelope, object]:
    headers = [("ce_time", time)] if time else []
    headers += [("ce_source", source.encode())] if source else []
    return decode(topic, body, headers, 0, offset, timestamp_ms)


def record(completion: str) -> bytes:
    return f'{{"model":"support","record_id":"r","prompt":"Where is it?","completion":"{completion}"}}'.encode()


def feedback(value: str) -> bytes:
    return f'{{"inference_id":"{answer("q")}","metric_name":"demonstration","value":"{value}"}}'.encode()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ahead", AHEAD)
def test_a_later_correction_of_a_record_holds(ahead: str, source: str) -> None:
    admission = Admission(SPLIT_KEY)
    hostile = said(RAW, record("wrong"), AHEAD[ahead], NOW, source)
    honest = said(RAW, record("right"), None, NOW + 1, offset=1)
    admitted = []
    for envelope, event in (hostile, honest):
        assert isinstance(event, RecordSubmitted)
        made = prepare(event, envelope, POLICY, SPLIT_KEY)
        assert isinstance(made, Prepared)
        row = {**made.row, "partition": 0, "offset": envelope.time_ms}
        admitted.append([one["completion"] for one in admission.admit([row], POLICY).rows])
    assert admitted == [["wrong"], ["right"]]


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_later_opinion_on_an_answer_holds(ahead: str) -> None:
    inference = example(InferenceServed, "support", inference_id=answer("q"))
    made: dict = {}
    told = []
    for pair in (said(FEEDBACK, feedback("wrong"), AHEAD[ahead], NOW), said(FEEDBACK, feedback("right"), None, NOW + 1)):
        assert isinstance(pair[1], FeedbackGiven)
        lesson = training_record(inference, pair[1], POLICY.metrics, POLICY.thresholds)
        assert lesson is not None
        written, made = to_write(made, [Lesson(lesson, *pair)])
        told.append([one.record.completion for one in written])
    assert told == [["wrong"], ["right"]]


@pytest.mark.parametrize("ahead", [NOW + 365 * DAY_MS, NOW + HOUR + 1, 2**62], ids=["next year", "an hour and a millisecond", "no year"])
def test_what_an_opinion_says_of_its_own_time_is_bounded_too(ahead: int) -> None:
    def dated(said_ms: int, source: str = "") -> int:
        body = feedback("x").replace(b"}", b',"said_ms":%d}' % said_ms)
        return said(FEEDBACK, body, iso_time(NOW - DAY_MS).encode(), NOW, source)[0].time_ms

    for source in ("", "tuneloop/serve"):
        assert dated(ahead, source) == NOW and dated(NOW - 40 * DAY_MS, source) == NOW - 30 * DAY_MS
        assert dated(NOW - 5, source) == NOW - 5, "before what the headers say of the record"
        assert dated(0, source) == NOW - DAY_MS, "it says nothing"


BACK = {
    "the year 1": b"0001-01-01T00:00:00Z",
    "the epoch": b"1970-01-01T00:00:00Z",
    "a year": iso_time(NOW - 365 * DAY_MS).encode(),
    "31 days": iso_time(NOW - 31 * DAY_MS).encode(),
    "30 days and a millisecond": iso_time(NOW - 30 * DAY_MS - 1).encode(),
}


@pytest.mark.parametrize("back", BACK)
def test_who_may_not_correct_goes_back_thirty_days_and_no_further(back: str) -> None:
    for source in ("", "app", "anybody/prepare", "tuneloop/", "tuneloop/app", "Prepare", "dead.prepare"):
        assert said(FEEDBACK, feedback("x"), BACK[back], NOW, source)[0].time_ms == NOW - 30 * DAY_MS, source
    for source in ("tuneloop/tuneloop", "tuneloop/join-feedback"):
        assert said(RAW, record("x"), BACK[back], NOW, source)[0].time_ms < NOW - 30 * DAY_MS, source


@pytest.mark.parametrize(
    "time", [b"9999-12-31T23:59:59-00:01", b"10000-01-01T00:00:00Z", b"soon", b"\xff", b"2026-11-28", b"0001-01-01T00:00+01:00"]
)
def test_what_is_no_time_is_refused(time: bytes) -> None:
    with pytest.raises(ContractError, match="ce_time"):
        said(RAW, record("x"), time, NOW)


@pytest.mark.parametrize("time", [None, *AHEAD.values()])
def test_a_record_without_any_time_of_its_own_is_the_oldest_not_the_newest(time: object) -> None:
    """A client may leave a record's timestamp out: Kafka then keeps -1."""
    assert said(RAW, record("x"), time, -1)[0].time_ms == -1


def test_no_topic_takes_records_from_further_ahead_than_an_hour() -> None:
    for topic in all_topics():
        assert int(topic.config()["message.timestamp.after.max.ms"]) == MOST_AHEAD_MS == HOUR, topic.name


def test_who_may_correct_is_us_and_who_imports() -> None:
    for source in ("tuneloop", "serve", *CONSUMER_GROUPS):
        assert codec.may_correct(source)
    for source in ("", "app", "client", "tuneloop/tuneloop", "serve ", "SERVE", "tuneloop\0"):
        assert not codec.may_correct(source)


@given(st.integers(-(2**60), 2**60), st.integers(-1, 2**45), st.sampled_from(["", "app", "tuneloop", "prepare"]))
def test_every_time_is_within_its_bounds_and_none_within_them_is_touched(time_ms: int, timestamp_ms: int, source: str) -> None:
    bounded = bounded_time(time_ms, timestamp_ms, source)
    assert bounded <= timestamp_ms + MOST_AHEAD_MS
    assert codec.may_correct(source) or bounded >= timestamp_ms - MOST_BACK_MS
    if timestamp_ms - MOST_BACK_MS <= time_ms <= timestamp_ms + MOST_AHEAD_MS:
        assert bounded == time_ms
    assert bounded_time(bounded, timestamp_ms, source) == bounded
