"""What is masked in answers, and what is not: a string that many people were given is the company's own.

Answers are stored with a mask in place of whatever names or numbers somebody. Once FEW units were given the same string
(a hotline, a shop's address) it is said as it is; cards, account numbers and keys never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streams.prepare.questions import FEW
from streams.prepare.runs import Tally, key_of

Row = dict[str, Any]


class Masks:
    """How many units were given each masked string, known by its keyed hash."""

    def __init__(self) -> None:
        self._units = Tally()  # (model, string) → units, as far as FEW
        self._given = Tally()  # (model, string, unit) → 1

    def load(self, rows: Sequence[Row]) -> None:
        """Have what is known of these rows' masks at hand."""
        masks = [(row, mask) for row in rows for mask in row["answer_masks"] or ()]
        self._units.load([_string(row, mask) for row, mask in masks])
        self._given.load([_unit(row, mask) for row, mask in masks])

    def count(self, row: Row) -> None:
        """Take in what is masked in a row."""
        for mask in row["answer_masks"] or ():
            if row["unit"] and not self._given[_unit(row, mask)]:
                self._given[_unit(row, mask)] = 1
                self._units[_string(row, mask)] = min(FEW, self._units[_string(row, mask)] + 1)

    def open(self, row: Row) -> None:
        """Count a row's masks; where all are the company's own its answer stands as it was said."""
        self.count(row)
        masks = row["answer_masks"] or ()
        if masks and row.get("open") and all(self._units[_string(row, mask)] >= FEW for mask in masks):
            row.update(row["open"], opened=True)  # what was masked stays named: whoever starts again counts it too


def _string(row: Row, mask: str) -> int:
    return key_of(row["model"], mask)


def _unit(row: Row, mask: str) -> int:
    return key_of(row["model"], mask, row["unit"])
