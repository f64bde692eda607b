"""Identities: genuine ids are recognised and nothing else is; what is computed is called the same every time."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import (
    InferenceIds,
    content_hash,
    drift_id,
    job_id,
    normalise,
    partition_of,
    record_id,
    shard_id,
    split_of,
    subject_of_prompt,
    subject_of_request,
    uuid7_hex,
)

SECRET = b"0123456789abcdef0123456789abcdef"
IDS = InferenceIds(SECRET)
# Computed once and written down: a change of these moves people between splits and partitions.
SPLITS_OF_TODAY = ["train"] * 5 + ["test"] + ["train"] * 6
PARTITIONS_OF_TODAY = [3, 3, 0, 1]


def test_an_id_is_recognised_by_every_gateway_with_the_secret_and_by_no_other() -> None:
    issued = IDS.issue()
    assert issued.startswith("chatcmpl-") and IDS.genuine(issued)
    assert InferenceIds(SECRET).genuine(issued)
    assert not InferenceIds(SECRET[::-1]).genuine(issued)


def test_an_old_id_stays_genuine() -> None:
    assert IDS.genuine("chatcmpl-00dc6acfac007000800000000000000120f9000000007e6e85d9cf72b85d"), "issued in 2000; in the wild for ever"


@pytest.mark.parametrize(
    "forge",
    [
        lambda real: real[:-1],
        lambda real: real + "0",
        lambda real: real.removeprefix("chatcmpl-"),
        lambda real: real[:-12],
        lambda real: real.replace("chatcmpl-", "resp_"),
        lambda real: real.replace("00000000", "00000001"),
        lambda real: real + "\n",
        lambda real: real.upper(),
        lambda real: "chatcmpl-chatcmpl-" + real.removeprefix("chatcmpl-"),
        lambda real: real[:-1] + "é",
        lambda real: real[:20] + ("0" if real[20] != "0" else "1") + real[21:],
        lambda real: real[:-1] + ("0" if real[-1] != "0" else "1"),
        lambda real: "chatcmpl-" + "0" * 60,
        lambda real: "",
    ],
)
def test_forged_and_truncated_ids_are_refused(forge: Callable[[str], str]) -> None:
    assert not IDS.genuine(forge(IDS.issue()))


@given(st.text())
def test_no_text_is_genuine(text: str) -> None:
    assert not IDS.genuine(text) and not IDS.genuine("chatcmpl-" + text)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than 32 bytes"):
        InferenceIds(SECRET[:-1])


def test_uuid7_is_one_by_the_rfc_and_sorts_by_time() -> None:
    times = [0, 1, 999, 1_763_700_000_000, 1_763_700_000_001, 2**48 - 1]
    texts = [uuid7_hex(time) for time in times]
    assert texts == sorted(texts)
    for time, text in zip(times, texts, strict=True):
        value = uuid.UUID(text)
        assert (value.int >> 76 & 0xF, value.variant, value.int >> 80) == (7, uuid.RFC_4122, time)
    assert len({uuid7_hex(1) for _ in range(1_000)}) == 1_000


def test_the_split_of_a_subject_never_moves() -> None:
    assert [split_of(f"subject-{n}", b"key", 0.1, 0.2) for n in range(12)] == SPLITS_OF_TODAY
    for n in range(2_000):
        if split_of(f"s{n}", b"key", 0.0, 0.1) == "test":
            assert split_of(f"s{n}", b"key", 0.0, 0.2) == "test", "a larger test share only adds to the hold-out"


def test_the_split_has_its_shares_and_follows_the_key() -> None:
    splits = [split_of(f"s{n}", b"salt", 0.1, 0.2) for n in range(20_000)]
    counts = Counter(splits)
    assert counts["test"] == pytest.approx(4_000, abs=250) and counts["validation"] == pytest.approx(2_000, abs=200)
    assert splits != [split_of(f"s{n}", b"pepper", 0.1, 0.2) for n in range(20_000)]
    assert {split_of(f"s{n}", b"salt", 0.0, 0.0) for n in range(500)} == {"train"}
    assert {split_of(f"s{n}", b"salt", 0.0, 1.0) for n in range(500)} == {"test"}


def test_a_partition_never_moves_and_all_are_used() -> None:
    assert [partition_of(text, 4) for text in ("customer-4711", "a", "", "ü")] == PARTITIONS_OF_TODAY
    counts = Counter(partition_of(f"s{n}", 4) for n in range(4_000))
    assert sorted(counts) == [0, 1, 2, 3] and min(counts.values()) > 850


JOB = ("support", "base", "parent", ["new", "replay"], "lora", {"rank": 16.0, "steps": 100.0}, "drift-1")


def test_a_job_is_called_the_same_for_the_same_inputs() -> None:
    assert job_id(*JOB) == job_id(*JOB[:5], {"steps": 100.0, "rank": 16.0}, "drift-1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("position", "value"),
    list(enumerate(["sales", "base2", "", ["new", ""], "full", {"rank": 8.0, "steps": 100.0}, "drift-2"])),
)
def test_a_job_has_another_name_for_any_other_input(position: int, value: object) -> None:
    assert job_id(*(value if n == position else part for n, part in enumerate(JOB))) != job_id(*JOB)  # type: ignore[arg-type]


def test_neighbouring_parts_do_not_run_together() -> None:
    assert content_hash("ab", "c") != content_hash("a", "bc")
    assert content_hash(1) != content_hash("1") and content_hash(None) != content_hash("")
    assert shard_id("t", 1, 23, 4, "m", "1") != shard_id("t", 12, 3, 4, "m", "1")
    assert drift_id("m", 1, "correct", 0, 5) == drift_id("m", 1, "correct", 0, 5) != drift_id("m", 1, "correct", 0, 6)
    assert record_id("chatcmpl-1", "sft") == "sft-chatcmpl-1"


def test_whose_words_they_are() -> None:
    assert subject_of_request("safe", "user", "talk", "id") == "safe"
    assert subject_of_request(None, "user", "talk", "id") == "user"
    assert subject_of_request("", "", "talk", "id") == "talk"
    assert subject_of_request(None, None, None, "id") == "id"
    assert subject_of_prompt("  Where IS\nmy card?") == subject_of_prompt("where is my card?")
    assert subject_of_prompt("where is my card?") != subject_of_prompt("where is my cart?")


@given(st.text())
def test_normalising_twice_changes_nothing_in_plain_text(text: str) -> None:
    plain = text.encode("ascii", "ignore").decode()
    assert normalise(normalise(plain)) == normalise(plain)
