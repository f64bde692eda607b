"""Whose row a row is, and on which side it lies.

A row's unit is its subject, else its conversation, else its question. A subject under which many people speak is
shared from its SHARED_AT-th row on, for good: later rows count by conversation or question, those before keep unit and
side, and so does a conversation that has begun. (A process counts the rows that it dropped, too, until it starts
again.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

from schemas.events import SubjectShared
from schemas.identity import split_of, subject_key
from schemas.policy import ModelPolicy
from streams.prepare.runs import Columns, Tally, key_of, keys_of

SHARED_AT = 200
# With so many rows and none of them held out, the next new unit is.
TEST_BY = 100
# What no person said counts for nobody: it teaches, but never judges.
MADE_UP = ("synthetic", "augmented")
Row = dict[str, Any]


class People:
    """What committed rows say of who speaks; `key` is `schemas.identity.split_key`."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._rows = Tally()  # (model, subject) → rows as a unit of its own
        self._begun = Tally()  # (model, subject, conversation) → 1 where it lies with its subject
        self._units = Tally()  # (model, unit) → 1
        self._shared: set[str] = set()
        self._model_rows: Counter[str] = Counter()
        self._tested: set[str] = set()  # models with a test unit
        self._sides: dict[tuple[str, str], str] = {}  # of units that do not lie where their hash says

    def share(self, events: Iterable[SubjectShared]) -> None:
        """Note subjects that were found to be shared before."""
        self._shared.update(event.subject_key for event in events)

    def remember(self, model: str, columns: Columns, policy: ModelPolicy) -> None:
        """Take in committed rows of one model that people said, the oldest first."""
        units, subjects, talks, sides = (columns[name] for name in ("unit", "subject_id", "conversation_id", "split"))
        self._model_rows[model] += len(units)
        if "test" in sides:
            self._tested.add(model)
        self._units.add(keys_of(repeat(model), units), 1)
        own = [(subject, talk) for unit, subject, talk in zip(units, subjects, talks, strict=True) if unit == subject]
        self._rows.add(keys_of(repeat(model), (subject for subject, _ in own)))
        begun = [(subject, talk) for subject, talk in own if talk]
        self._begun.add(keys_of(repeat(model), *zip(*begun, strict=True)) if begun else keys_of(()), 1)
        latest = {place: number for number, place in enumerate(zip(units, sides, strict=True))}
        by_hash = {unit: self._side(unit, policy) for unit, _ in latest}
        for unit, side in sorted(latest, key=latest.__getitem__):
            if side != by_hash[unit]:
                self._sides[model, unit] = side

    def assign(self, rows: Sequence[Row], policy: ModelPolicy) -> list[SubjectShared]:
        """Give each row of one model its unit and its side (a side that it has already stays); what became shared."""
        self._load(rows)
        shared = []
        for row in rows:
            row["unit"] = self._unit_of(row)
        self._units.load([key_of(*_unit(row)) for row in rows])
        for row in rows:
            if row["split"] not in ("", self._side(row["unit"], policy)):
                self._sides[_unit(row)] = row["split"]
            row["split"] = row["split"] or self._split_of(row, policy)
            self._note(row)
            if row["unit"] == row["subject_id"] and self._rows[_subject(row)] == SHARED_AT:
                name = subject_key(self._key, row["model"], row["subject_id"])
                self._shared.add(name)
                shared.append(SubjectShared(model=row["model"], subject_key=name, rows=SHARED_AT))
                self._part(rows, row)
        return shared

    def _part(self, rows: Sequence[Row], last: Row) -> None:
        """The rows of the batch behind the one that made their subject shared."""
        behind = next(number for number, row in enumerate(rows) if row is last) + 1
        for row in rows[behind:]:
            if row["unit"] == row["subject_id"] == last["subject_id"]:
                row["unit"] = self._unit_of(row)

    def _unit_of(self, row: Row) -> str:
        subject, conversation = row["subject_id"], row["conversation_id"]
        if conversation == row["inference_id"]:  # an answer is no conversation
            conversation = ""
        if row["named"]:
            shared = self._shared and subject_key(self._key, row["model"], subject) in self._shared
            if not shared or (conversation and self._begun[_conversation(row)]):
                return str(subject)
        if conversation:
            return f"conversation-{conversation}"
        return f"question-{row['question']}" if row["question"] else str(subject)  # a document asks nothing

    def _split_of(self, row: Row, policy: ModelPolicy) -> str:
        model, unit = _unit(row)
        side = self._sides.get((model, unit))
        if side is None:
            side = self._side(unit, policy)
            wanting = policy.test_share > 0 and model not in self._tested and self._model_rows[model] >= TEST_BY
            if wanting and side != "test" and not self._units[key_of(model, unit)]:
                side = self._sides[model, unit] = "test"
        return side

    def _side(self, unit: str, policy: ModelPolicy) -> str:
        return split_of(unit, self._key, policy.validation_share, policy.test_share)

    def _load(self, rows: Sequence[Row]) -> None:
        self._rows.load([_subject(row) for row in rows])
        self._begun.load([_conversation(row) for row in rows])
        self._units.load([key_of(*_unit(row)) for row in rows])

    def _note(self, row: Row) -> None:
        self._model_rows[row["model"]] += 1
        self._units[key_of(*_unit(row))] = 1
        if row["split"] == "test":
            self._tested.add(row["model"])
        if row["unit"] == row["subject_id"]:
            self._rows[_subject(row)] += 1
            if row["conversation_id"]:
                self._begun[_conversation(row)] = 1


def _unit(row: Row) -> tuple[str, str]:
    return row["model"], row["unit"]


def _subject(row: Row) -> int:
    return key_of(row["model"], row["subject_id"])


def _conversation(row: Row) -> int:
    return key_of(row["model"], row["subject_id"], row["conversation_id"])
