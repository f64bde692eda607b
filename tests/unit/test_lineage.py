"""Lineage's own decisions: what a row was to a job, why there is none, which versions still carry it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.lineage import drop_reason, role
from deploy.version_lineage import Family, totals
from streams.prepare.rules import RULES_VERSION


def held(record: str = "r", at: int = 1, **fields: Any) -> dict[str, Any]:
    """A submission with its row in a shard."""
    one = {"record": record, "ts_ms": at, "_partition": 0, "_offset": at}
    return {"one": one, "kind": "sft", "split": "train", **fields}


@pytest.mark.parametrize(("row", "data", "expected"), [
    (held(), "new", "taught"),
    (held(), "replay", "may have taught"),
    (held(split="test"), "new", "judged on"),
    (held(split="test"), "replay", "judged on"),
    (held(split="validation"), "new", "held out"),
    (held(kind="preference"), "new", "not trained on"),
])  # fmt: skip
def test_what_a_row_was_to_a_job(row, data, expected) -> None:
    assert role(row, data, {"new": [], "replay": [], data: [row]}) == expected


def test_a_corrected_row_taught_nothing() -> None:
    early, late, another = held(at=1), held(at=2), held("another", at=3)
    assert role(early, "new", {"new": [early, late], "replay": []}) == "superseded"
    assert role(late, "new", {"new": [early, late, another], "replay": []}) == "taught"
    assert role(early, "replay", {"new": [late], "replay": [early]}) == "superseded", "new data comes before replayed"
    assert role(early, "new", {"new": [early], "replay": [late]}) == "taught"


SUBMITTED = {
    "model": "support", "kind": "sft", "messages": "[]", "prompt": "Where?", "completion": "", "chosen": "", "rejected": "",
    "label": None, "record_id": "", "subject_id": "", "conversation_id": "", "inference_id": "", "origin": "client",
    "ce_id": "training.raw/0/1", "ce_source": "", "ts_ms": 1,
}  # fmt: skip


@pytest.mark.parametrize(("fields", "dropped", "rules", "expected"), [
    ({}, {"repetitive": 3}, "0", "repetitive"),
    ({}, {"no answer": 1, "duplicate": 1}, RULES_VERSION, "no answer"),
    ({"completion": "There."}, {"no answer": 1, "duplicate": 1}, RULES_VERSION, "duplicate"),
    ({"messages": '[{"role": "assistant", "content": "x"}]'}, {"no answer": 1, "no user turn to answer": 1}, RULES_VERSION,
     "no user turn to answer"),
    ({"completion": "There."}, {"no answer": 1, "near duplicate": 1, "superseded": 2}, RULES_VERSION, "near duplicate or superseded"),
    ({}, {"no answer": 1, "duplicate": 1}, "0", "duplicate or no answer"),
    ({"completion": "There."}, {"no answer": 1, "too long": 1}, RULES_VERSION, "no answer or too long"),
    ({}, {}, "0", "not known"),
])  # fmt: skip
def test_why_a_submission_has_no_row(fields, dropped, rules, expected) -> None:
    shard = {"dropped": json.dumps(dropped), "rules_version": rules, "erased": 0}
    assert drop_reason(shard, {**SUBMITTED, **fields}) == expected


def test_who_was_forgotten_has_no_row() -> None:
    shard = {"dropped": '{"no answer": 1}', "rules_version": RULES_VERSION, "erased": 1}
    assert drop_reason(shard, {**SUBMITTED, "completion": "There."}) == "erased"


def test_a_version_serves_itself_or_in_its_descendants() -> None:
    relatives = Family("support", frozenset({4}), {1: 0, 2: 1, 3: 1, 4: 2})
    assert relatives.line(4) == [4, 2, 1]
    assert [relatives.serves(number) for number in (1, 2, 3, 4)] == ["as support@4", "as support@4", "no", "now"]
    assert Family("support").serves(1) == "no"
    assert Family("support", frozenset({2}), {1: 2, 2: 1}).line(2) == [2, 1], "a circle would be a bug; it must not hang"


def test_totals_add_up_and_do_without_what_has_not_landed() -> None:
    landed = {"data": "new", "rows": 3, "kinds": {"sft": 2, "kto": 1}, "sft_splits": {"train": 2}}
    shards = [landed, {**landed, "data": "replay"}, {"data": "replay", "rows": 5, "kinds": None, "sft_splits": None}]
    found = totals(shards)
    assert found["new"] == {"shards": 1, "rows": 3, "kinds": {"sft": 2, "kto": 1}, "sft_splits": {"train": 2}}
    assert found["replay"]["shards"] == 2 and found["replay"]["rows"] == 8
    assert found["all"] == {"shards": 3, "rows": 11, "kinds": {"sft": 4, "kto": 2}, "sft_splits": {"train": 4}}
