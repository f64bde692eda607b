"""Which rows show what a candidate is for, and which that it has forgotten nothing: by when they were said.

Old and new are relative to what the job answers, never to which job saw a row: for a drift, the moment of the change;
otherwise the newest row that the champion was trained on. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.rows import JudgingRow

# What a job was asked for that a candidate need not be better for.
NO_BETTER_NEEDED = ("age", "erasure")
NO_WORSE = "no worse"


@dataclass(frozen=True)
class Part:
    """Rows that are judged together: whether the candidate must be better on them, or only no worse."""

    name: str
    rows: tuple[JudgingRow, ...]
    better: bool


def parted(
    tests: Sequence[JudgingRow], *, reason: str, accept: str = "", changed_ms: int = 0, newest_row_ms: int = 0
) -> list[Part]:
    """Recent and older rows; a part without rows is left out, but never the one that must be better.

    `changed_ms` is when a drift began, `newest_row_ms` when the newest row that the champion learned from was said
    (both Unix ms; 0 = not known, or no champion: then all rows are recent).
    """
    since = changed_ms if reason == "drift" and changed_ms else newest_row_ms
    recent = tuple(one for one in tests if not since or (one.row.dated and one.row.said_ms > since))
    late = set(map(id, recent))
    older = tuple(one for one in tests if id(one) not in late)
    better = reason not in NO_BETTER_NEEDED and accept != NO_WORSE
    parts = [Part("recent", recent, better), Part("older", older, False)]
    return [part for part in parts if part.rows or part.better]
