"""A promotion is undone where the version before is surely better on the same questions, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schemas.policy import ModelPolicy
from trainers.gate.review import MOST_ASKED, asked_since, surely_worse
from trainers.rows import JudgingRow, Row, Rows

POLICY = ModelPolicy()


def row(number: int, *, said_ms: int = 2_000, unit: str = "", **fields: Any) -> Row:
    return Row(
        ({"role": "user", "content": f"question {number}"},), "answer", "train", f"record-{number}", (said_ms, 0, number),
        unit=unit or f"person-{number}", question=f"q{number}", fact=f"f{number}", **{"sampled": "all", **fields},
    )


def rows(count: int, per_person: int = 1, **fields: Any) -> list[JudgingRow]:
    return [JudgingRow(row(n, unit=f"person-{n // per_person}", **fields), 1.0, False) for n in range(count)]


def scores(rng: np.random.Generator, count: int, quality: float) -> np.ndarray:
    return (rng.random(count) < quality).astype(float)


def test_a_version_that_is_thirty_points_worse_is_undone_at_the_first_look() -> None:
    rng, undone = np.random.default_rng(0), 0
    for _ in range(40):
        new, old = scores(rng, 100, 0.5), scores(rng, 100, 0.85)
        undone += not surely_worse(rows(100), new, old, POLICY, live=0.5, look=1).passed
    assert undone >= 36


@pytest.mark.slow
def test_of_equal_versions_hardly_one_in_a_hundred_is_undone_over_all_looks() -> None:
    rng, undone = np.random.default_rng(1), 0
    for _ in range(60):
        new, old = scores(rng, 200, 0.7), scores(rng, 200, 0.7)
        looks = [surely_worse(rows(n), new[:n], old[:n], POLICY, live=0.7, look=k) for k, n in enumerate((50, 100, 200), 1)]
        undone += any(not check.passed for check in looks)
    assert undone <= 2


def test_a_bad_week_is_not_a_bad_version() -> None:
    """Both are wrong as often: the questions became harder."""
    rng = np.random.default_rng(2)
    same = scores(rng, 150, 0.3)
    check = surely_worse(rows(150), same, same, POLICY, live=0.3, look=1)
    assert check.passed and check.difference == 0 and check.champion_mean == pytest.approx(0.3, abs=0.1)


def test_what_people_picked_to_complain_of_is_weighted_by_live_quality() -> None:
    """On failures alone whatever came before looks better; weighted, it does not."""
    new = np.array([0.0] * 80 + [1.0] * 20)
    old = np.array([1.0, 0.0] * 40 + [1.0] * 15 + [0.0] * 5)
    picked = rows(100, sampled="")
    assert surely_worse(picked, new, old, POLICY, live=0.9, look=1).passed
    told = surely_worse(rows(100), new, old, POLICY, live=0.9, look=1)
    assert not told.passed and told.bound > POLICY.max_live_loss, "of a sample of all the same is proof"


@pytest.mark.parametrize("new", [0.0, 1.0])
def test_where_nothing_but_failures_or_successes_was_reported_nothing_is_undone(new: float) -> None:
    check = surely_worse(rows(100, sampled=""), np.full(100, new), np.ones(100), POLICY, live=0.6, look=1)
    assert check.passed and "not known" in check.reason


@pytest.mark.parametrize(("count", "per_person"), [(49, 1), (100, 6)])
def test_too_few_questions_or_people_undo_nothing(count: int, per_person: int) -> None:
    check = surely_worse(rows(count, per_person), np.zeros(count), np.ones(count), POLICY, live=0.5, look=1)
    assert check.passed and "are needed" in check.reason


def test_asked_are_answered_questions_since_the_promotion_from_both_sides_of_the_split() -> None:
    old, new = row(1, said_ms=1_000), row(2)
    undated, contested, masked = row(3, dated=False), row(4), row(5, judges=False)
    found = asked_since(Rows(said=[old, new, undated, contested, masked], confirmed=[row(6)], contested={"f4"}), 1_500)
    assert sorted(one.row.record_id for one in found) == ["record-2", "record-6"]
    many = asked_since(Rows(said=[row(n) for n in range(500)]), 1_500)
    assert len(many) == MOST_ASKED and many == asked_since(Rows(said=[row(n) for n in reversed(range(500))]), 1_500)
