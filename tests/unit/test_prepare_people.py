"""Whose row a row is, which question it asks, on which side it lies: however it comes, and after a restart."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa

from schemas.identity import split_of
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams.prepare.admit import REMEMBERED, Admission, Admitted
from streams.prepare.people import SHARED_AT, TEST_BY
from streams.prepare.questions import FEW, PERIOD_MS, WORDED
from tests.ids import SPLIT_KEY
from tests.unit.test_prepare_admit import LONG, POLICY, fresh, row

Row = dict[str, Any]
WORDS = LONG.split()


def text(number: int) -> str:
    """A question that is like no other."""
    return f"{number} {' '.join(random.Random(number).sample(WORDS, 9))} {number * 7919}"


def said(count: int, start: int = 0, **fields: Any) -> list[Row]:
    return [row(text(n), f"answer {n % 3}", at=n, **fields) for n in range(start, start + count)]


def play(rows: list[Row], batch: int = 50, policy: ModelPolicy = POLICY) -> tuple[Admission, list[Row], list[Any]]:
    """All rows by the batch; the state, what was kept, which subjects became shared."""
    state, kept, shared = fresh(), [], []
    for start in range(0, len(rows), batch):
        done = state.admit(rows[start : start + batch], policy)
        kept += done.rows
        shared += done.shared
    return state, kept, shared


def again(kept: list[Row], shared: list[Any], policy: ModelPolicy = POLICY) -> Admission:
    """The state as a restart rebuilds it, from shards in another order."""
    state = fresh()
    state.share(shared)
    for some in (kept[len(kept) // 2 :], kept[: len(kept) // 2]):
        state.remember(pa.Table.from_pylist(some, schema=SHARD_SCHEMA).select(REMEMBERED), {"support": policy})
    return state


def one(state: Admission, asked: Row, policy: ModelPolicy = POLICY) -> Row:
    done: Admitted = state.admit([asked], policy)
    assert done.rows, done.dropped
    return done.rows[0]


def test_the_unit_is_the_subject_else_the_conversation_else_the_question() -> None:
    rows = [row(LONG, at=1, subject_id="jane", conversation_id="c"), row(LONG, "refund", at=2, conversation_id="c"),
            row(LONG, "other", at=3), row(LONG + "!", "again", at=4)]  # fmt: skip
    units = [kept["unit"] for kept in fresh().admit(rows, POLICY).rows]
    assert units == ["jane", "conversation-c", f"question-{rows[0]['question']}", f"question-{rows[0]['question']}"]


def test_a_subject_is_shared_from_its_two_hundredth_row_on_for_good() -> None:
    rows = said(SHARED_AT + 30, subject_id="api")
    state, kept, shared = play(rows)
    before, behind = kept[:SHARED_AT], kept[SHARED_AT:]
    assert {r["unit"] for r in before} == {"api"} and len({r["split"] for r in before}) == 1
    assert len({r["unit"] for r in behind}) == 30 and all(r["unit"].startswith("question-") for r in behind)
    assert len(shared) == 1 and "api" not in shared[0].subject_key
    assert {r["split"] for r in behind} == {"train", "test"}, "the split is no longer all or nothing"
    for later in (state, again(kept, shared)):
        assert one(later, row(text(9_000), at=9_000, subject_id="api"))["unit"].startswith("question-")
        assert one(later, row(text(9_001), at=9_001, subject_id="jane"))["unit"] == "jane"


def test_a_conversation_never_lies_on_two_sides() -> None:
    begun = said(20, subject_id="api", conversation_id="first")
    state, kept, shared = play([*begun, *said(SHARED_AT, start=20, subject_id="api")])
    for later in (state, again(kept, shared)):
        assert one(later, row(text(8_000), at=8_000, subject_id="api", conversation_id="first"))["unit"] == "api"
        assert one(later, row(text(8_001), at=8_001, subject_id="api", conversation_id="new"))["unit"] == "conversation-new"


def test_the_batches_do_not_matter() -> None:
    rows = said(SHARED_AT + 60, subject_id="api")
    drip, flood = (play([dict(r) for r in rows], batch)[1] for batch in (7, 1_000))
    assert [(r["unit"], r["split"]) for r in drip] == [(r["unit"], r["split"]) for r in flood]


def test_a_model_without_a_test_unit_gets_one() -> None:
    train = next(f"u{n}" for n in range(50) if split_of(f"u{n}", SPLIT_KEY, 0.0, 0.2) == "train")
    others = [name for name in (f"v{n}" for n in range(60)) if split_of(name, SPLIT_KEY, 0.0, 0.2) == "train"]
    state, kept, shared = play(said(TEST_BY, subject_id=train))
    assert {r["split"] for r in kept} == {"train"}
    for later in (state, again(kept, shared)):
        asked = [row(text(7_000 + n), at=7_000 + n, subject_id=name) for n, name in enumerate((train, *others[:3], others[0]))]
        assert [r["split"] for r in later.admit(asked, POLICY).rows] == ["train", "test", "train", "train", "test"]
    forced = next(r for r in later.admit([row(text(6_000), at=9_000, subject_id=others[0])], POLICY).rows)
    assert forced["split"] == "test", "for good"


def askers(count: int, question: str = LONG, start: int = 0) -> list[Row]:
    return [row(question, "parcel", at=start + n, subject_id=f"customer {start + n}", label=True) for n in range(count)]


def test_each_later_asker_of_a_common_question_keeps_no_words() -> None:
    state, kept, shared = play(askers(60))
    worded = [r for r in kept if r["kind"] == "sft"]
    by_split = {side: sum(r["split"] == side for r in worded) for side in ("train", "test")}
    assert len(kept) == 60 and all(count <= WORDED for count in by_split.values()) and by_split["train"] == WORDED
    assert {r["question"] for r in kept} == {kept[0]["question"]} and len({r["unit"] for r in kept}) == 60
    for later in (state, again(kept, shared)):
        assert one(later, askers(1, start=500)[0])["kind"] == "asked"
    month = row(LONG, "parcel", at=PERIOD_MS + 1, subject_id="in another month")
    assert one(again(kept, shared), month)["kind"] == "sft"


def test_under_five_askers_keep_their_words() -> None:
    assert [r["kind"] for r in play(askers(FEW - 1))[1]] == ["sft"] * (FEW - 1)


def test_one_asker_alone_makes_no_question_common() -> None:
    rows = [row(LONG, f"answer {n}", at=n, subject_id="jane") for n in range(30)]
    assert {r["kind"] for r in play(rows)[1]} == {"sft"}


def test_near_copies_are_one_question_whoever_asks_and_whatever_stands_before() -> None:
    near = [LONG, LONG + "!", LONG + " please", "Oh, " + LONG]
    rows = [row(one_of, "parcel", at=n, subject_id=f"s{n}") for n, one_of in enumerate(near)]
    state, kept, shared = play(rows)
    assert len({r["question"] for r in kept}) == 1
    assert one(again(kept, shared), row(LONG + " ?", at=50, subject_id="late"))["question"] == kept[0]["question"]
    other = one(state, row(text(3), at=51, subject_id="late"))
    assert other["question"] != kept[0]["question"]


def test_what_no_person_said_counts_for_nobody() -> None:
    made = [row(LONG, "parcel", at=n, origin="synthetic", record_id=f"m{n}", source_record=f"r{n}") for n in range(40)]
    _, kept, _ = play([*made, *askers(FEW - 1, start=100)])
    assert {r["kind"] for r in kept} == {"sft"}
    assert {r["unit"] for r in kept if r["origin"] == "synthetic"} == {""}


def test_what_five_were_told_is_the_companys_own() -> None:
    def told(number: int) -> Row:
        return row(text(number), f"Write to help@acme.example, case {number}.", at=number, subject_id=f"customer {number}")

    _, kept, shared = play([told(n) for n in range(FEW)], batch=1)
    assert ["[email]" in r["completion"] for r in kept] == [True] * (FEW - 1) + [False]
    assert [r["judges"] for r in kept] == [False] * (FEW - 1) + [True]
    fifth = one(again(kept[: FEW - 1], shared), told(99))
    assert fifth["completion"] == "Write to help@acme.example, case 99." and fifth["judges"]
    assert fifth["answer_masks"] == kept[0]["answer_masks"], "named, so that whoever starts again counts it too"
    assert "[email]" in one(again(kept[: FEW - 2], shared), told(98))["completion"]
    same = [{**told(n), "subject_id": "jane"} for n in range(60, 70)]
    assert all("[email]" in r["completion"] for r in play(same)[1]), "one person alone was given it"


def test_documents_of_nobody_are_not_one_persons() -> None:
    texts = ["Our shops are open from nine to six.", "Returns are free for thirty days."]
    rows = [row("", text_of, at=n, kind="document") for n, text_of in enumerate(texts)]
    assert len({kept["unit"] for kept in fresh().admit(rows, POLICY).rows}) == 2
