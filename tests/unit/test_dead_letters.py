"""Dead letters: the bytes as they came, why and whence in the headers, and never the whole topic."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from schemas.topics import CONSUMER_GROUPS
from streams.dead_letters import LONGEST_WAIT_S, Budget, dead_letter
from streams.kafka import Record
from streams.metrics import SLOWED

RECORD = Record(
    topic="training.raw", partition=2, offset=17, timestamp_ms=1, key=b"k", value=b'{"broken": \xff',
    headers=[
        ("ce_type", b"RecordSubmitted"), ("x", None), ("__connect.errors.topic", b"older"), ("tuneloop.original.key", b"forged"),
    ],
)  # fmt: skip


def count(budget: Budget, pattern: str) -> list[int]:
    """Count `x` as refused and `.` as taken; after which of them there was something to wait for."""
    waits = []
    for number, character in enumerate(pattern, 1):
        budget.count(refused=character == "x")
        if budget.wait_s():
            waits.append(number)
    return waits


def test_original_bytes_and_headers_with_the_reason_beside_them() -> None:
    letter = dead_letter("prepare", RECORD, "RecordSubmitted: no such thing - at `$.kind`")
    assert (letter.topic, letter.key, letter.value) == ("dead.prepare", b"training.raw/2/17", RECORD.value)
    assert letter.headers == [
        ("ce_type", b"RecordSubmitted"),
        ("x", None),
        ("__connect.errors.topic", b"training.raw"),
        ("__connect.errors.partition", b"2"),
        ("__connect.errors.offset", b"17"),
        ("__connect.errors.connector.name", b"prepare"),
        ("__connect.errors.stage", b"VALUE_CONVERTER"),
        ("__connect.errors.exception.class.name", b"ContractError"),
        ("__connect.errors.exception.message", b"RecordSubmitted: no such thing - at `$.kind`"),
        ("tuneloop.original.timestamp", b"1"),
        ("tuneloop.original.key", b"k"),
    ]


@pytest.mark.parametrize("key", [None, b"", b"\xff\x00 no text"])
def test_the_key_is_kept_as_it_was_and_none_is_not_empty(key: bytes | None) -> None:
    headers = dead_letter("prepare", replace(RECORD, key=key), "r").headers
    assert [value for name, value in headers if name == "tuneloop.original.key"] == ([] if key is None else [key])


def test_a_replayed_refusal_writes_the_same_letter() -> None:
    assert dead_letter("monitor", RECORD, "r") == dead_letter("monitor", RECORD, "r")


def test_every_group_has_its_topic_and_a_stranger_none() -> None:
    assert {dead_letter(group, RECORD, "r").topic for group in CONSUMER_GROUPS} == {f"dead.{g}" for g in CONSUMER_GROUPS}
    with pytest.raises(ValueError, match="no consumer group 'stranger'"):
        dead_letter("stranger", RECORD, "r")


def test_a_run_is_bearable_up_to_its_bound() -> None:
    assert count(Budget(max_run=3, window=100), "xxx.xxx.xxx") == []
    assert count(Budget(max_run=3, window=100), "xxx.xxxx") == [8]


def test_a_share_is_bearable_up_to_its_bound_once_the_window_is_full() -> None:
    assert count(Budget(max_run=100, max_share=0.5, window=4), "xx..xx..xx..") == []
    assert count(Budget(max_run=100, max_share=0.5, window=4), "xxx") == [], "three records prove nothing yet"
    assert count(Budget(max_run=100, max_share=0.5, window=4), "xxx.") == [4]
    assert count(Budget(max_run=100, max_share=0.5, window=4), "xx..x.xx") == [8], "the window moves on"


def test_what_left_the_window_is_forgiven() -> None:
    assert count(Budget(max_run=100, max_share=0.5, window=10), "xxxxx....." * 20) == []


def test_a_bound_of_0_bears_any_number() -> None:
    assert count(Budget(max_run=0), "x" * 5_000) == []


def test_beyond_the_bound_it_waits_now_and_then_and_longer_each_time() -> None:
    budget, waits = Budget(max_run=10), []
    for _ in range(200):
        budget.count(refused=True)
        waits.append(budget.wait_s())
    assert [number for number, wait_s in enumerate(waits, 1) if wait_s] == list(range(11, 200, 10))
    due = [wait_s for wait_s in waits if wait_s]
    assert due == sorted(due) and due[0] < due[1] and due[-1] == LONGEST_WAIT_S


def test_a_wait_is_said_once_and_counted_and_never_longer_than_the_longest() -> None:
    before, budget = SLOWED._value.get(), Budget(max_run=1)
    for _ in range(1_000):
        budget.count(refused=True)
    assert budget.wait_s() == LONGEST_WAIT_S and budget.wait_s() == 0
    assert SLOWED._value.get() - before == LONGEST_WAIT_S


def test_it_says_so_when_it_slows_down_and_when_it_is_over(caplog) -> None:
    budget = Budget(max_run=1, window=4)
    for refused in (False, True, True, True, False, False, False, False, True):
        budget.count(refused=refused)
    first, last = [record.getMessage() for record in caplog.records]
    assert "2 of the last 3 records were refused, 2 in a row: slowing down" in first and "mend the producer" in first
    assert "back to full speed" in last


def test_counting_is_cheap() -> None:
    """It runs once per record of every consumer; summing the window each time took 14 µs."""
    budget = Budget()
    began = time.process_time()
    for number in range(50_000):
        budget.count(refused=number % 3 == 0)
    assert time.process_time() - began < 0.25
