"""Whose word overrules whose: one rule for preparation, jobs and hold-outs.

Where `corrections` is `anyone`, the newest answer to a question holds. Where it is `trusted`, a newer answer replaces
an older one of the same unit, or by a source that may correct, or once ENOUGH units have said the same newer answer;
till then both stand, and the question is contested: neither answer judges.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ENOUGH = 3


@dataclass(frozen=True, slots=True)
class Word:
    """One answer to a question: what (by its hash), of whom, when, and whether it may correct others."""

    answer: str
    unit: str
    order: tuple[int, int, int]
    may_correct: bool = False


def standing(words: Iterable[Word], corrections: str) -> frozenset[str]:
    """The answers that stand, of all that was ever said to one question; more than one: it is contested."""
    said = sorted(words, key=lambda word: word.order)
    if corrections == "anyone" or len(said) == 1:
        return frozenset(word.answer for word in said[-1:])
    held: dict[str, set[str]] = {}
    for word in said:
        for units in held.values():
            units.discard(word.unit)
        units = held.setdefault(word.answer, set())
        units.add(word.unit)
        if word.may_correct or len(units) >= ENOUGH:
            held = {word.answer: units}
        held = {answer: units for answer, units in held.items() if units}
    return frozenset(held)
