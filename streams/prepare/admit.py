"""Which rows of a batch are admitted, given the rows that committed shards hold already.

In this order: the question, whose row it is and its side (`streams.prepare.questions`, `.people`); a record said again
(its newest word counts); the same again by the same unit, exactly or nearly; where anybody may correct anybody, an
older answer that comes late; more askers of a common question, whose rows stay without words. Which of several answers
stands is a job's to say (`streams.words`): it sees all of them. The state is a pure function of committed rows:
`remember` rebuilds it, then without those that were erased since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.events import SubjectShared
from schemas.policy import ModelPolicy
from schemas.shards import HASH_DIGITS
from streams.prepare.masks import Masks
from streams.prepare.people import MADE_UP, People
from streams.prepare.questions import Questions, is_known
from streams.prepare.runs import Columns, Tally, key_of, keys_of
from streams.prepare.said import Said

# The columns of a shard that the state is rebuilt from.
REMEMBERED = [
    "model", "record_id", "kind", "subject_id", "unit", "conversation_id", "split", "question", "input_hash",
    "content_hash", "answer_hash", "minhash", "answer_masks", "submitted_ms", "origin",
]  # fmt: skip
HASHES = ("input_hash", "content_hash", "answer_hash")
Row = dict[str, Any]


@dataclass
class Admitted:
    """The rows that are kept, in their order; what was dropped, by reason; how many contradict an earlier row; which
    subjects turned out to be shared."""

    rows: list[Row]
    dropped: Counter[str] = field(default_factory=Counter)
    contradictions: int = 0
    shared: list[SubjectShared] = field(default_factory=list)


class Admission:
    """What committed rows say; see the module. `key` is `schemas.identity.split_key`."""

    def __init__(self, key: bytes) -> None:
        self._people, self._questions, self._masks = People(key), Questions(), Masks()
        self._facts, self._words = Said(), Said()  # the newest answer to a fact; the newest word of a unit on it
        self._records = Said()
        self._near = Tally()  # (model, question, unit, answer) → 1

    def share(self, events: Iterable[SubjectShared]) -> None:
        """Note the subjects that were found to be shared; call it before `remember`."""
        self._people.share(events)

    def remember(self, table: pa.Table, policies: Mapping[str, ModelPolicy]) -> None:
        """Take in the rows of committed shards (columns REMEMBERED), which may come in any order."""
        table = table.filter(pc.not_equal(table["origin"], "augmented")).sort_by("submitted_ms")
        for model in table["model"].unique().to_pylist():
            rows = table.filter(pc.equal(table["model"], model))
            people = rows.filter(pc.invert(pc.is_in(rows["origin"], pa.array(MADE_UP))))
            self._people.remember(model, people.to_pydict(), policies.get(model) or ModelPolicy())
            self._questions.remember(model, rows.filter(pc.not_equal(rows["question"], "")).to_pydict())
            self._hear(model, rows.to_pydict())
            masked = rows.filter(pc.greater(pc.coalesce(pc.list_value_length(rows["answer_masks"]), 0), 0)).to_pylist()
            self._masks.load(masked)
            for row in masked:
                self._masks.count(row)

    def _hear(self, model: str, columns: Columns) -> None:
        """Take in what rows of one model say, the oldest first."""
        times = np.array(columns["submitted_ms"], dtype=np.int64)
        sft = [kind in ("sft", "asked") for kind in columns["kind"]]
        hashes = {name: [value[:HASH_DIGITS] for value in columns[name]] for name in HASHES}
        about = [one if is_sft else other for is_sft, one, other in zip(
            sft, hashes["input_hash"], hashes["content_hash"], strict=True
        )]  # fmt: skip
        facts = keys_of(repeat(model), about)
        self._records.say_all(keys_of(repeat(model), columns["record_id"]), hashes["content_hash"], times)
        self._words.say_all(keys_of(facts.tolist(), columns["unit"]), hashes["answer_hash"], times)
        self._facts.say_all(facts, hashes["answer_hash"], times)
        opinions = zip(columns["unit"], hashes["content_hash"], strict=True)
        examples = zip(columns["question"], columns["unit"], hashes["answer_hash"], strict=True)
        alike = (
            (model, *example) if is_sft else (model, *opinion)
            for is_sft, example, opinion in zip(sft, examples, opinions, strict=True)
        )
        self._near.add(np.array([key_of(*parts) for parts in alike], dtype=np.uint64), 1)

    def admit(self, rows: Sequence[Row], policy: ModelPolicy) -> Admitted:
        """What becomes of a batch of one model's rows, which get their question, unit and side.

        The rows kept are remembered: call it once per batch, and start anew (`remember`) if the batch is aborted.
        """
        done = Admitted([])
        rows = _newest_of_each_record(rows, done.dropped)
        people = [row for row in rows if row["origin"] not in MADE_UP]
        self._questions.assign(rows, policy.near_duplicate_similarity)
        done.shared = self._people.assign(people, policy)
        self._load(rows)
        self._questions.load(people)
        for row in rows:
            reason = self._reason_against(row, policy, done)
            if reason:
                done.dropped[reason] += 1
                continue
            if row["origin"] not in MADE_UP and is_known(row["question"]) and not self._questions.ask(row):
                if row["kind"] != "sft":
                    done.dropped["common question"] += 1
                    continue
                row["kind"] = "asked"
            self._take(row)
            self._masks.open(row)
            done.rows.append(row)
        return done

    def _reason_against(self, row: Row, policy: ModelPolicy, done: Admitted) -> str:
        """Why a row is dropped, "" where it is not; counts what it contradicts."""
        when, content, answer = row["submitted_ms"], row["content_hash"], row["answer_hash"]
        own, word, fact = (
            said.of(key)
            for said, key in ((self._records, _record(row)), (self._words, _word(row)), (self._facts, _fact(row)))
        )
        moved = own is not None and not own.says(content)
        if own is not None and moved and own.time_ms > when:
            return "superseded"
        if word is not None and word.says(answer) and not moved:
            return "duplicate"
        if word is not None and word.time_ms > when:
            return "contradicted"
        if fact is not None and not fact.says(answer):
            if policy.corrections == "anyone" and fact.time_ms > when:
                return "contradicted"
            done.contradictions += fact.time_ms <= when
        news = word is None and not moved
        # A correction is news however much it is like a row of before.
        if news and policy.near_duplicate_similarity < 1 and is_known(row["question"]) and self._near[_alike(row)]:
            return "near duplicate"
        return ""

    def _load(self, rows: Sequence[Row]) -> None:
        self._records.load([_record(row) for row in rows])
        self._words.load([_word(row) for row in rows])
        self._facts.load([_fact(row) for row in rows])
        self._near.load([_alike(row) for row in rows])
        self._masks.load(rows)

    def _take(self, row: Row) -> None:
        when = row["submitted_ms"]
        self._records.say(_record(row), row["content_hash"], when)
        self._words.say(_word(row), row["answer_hash"], when)
        self._facts.say(_fact(row), row["answer_hash"], when)
        self._near[_alike(row)] = 1


def _record(row: Row) -> int:
    return key_of(row["model"], row["record_id"])


def _fact(row: Row) -> int:
    """What a row is about: an SFT row is one answer to what it is asked, any other is a fact of its own."""
    sft = row["kind"] in ("sft", "asked")
    return key_of(row["model"], (row["input_hash"] if sft else row["content_hash"])[:HASH_DIGITS])


def _word(row: Row) -> int:
    return key_of(_fact(row), row["unit"])


def _alike(row: Row) -> int:
    if row["kind"] not in ("sft", "asked"):  # an opinion is news, though it be on the same answer
        return key_of(row["model"], row["unit"], row["content_hash"][:HASH_DIGITS])
    return key_of(row["model"], row["question"], row["unit"], row["answer_hash"][:HASH_DIGITS])


def _newest_of_each_record(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    newest: dict[str, Row] = {}
    for row in rows:
        before = newest.get(row["record_id"])
        if before is None or row["submitted_ms"] >= before["submitted_ms"]:
            newest.pop(row["record_id"], None)
            newest[row["record_id"]] = row
    dropped["superseded"] += len(rows) - len(newest)
    return list(newest.values())
