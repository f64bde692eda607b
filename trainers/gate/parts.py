"""Which rows show what a candidate is for, and which that it has forgotten nothing: by when they were said.

Old and new are relative to what the job answers, never to which job saw a row: for a drift, the moment of the change;
otherwise the newest row that the champion was trained on. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.policy import MOST_TEST_ROWS, must_be_better
from trainers.rows import JudgingRow

RECENT, OLDER = "recent", "older"


@dataclass(frozen=True)
class Part:
    """Rows that are judged together: whether the candidate must be better on them, or only no worse."""

    name: str
    rows: tuple[JudgingRow, ...]
    better: bool


def parted(
    tests: Sequence[JudgingRow], *, reason: str, accept: str = "", changed_ms: int = 0, newest_row_ms: int = 0
) -> list[Part]:
    """Recent and older rows, at most `MOST_TEST_ROWS` of each, chosen by hash (of all rows, recent ones would be few
    after a year); a part without rows is left out, but never the one that must be better.

    `changed_ms` is when a drift began, `newest_row_ms` when the newest row that the champion learned from was said
    (both Unix ms; 0 = not known, or no champion: then all rows are recent).
    """
    since = changed_ms if reason == "drift" and changed_ms else newest_row_ms
    recent = tuple(one for one in tests if not since or (one.row.dated and one.row.said_ms > since))
    late = set(map(id, recent))
    older = tuple(one for one in tests if id(one) not in late)
    better = must_be_better(reason, accept)
    parts = [Part(RECENT, _some(recent), better), Part(OLDER, _some(older), False)]
    return [part for part in parts if part.rows or part.better]


def _some(rows: Sequence[JudgingRow]) -> tuple[JudgingRow, ...]:
    """The same choice as data grows."""
    if len(rows) <= MOST_TEST_ROWS:
        return tuple(rows)
    return tuple(sorted(rows, key=lambda one: (one.row.question, one.row.fact, one.row.unit))[:MOST_TEST_ROWS])
