"""One record can never stop a topic: what any record may cost its readers, and what becomes of one that costs more."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import pytest

from schemas import codec
from schemas.codec import MOST_BYTES, MOST_HEADER_BYTES, ContractError, Envelope
from schemas.events import DecisionMade, FeedbackGiven, Message, RecordSubmitted
from schemas.identity import erasure_id, normalise, subject_hash, subject_of_prompt
from schemas.landing import arrow_table
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME, TOPICS
from streams import kafka, metrics, unreadable
from streams.erase.find import Subject
from streams.erased import Erased
from streams.join import rows
from streams.join.rules import Lesson
from streams.join_feedback import LARGEST_BYTES, _written
from streams.kafka import Record
from streams.prepare.near import signature
from streams.prepare.pii import card, scrub
from streams.prepare.read import read
from streams.prepare.rules import MAX_CHARACTERS, Prepared, prepare
from streams.prepare.text import noise, repair, repetitive
from streams.prepare.workers import WorkerPool
from streams.unreadable import readable
from tests.broker import landed
from tests.hostile.planted import planted
from tests.ids import SPLIT_KEY

MODEL = "support"
POLICIES = {MODEL: ModelPolicy(phone_regions=["DE", "US"])}


@lru_cache(maxsize=1)
def all_digit_groups() -> str:
    """Groups of 7, 6 and 1 digits: each passes Luhn's test only together with the digit that the one before left over."""
    chance, groups, left = random.Random(7), [], ""
    while 6 * len(groups) < MAX_CHARACTERS + 17:
        seven, six, one = (str(chance.randrange(10 ** (digits - 1), 10**digits)) for digits in (7, 6, 1))
        alone, with_left = seven + six, left + seven + six
        passing = [card(number) for number in (alone, alone + one, with_left, with_left + one)]
        if passing == [not left, False, True, False]:  # the first of all needs no other
            groups += [seven, six, one]
            left = one
    return " ".join(groups)


def digit_groups(length: int) -> str:
    return all_digit_groups()[:length]


def heap(length: int) -> str:
    """Marks on one letter, those first that have to stand last: sorting them takes the square of their number."""
    return "a" + "\u0301" * (length // 2) + "\u0316" * (length // 2)


def repeated(unit: str) -> Callable[[int], str]:
    return lambda length: (unit * (length // len(unit) + 1))[:length]


UNITS = [
    "1 ", "12 ", "1", "1-", "123/45 ", "(1", "0 0", "+1 415-555-2671 ", "1234567 123456 1 ", "4111 1111 1111 1112 ",
    "AB12 ", "DE89 3704 0044 0532 0130 01 ", "a@", "a@b.c.", "a@b.c-", "0@0.0.", "a.", "sk-", "-eyJxxx", "eyJ", "eyJaaaaaaaa.",
    "eyJaaaaaaaaaaaa.aaaaaaaa.", "Bearer ", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END ", "1.", "1.1.1.1.", "a:",
    "::", ":1", "&amp;", "&#x", "Ã©", "ÃƒÆ’Ã†", "Ì\x81", "\x1b[1;", "\r\n", "\x00", "ﷺ", "\u0344", "e\u0301", "한", "١ ",
]  # fmt: skip
TEXTS = {"digit groups": digit_groups, "a heap of marks": heap} | {repr(unit): repeated(unit) for unit in UNITS}
RULES: dict[str, Callable[[str], object]] = {
    "repair": repair, "repetitive": repetitive, "noise": noise, "scrub": lambda text: scrub(text, ["DE", "US"]),
    "signature": signature, "normalise": normalise, "subject": subject_of_prompt,
}  # fmt: skip


def seconds(rule: Callable[[str], object], text: str) -> float:
    began = time.process_time()
    rule(text)
    return time.process_time() - began


def ratio(rule: Callable[[str], object], text: Callable[[int], str]) -> float:
    """How much longer twice the text takes; 1 where it takes next to nothing."""
    whole = seconds(rule, text(MAX_CHARACTERS // 2))
    return whole / seconds(rule, text(MAX_CHARACTERS // 4)) if whole > 0.02 else 1.0


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rule", RULES)
def test_twice_the_text_takes_a_rule_no_more_than_three_times_as_long(rule: str, text: str) -> None:
    """Of three looks the least: whatever else this machine does only adds to it."""
    assert any(ratio(RULES[rule], TEXTS[text]) < 3 for _ in range(3))


@pytest.mark.parametrize("count", [1, 3])
def test_demonstrations_made_of_digit_groups_are_masked_in_no_time(count: int) -> None:
    event = RecordSubmitted(model=MODEL, prompt="Which cards?", completion=digit_groups(MAX_CHARACTERS - 100))
    began = time.process_time()
    for _ in range(count):
        made = prepare(event, Envelope("id", "RecordSubmitted", "", 1), ModelPolicy(), SPLIT_KEY)
    assert isinstance(made, Prepared) and made.masked["card"] > 500
    assert time.process_time() - began < 2 * count


def test_what_is_left_of_a_masked_number_may_be_anothers_beginning() -> None:
    assert scrub("99999 4111 1111 1111 1111")[0].endswith("[card]")
    assert scrub("4111 1111 1111 1111 4111 1111 1111 1111")[0] == "[card] [card]"
    assert "@" not in scrub("0@0.0.@0.0.@0.0")[0]
    assert scrub("x.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.SflKxw")[0] == "x.[key]"


# -- a rule that does not return ----------------------------------------------------------------------------------


def body(completion: str, question: str = "Where is it?") -> bytes:
    return msgspec.json.encode({"model": MODEL, "prompt": question, "completion": completion})


def record(offset: int, value: bytes | None = None, topic: str = "training.raw", headers: Any = ()) -> Record:
    value = body("yes", f"Question {offset}: where is it?") if value is None else value
    return Record(topic, 0, offset, 1, b"k", value, list(headers))


@pytest.fixture(scope="module")
def pool() -> WorkerPool:
    return WorkerPool(POLICIES, SPLIT_KEY, rules=planted, limit_s=0.5)


@pytest.mark.parametrize(("completion", "place", "reason"), [
    ("loops", 0, "a rule did not return within 0.5 s"), ("sleeps", 2, "a rule did not return within 0.5 s"),
    ("kills", 4, "its worker ended with exit code -9"),
])  # fmt: skip
def test_a_record_whose_rule_does_not_return_is_refused_and_the_others_are_read(pool, completion, place, reason) -> None:
    records = [record(offset, body(completion) if offset == place else None) for offset in range(5)]
    before = metrics.silent_s()
    readings = pool.read(records)
    assert sum(reading.records for reading in readings) == 5
    assert {offset: why for one in readings for offset, why in one.refused.items()} == {place: reason}
    said = [fact["offset"] for one in readings for fact in one.facts]
    assert said == [offset for offset in range(5) if offset != place]
    assert metrics.silent_s() < max(before, 5), "each answer is a sign of life"


def test_a_record_alone_is_refused_as_well(pool) -> None:
    (reading,) = pool.read([record(3, body("loops"))])
    assert reading.refused.keys() == {3} and reading.records == 1 and reading.rows.num_rows == 0


def test_what_lasts_long_is_cut_off_and_gets_somewhere_each_time(pool) -> None:
    left, calls = [record(0), record(1, body("loops"))], 0
    refused: dict[int, str] = {}
    while left:
        readings = pool.read(left, until=time.monotonic())
        taken = sum(reading.records for reading in readings)
        assert taken, "every call gets past one record at least"
        refused |= {offset: why for one in readings for offset, why in one.refused.items()}
        left, calls = left[taken:], calls + 1
    assert refused.keys() == {1} and calls == 2


# -- what cannot be read ------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "no JSON": (b"\x00\xff", []), "cut off": (b'{"model": "sup', []), "a list": (b"[]", []), "empty": (b"", []),
    "deep": (b'{"a":' * 20_000, []), "a type of another topic": (b"{}", [("ce_type", b"FeedbackGiven")]),
    "no type": (b"{}", [("ce_type", b"\xff")]), "a huge number": (b'{"rows":' + b"9" * 500_000 + b"}", []),
    "large": (b" " * (MOST_BYTES + 1), []), "a long header": (b"{}", [("ce_source", b"s" * 1_000_000)]),
}  # fmt: skip
INTERNAL = [topic for topic in TOPICS if not topic.headerless]


def broken(topic: str, case: str) -> Record:
    value, headers = BROKEN[case]
    kind = BY_NAME[topic].events[0].__name__.encode()
    return record(9, value, topic, headers=headers or [("ce_type", kind)])


def unread(topic: str) -> float:
    return metrics.UNREADABLE.labels(topic)._value.get()


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("topic", [topic.name for topic in INTERNAL])
def test_what_cannot_be_read_in_a_topic_of_our_own_is_passed_over_and_counted(topic: str, case: str) -> None:
    before = unread(topic)
    tombstone = Record(topic, 0, 10, 1, b"k", None, [])
    assert list(readable([broken(topic, case), tombstone])) == []
    assert unread(topic) == before + 1, "the alarm is for what cannot be read, not for a deletion"


@pytest.fixture
def erased(monkeypatch) -> Erased:
    class Store:
        def files(self, folder: str) -> list[Any]:
            return []

    monkeypatch.setattr(kafka, "consumer", lambda *_, **__: type("Reader", (), {"assign": lambda *_: None})())
    return Erased("nowhere:1", b"s" * 32, Store())  # type: ignore[arg-type]


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("receipt", ["", "/receipt"])
def test_an_erasure_that_cannot_be_read_lets_nothing_of_its_subject_through(erased, case: str, receipt: str) -> None:
    """Its key says whose it is."""
    identity = erasure_id(subject_hash(b"s" * 32, "jane"))
    erased._take(msgspec.structs.replace(broken("subjects.erasures", case), key=f"{identity}{receipt}".encode()))
    assert erased.anybody() and erased.covers("jane") and not erased.covers("joan") and not erased.covers("")


@pytest.mark.parametrize("headers", [
    [], [("join_clock", b"soon")], [("join_clock", None)], [("join_origin", b"1/2")], [("join_origin", b"\xff")],
    [("join_origin", None)], [("x", b"1/2/3/4")], [("join_clock", b"9" * 5_000)],
])  # fmt: skip
def test_a_foreign_record_of_the_re_keyed_topic_is_known_for_one(headers) -> None:
    foreign = record(1, b"{}", rows.REKEYED, headers=headers)
    with pytest.raises(rows.UNREADABLE):
        assert rows.clock_of(foreign) is None and rows.feedback_of(foreign)


# -- headers and sizes --------------------------------------------------------------------------------------------

HEADERS = ["ce_id", "ce_source", "ce_time", "ce_subject", "ce_correlationid", "ce_causationid", "ce_traceparent"]


@pytest.mark.parametrize("name", [*HEADERS, "ce_type"])
def test_a_long_header_is_refused_by_name_and_kept_nowhere(name: str) -> None:
    for number in range(1_024):
        headers = {"ce_type": b"RecordSubmitted", "ce_id": b"1", name: b"%d" % number + b"x" * MOST_HEADER_BYTES}
        with pytest.raises(ContractError, match=name) as refused:
            kafka.decode(record(1, headers=list(headers.items())))
        assert len(str(refused.value)) < 1_000
    kept = sum(len(text) for text in gc.get_objects() if isinstance(text, bytes | str) and len(text) > MOST_HEADER_BYTES)
    assert kept < 100 * MOST_HEADER_BYTES


def test_the_caches_of_headers_hold_little() -> None:
    codec._source.cache_clear()
    for number in range(5_000):
        source = b"%d" % number + b"s" * (MOST_HEADER_BYTES - 100)
        kafka.decode(record(1, headers=[("ce_type", b"RecordSubmitted"), ("ce_id", b"1"), ("ce_source", source)]))
    assert codec._source.cache_info().currsize * MOST_HEADER_BYTES <= 4 << 20


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 8 * MOST_BYTES])
@pytest.mark.parametrize("topic", ["training.raw", "usage.feedback"])
def test_a_body_that_unpacks_to_more_than_an_event_may_have_is_refused(topic: str, size: int) -> None:
    with pytest.raises(ContractError, match=f"at most {MOST_BYTES} bytes, got {size}"):
        kafka.decode(record(1, b'"' + b"a" * (size - 2) + b'"', topic))


@pytest.mark.parametrize("version", [2**63, 2**64 - 1])
def test_an_integer_that_no_column_holds_lands_as_the_largest(version: int) -> None:
    said = [DecisionMade(model=MODEL, decision="d", reason="", version=number) for number in (version, 7)]
    sent = [landed(kafka.out(event, source="test")) for event in said]
    table = arrow_table(DecisionMade, [(*kafka.decode(one), one) for one in sent])
    assert table["version"].to_pylist() == [2**63 - 1, 7]


@pytest.mark.parametrize("answer", ["a", "é", "🙂", "\\", "\x00"])
def test_feedback_whose_training_record_no_broker_takes_is_a_dead_letter(answer: str) -> None:
    cause = Envelope("f-1", "FeedbackGiven", "", 1)
    said = FeedbackGiven(inference_id="i", metric_name="preferred", value="x")
    for size in (LARGEST_BYTES // 8, LARGEST_BYTES):
        made = RecordSubmitted(model=MODEL, prompt="p", completion=answer * size, record_id="sft-1")
        out = _written(Lesson(made, cause, said), record(5, b"{}", "usage.feedback"))
        assert out.topic == ("training.raw" if len(msgspec.json.encode(made)) <= LARGEST_BYTES else "dead.join-feedback")
        assert len(out.value or b"") <= LARGEST_BYTES


def test_the_topics_that_strangers_write_are_packed_anew_by_the_broker() -> None:
    packed = {topic.name for topic in TOPICS if topic.config().get("compression.type") == "lz4"}
    assert packed == {"training.raw", "usage.feedback"}


# -- whose a record is --------------------------------------------------------------------------------------------

ASKED = ["I am jane@example.org, where is it?", "call +49 30 901820", "  cafÃ© ", "4111 1111 1111 1111", "a\x00b",
         "where is it, where is it, where is it? x" + "\u0301\u0316" * 20]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("form", ["prompt", "messages", "answered"])
def test_prepare_and_erasure_agree_whose_a_record_without_a_subject_is(asked: str, form: str) -> None:
    said: dict[str, Any] = {"model": MODEL, "completion": "yes"}
    if form == "prompt":
        said["prompt"] = asked
    else:
        said["messages"] = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "so"},
                            {"role": "user", "content": asked}]  # fmt: skip
    if form == "answered":
        said["messages"].append({"role": "assistant", "content": said.pop("completion")})
    sent = record(1, msgspec.json.encode(said))
    (fact,) = read([sent], POLICIES, SPLIT_KEY).facts
    assert fact["subject_id"] == subject_of_prompt(asked) and Subject(fact["subject_id"]).owns(sent)
    messages = [Message(**turn) for turn in said.get("messages", [])]
    assert messages or form == "prompt"


def test_a_rule_that_raises_refuses_its_record(monkeypatch) -> None:
    monkeypatch.setattr("streams.prepare.rules.repair", lambda text: {}[text])
    reading = read([record(1), record(2)], POLICIES, SPLIT_KEY)
    assert reading.refused.keys() == {1, 2} and "a rule failed: KeyError" in reading.refused[1]
    assert unreadable.decoded(record(1)) is not None
