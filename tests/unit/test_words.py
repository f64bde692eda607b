"""Whose word overrules whose, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.words import Word, standing

Said = tuple[str, str] | tuple[str, str, bool]


def words(*said: Said) -> list[Word]:
    return [Word(one[1], one[0], (n, 0, n), len(one) > 2) for n, one in enumerate(said)]


CASES: dict[str, tuple[list[Word], set[str]]] = {
    "one word": (words(("ann", "a")), {"a"}),
    "the same unit says it anew": (words(("ann", "a"), ("ann", "b")), {"b"}),
    "another unit says something else": (words(("ann", "a"), ("bob", "b")), {"a", "b"}),
    "two say something else": (words(("ann", "a"), ("bob", "b"), ("eve", "b")), {"a", "b"}),
    "three say something else": (words(("ann", "a"), ("bob", "b"), ("eve", "b"), ("gus", "b")), {"b"}),
    "one says it three times": (words(("ann", "a"), ("bob", "b"), ("bob", "b"), ("bob", "b")), {"a", "b"}),
    "who may correct": (words(("ann", "a"), ("eve", "a"), ("import", "b", True)), {"b"}),
    "somebody after who may correct": (words(("import", "b", True), ("ann", "a")), {"a", "b"}),
    "three after who may correct": (words(("import", "b", True), ("ann", "a"), ("bob", "a"), ("eve", "a")), {"a"}),
    "there and back": (words(("ann", "a"), ("ann", "b"), ("ann", "a")), {"a"}),
    "all changed their minds": (words(("ann", "a"), ("bob", "b"), ("bob", "a")), {"a"}),
}


@pytest.mark.parametrize("case", CASES)
def test_whose_word_holds(case: str) -> None:
    said, expected = CASES[case]
    assert standing(said, "trusted") == expected
    assert standing(said, "anyone") == {said[-1].answer}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans()), min_size=1), st.randoms())
def test_the_order_of_reading_does_not_matter(said: list[tuple[str, str, bool]], chance: object) -> None:
    ordered = [Word(answer, unit, (n, 0, 0), may) for n, (unit, answer, may) in enumerate(said)]
    mixed = list(ordered)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    for corrections in ("anyone", "trusted"):
        assert standing(mixed, corrections) == standing(ordered, corrections)
        assert ordered[-1].answer in standing(ordered, corrections), "the newest word is never lost"
