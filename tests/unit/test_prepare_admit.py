"""Admission: duplicates, contradictions and near duplicates, within a batch and against committed rows."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import Envelope
from schemas.events import RecordSubmitted
from schemas.identity import split_of
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams.prepare import near
from streams.prepare.admit import REMEMBERED, Admission
from streams.prepare.augment import WAYS, augmented
from streams.prepare.near import NearIndex, signature, similarity
from streams.prepare.rules import Prepared, prepare
from streams.prepare.runs import Runs
from streams.prepare.shard import counted
from tests.ids import SPLIT_KEY

POLICY = ModelPolicy()
LONG = "i ordered a blue jacket in size medium ten days ago and it has still not arrived at my address in town"


def row(prompt: str, completion: str = "parcel", at: int = 0, policy: ModelPolicy = POLICY, **fields: Any) -> dict[str, Any]:
    """A prepared row; `at` is its offset and, in milliseconds, its time."""
    envelope = Envelope(id=f"training.raw/0/{at}", type="RecordSubmitted", source="", time_ms=at)
    made = prepare(RecordSubmitted(model="support", prompt=prompt, completion=completion, **fields), envelope, policy, SPLIT_KEY)
    assert isinstance(made, Prepared), made
    return {**made.row, "partition": 0, "offset": at}


def fresh() -> Admission:
    return Admission(SPLIT_KEY)


def committed(*rows: dict[str, Any]) -> Admission:
    """The state after these rows were committed, a shard each, as it is rebuilt."""
    state = fresh()
    for one in rows:
        if not one["unit"]:
            Admission(SPLIT_KEY).admit([one], POLICY)
        state.remember(pa.Table.from_pylist([one], schema=SHARD_SCHEMA).select(REMEMBERED), {})
    return state


def admitted(state: Admission, *rows: dict[str, Any], policy: ModelPolicy = POLICY) -> tuple[list[int], dict[str, int], int]:
    done = state.admit(rows, policy)
    return [one["offset"] for one in done.rows], dict(+done.dropped), done.contradictions


def test_the_same_again_is_a_duplicate_in_the_batch_after_it_and_after_a_restart() -> None:
    first = row("where is it", at=1)
    state = fresh()
    assert admitted(state, first, row("WHERE  is it", at=2)) == ([1], {"duplicate": 1}, 0)
    assert admitted(state, row("where is it", at=3)) == ([], {"duplicate": 1}, 0)
    assert admitted(committed(first), row("where is it", at=4)) == ([], {"duplicate": 1}, 0)


def test_the_newest_answer_to_a_question_holds_and_is_reported() -> None:
    state = committed(row("where is it", "parcel", at=5))
    assert admitted(state, row("where is it", "refund", at=4)) == ([], {"contradicted": 1}, 0), "an older one comes late"
    assert admitted(state, row("where is it", "refund", at=6)) == ([6], {}, 1)
    assert admitted(state, row("where is it", "refund", at=7)) == ([], {"duplicate": 1}, 0)
    assert admitted(state, row("where is it", "parcel", at=8)) == ([8], {}, 1), "the first answer again is news again"
    assert admitted(fresh(), row("q", "a", at=1), row("q", "b", at=2)) == ([1, 2], {}, 1)


def test_what_is_remembered_does_not_depend_on_the_order_of_shards() -> None:
    old, new = row("where is it", "parcel", at=1), row("where is it", "refund", at=2)
    for order in ([old, new], [new, old]):
        assert admitted(committed(*order), row("where is it", "refund", at=3)) == ([], {"duplicate": 1}, 0)


def test_opinions_do_not_contradict_each_other() -> None:
    up, down = (row("q", "a", at=n, kind="kto", label=label) for n, label in ((1, True), (2, False)))
    assert admitted(fresh(), up, down) == ([1, 2], {}, 0)
    assert admitted(committed(up, down), {**up, "offset": 3, "record_id": "x"}) == ([], {"duplicate": 1}, 0)


def test_a_record_said_again_counts_once_with_its_newest_word() -> None:
    rows = [row("q", answer, at=n, record_id="r") for n, answer in ((1, "a"), (3, "c"), (2, "b"))]
    done = fresh().admit(rows, POLICY)
    assert [one["completion"] for one in done.rows] == ["c"] and +done.dropped == Counter({"superseded": 2})


def test_what_a_record_says_last_holds_also_where_it_said_it_before() -> None:
    up, down = (row("q", "a", at=n, kind="kto", label=label, record_id="r") for n, label in ((1, True), (2, False)))
    again = {**up, "offset": 3, "submitted_ms": 3}
    for order in ([up, down], [down, up]):
        assert admitted(committed(*order), again) == ([3], {}, 0), "a thumb up, down and up again"
    for order in ([up, down, again], [again, down, up]):
        state = committed(*order)
        assert admitted(state, {**again, "offset": 4, "submitted_ms": 4}) == ([], {"duplicate": 1}, 0)
        assert admitted(state, {**down, "offset": 5}) == ([], {"superseded": 1}, 0), "an older word comes late"
    assert admitted(committed(up, down), {**again, "record_id": "another"}) == ([], {"duplicate": 1}, 0)


def test_records_of_two_models_are_two_though_their_ids_are_the_same() -> None:
    ours = row("where is it", at=2, record_id="order-17")
    theirs = {**row("where is that", at=1, record_id="order-17"), "model": "sales"}
    assert admitted(committed(ours), theirs) == ([1], {}, 0)
    assert admitted(committed(ours, theirs), {**ours, "offset": 3, "submitted_ms": 3}) == ([], {"duplicate": 1}, 0)


def test_a_correction_of_a_record_is_no_near_duplicate_of_what_it_corrects() -> None:
    typo, mended = row(LONG, at=1, record_id="r"), row(LONG + "!", at=2, record_id="r")
    assert admitted(committed(typo), mended) == ([2], {}, 0)


def test_near_duplicates_fall_with_the_same_answer_alone() -> None:
    same, other = row(LONG + "!", at=2), row(LONG + " !", "refund", at=3)
    for state, before in ((committed(row(LONG, at=1)), []), (fresh(), [row(LONG, at=1)])):
        kept, dropped, _ = admitted(state, *before, same, other)
        assert kept == [one["offset"] for one in before] + [3] and dropped == {"near duplicate": 1}
    assert admitted(committed(row(LONG, at=1)), row(LONG[:60], at=2)) == ([2], {}, 0)


def test_near_duplicates_stay_where_that_is_asked_for() -> None:
    policy = ModelPolicy(near_duplicate_similarity=1.0)
    assert admitted(committed(row(LONG, at=1)), row(LONG + " please", at=2), policy=policy) == ([2], {}, 0)


def test_a_signature_is_the_same_for_ever() -> None:
    """Rows of committed shards carry theirs: another algorithm in the library would make strangers of them."""
    assert signature(LONG).hex()[:32] == "eba07ef8ca04931c46d111bfff745187"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85, 0.95])
def test_the_estimate_is_near_the_true_similarity(share: float) -> None:
    chance, errors = random.Random(7), []
    for _ in range(40):
        words = [f"{chance.randrange(10**6):06d}" for _ in range(60)]
        changed = [w if chance.random() < share else f"{chance.randrange(10**6):06d}" for w in words]
        one, two = " ".join(words), " ".join(changed)
        a, b = ({text[n : n + 5] for n in range(len(text) - 4)} for text in (one, two))
        estimate = similarity(*(np.frombuffer(signature(text), dtype=np.uint8) for text in (one, two)))
        errors.append(estimate - len(a & b) / len(a | b))
    assert abs(float(np.mean(errors))) < 0.03 and max(map(abs, errors)) < 0.25


def test_the_index_forgets_the_oldest_generation_alone() -> None:
    index, salt, name = NearIndex(generation=4), np.zeros(1, dtype=np.uint64), np.ones(1, dtype=np.uint64)
    marks = [np.frombuffer(signature(f"{LONG} {n * 7919} {n}"), dtype=np.uint8)[None] for n in range(12)]
    for one in marks:
        index.add(one, salt, name)
    found = [bool(index.find(one, salt, 1.0)[0][0]) for one in marks]
    assert found == [False] * 4 + [True] * 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**9)), max_size=12), max_size=12))
def test_runs_are_a_dict(batches: list[list[tuple[int, int]]]) -> None:
    runs, expected = Runs(), {}
    for batch in batches:
        runs.add(np.array([k for k, _ in batch], dtype=np.uint64), np.array([v for _, v in batch], dtype=np.int64))
        for key, value in batch:
            expected[key] = value
    keys = np.arange(45, dtype=np.uint64)
    assert runs.find(keys).tolist() == [expected.get(int(key), -1) for key in keys]
    assert len(runs) <= 2 * len(expected) + 1


def test_augmented_rows_are_marked_and_train_only_and_the_same_again() -> None:
    policy = ModelPolicy(augment=list(WAYS), test_share=0.5)
    rows = [row(f"my parcel number {n * n * 7919} is {n}.", at=n, policy=policy) for n in range(20)]
    rows = fresh().admit(rows, policy).rows
    made = augmented(rows, policy)
    sources = {one["record_id"]: one for one in rows}
    assert made == augmented(rows, policy) and augmented(rows, POLICY) == []
    assert {one["split"] for one in rows} == {"train", "test"} and {one["split"] for one in made} == {"train"}
    assert {one["origin"] for one in made} == {"augmented"}
    for one in made:
        source = sources[one["record_id"].rsplit("/", 1)[0]]
        assert source["split"] == "train" and one["input_hash"] != source["input_hash"]
        assert one["source_record"] == source["record_id"] and not one["judges"] and one["question"] == source["question"]
        assert one["completion"] == source["completion"] and one["subject_id"] == source["subject_id"]
    assert len(made) == 3 * sum(one["split"] == "train" for one in rows)


def test_what_was_augmented_is_not_remembered_as_said() -> None:
    policy = ModelPolicy(augment=["unpunctuated"], test_share=0.0)
    (source,) = fresh().admit([row("my parcel has not arrived yet.", at=1)], policy).rows
    (made,) = augmented([source], policy)
    said = row("my parcel has not arrived yet", "refund", at=2)
    assert said["input_hash"] == made["input_hash"]
    assert admitted(committed(source, made), said) == ([2], {}, 0)


def test_band_keys_differ_by_salt() -> None:
    mark = np.frombuffer(signature(LONG), dtype=np.uint8)[None]
    one, two = (near.band_keys(mark, np.array([salt], dtype=np.uint64)) for salt in (1, 2))
    assert not set(one.ravel().tolist()) & set(two.ravel().tolist())


def test_a_class_is_what_three_people_said() -> None:
    rows = [row(f"question number {n}", answer, at=n, subject_id=who) for n, (answer, who) in enumerate([
        ("parcel", "a"), ("parcel", "b"), ("parcel", "c"), ("parcel", "c"), ("my name is Jane", "a"), ("my name is Jane", "a"), ("ok", "b"),
    ])]  # fmt: skip
    assert counted(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA))["rows_by_class"] == {"parcel": 4}


@pytest.mark.parametrize("seed", range(6))
def test_whoever_started_again_goes_on_as_whoever_did_not(seed: int) -> None:
    """The state is a function of committed rows: rebuilt between any two batches it admits the same."""
    dice = random.Random(seed)
    things = ["the jacket", "the lamp", "the very long garden hose that was on offer last week", "tea"]
    lived, rows = fresh(), []
    for at in range(0, 240, 12):
        batch = [
            row(
                f"where is {dice.choice(things)}{dice.choice(['', '?', ' please'])}", dice.choice(["a", "b", "c"]), at + n,
                subject_id=f"person {dice.randrange(9)}" if dice.random() < 0.8 else "",
                conversation_id=f"talk {dice.randrange(12)}" if dice.random() < 0.5 else "",
            )
            for n in range(12)
        ]  # fmt: skip
        again = fresh()
        for some in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            again.remember(pa.Table.from_pylist(some, schema=SHARD_SCHEMA).select(REMEMBERED), {"support": POLICY})
        one, other = (state.admit([dict(entry) for entry in batch], POLICY) for state in (lived, again))
        assert one.rows == other.rows and +one.dropped == +other.dropped and one.contradictions == other.contradictions
        rows += one.rows
    assert len(rows) < 200 and {entry["kind"] for entry in rows} == {"sft", "asked"}


def test_a_side_that_an_import_names_holds_for_its_person_from_then_on() -> None:
    """Not from the next start on: feedback by somebody whose imported row judges must not teach."""
    named = next(n for n in (f"person {i}" for i in range(99)) if split_of(n, SPLIT_KEY, 0.0, POLICY.test_share) == "train")
    state = fresh()
    first = row("where is it", at=1, subject_id=named) | {"split": "test"}
    (kept,) = state.admit([first], POLICY).rows
    later = row("and when does it come", at=2, subject_id=named)
    again = committed(kept)
    assert [one.admit([dict(later)], POLICY).rows[0]["split"] for one in (state, again)] == ["test", "test"]
