"""Plans for checks: what they need, what is missing, and what attempts on the same rows may spend."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from schemas.events import Check
from streams.planning import (
    FIRST,
    MOST_TEST_ROWS,
    Disagreement,
    Plan,
    attempt_confidence,
    disagreement,
    needed_rows,
    plan,
    required_n,
    shown_margin,
)
from tests.examples import example
from tests.paired import correlated, layout
from trainers.gate.statistics import non_inferiority, superiority


def planned(rows: int, units: int, **changes: Any) -> Plan:
    return plan(rows, units, **({"margin": 0.05, "confidence": 0.95, "minimum_n": 50, "small_data": "widen"} | changes))


# --- plans


def test_rows_of_few_people_are_needed_in_greater_numbers() -> None:
    assert needed_rows(0.25, 1.0, margin=0.05) == required_n(0.25, margin=0.05) == 1083
    assert needed_rows(0.25, 3.7, margin=0.05) == pytest.approx(3.7 * 1083, abs=4)
    assert needed_rows(0.25, 0.4, margin=0.05) == 1083  # luck in one sample is no promise for the next
    assert needed_rows(0.0, 1.0, margin=0.05) == needed_rows(0.1, 1.0, margin=0.05)


def retention(n: int, share: float, effect: float | None) -> Check:
    details = "" if effect is None else json.dumps({"design_effect": effect})
    return replace(example(Check, ""), check="non_inferiority", passed=True, n=n, units=30, discordance=share, details=details)


def test_what_the_last_verdict_found_is_what_the_next_is_planned_with() -> None:
    shown = replace(retention(900, 0.9, 9.0), check="superiority")
    assert disagreement([]) == disagreement([[shown], []]) == FIRST
    first, second = [shown, retention(50, 0.4, 1.5)], [retention(30, 0.9, 9.0), retention(400, 0.12, 2.5)]
    assert disagreement([first]) == Disagreement(0.4, 1.5)
    assert disagreement([first, second, [shown]]) == Disagreement(0.12, 2.5)
    assert disagreement([[retention(50, 0.4, None)]]) == Disagreement(0.4, 1.0)
    # Few people show little, and what was worse than it should be is no measure for the next.
    assert disagreement([first, [replace(second[1], units=19)], [replace(second[1], passed=False)]]) == Disagreement(0.4, 1.5)
    # No more is ever needed than is asked.
    assert planned(MOST_TEST_ROWS, 300, last=Disagreement(0.9, 9.0), small_data="wait").enough
    # Twice the disagreement takes twice the rows.
    missing = [planned(0, 50, last=Disagreement(share)).rows_missing for share in (0.25, 0.5)]
    assert missing[1] == pytest.approx(2 * missing[0], abs=1)


def test_enough_rows_of_enough_people() -> None:
    found = planned(2000, 100)
    assert found == Plan(True, 0.05, 0, 0, "2,000 test rows of 100 people are enough")


def test_fewer_rows_widen_the_margin_to_what_they_can_show() -> None:
    found = planned(300, 40)
    assert found.enough and 0.05 < found.margin < 0.15
    assert found.margin >= shown_margin(300, 0.25, 1.0)
    assert needed_rows(0.25, 1.0, margin=found.margin) <= 300
    assert "the margin is 9.5% instead of 5.0%" in found.words


def test_the_margin_is_never_wider_than_fifteen_points() -> None:
    found = planned(100, 40)
    assert not found.enough and found.margin == 0.15
    assert found.rows_missing == needed_rows(0.25, 1.0, margin=0.15) - 100 == 21
    assert found.words.startswith("100 test rows of 40 people: 21 test rows missing; the margin is 15.0%")
    assert planned(121, 40).enough
    assert planned(100, 40, margin=0.2).enough and planned(100, 40, margin=0.2).margin == 0.2


def test_waiting_keeps_the_margin() -> None:
    found = planned(300, 40, small_data="wait")
    assert found == Plan(False, 0.05, 783, 0, "300 test rows of 40 people: 783 test rows missing")


def test_missing_people_are_said() -> None:
    found = planned(5000, 19)
    assert not found.enough and (found.rows_missing, found.people_missing) == (0, 1)
    assert found.words == "5,000 test rows of 19 people: rows of 1 more person missing"
    assert planned(0, 0).words.startswith("0 test rows of 0 people: 121 test rows and rows of 20 more people missing")
    assert planned(1, 1).words.startswith("1 test row of 1 person: 120 test rows and rows of 19 more people missing")


def test_the_least_number_of_examples_is_part_of_the_plan() -> None:
    assert planned(250, 40, minimum_n=400).rows_missing == 150


@pytest.mark.parametrize("small_data", ["widen", "wait"])
def test_a_plan_that_is_enough_ends_in_a_check_that_can_be_passed(small_data: str) -> None:
    """Equal candidates on exactly as many rows as planned: never refused for want of rows, passed 9 times in 10."""
    found = planned(
        1_500 if small_data == "wait" else 400, 50, small_data=small_data, last=Disagreement(0.1, 2.0)
    )
    assert found.enough
    rows = needed_rows(0.1, 2.0, margin=found.margin)
    rng, passed = np.random.default_rng(8), 0
    sizes = layout(rows // 5, 5)
    for _ in range(100):
        champion, candidate, units = correlated(rng, sizes, discordance=0.1, correlation=0.25)
        check = non_inferiority(champion, candidate, units=units, margin=found.margin)
        assert check.n >= check.n_required
        passed += check.passed
    assert passed >= 85


# --- attempts


def test_attempts_share_one_error() -> None:
    spent = [1.0 - attempt_confidence(0.95, attempt) for attempt in range(1, 10_001)]
    assert spent[0] == pytest.approx(0.05 * 0.6079, abs=1e-5)
    assert spent == sorted(spent, reverse=True)
    assert 0.0499 < sum(spent) < 0.05
    with pytest.raises(ValueError, match="attempt is 0"):
        attempt_confidence(0.95, 0)


def ever_promoted(rng: np.random.Generator, confidences: list[float]) -> bool:
    """Is any of as many equal candidates, one after another on the same rows, called better than the champion?

    Champion and candidates are right on a row with the same chance. Only candidates whose plain z comes within 0.5 of
    what the level asks for are judged in full: others never pass.
    """
    chance = rng.beta(2.0, 1.0, size=80)
    champion = rng.random(80) < chance
    candidates = rng.random((len(confidences), 80)) < chance
    gains = candidates.astype(float) - champion
    z = gains.mean(axis=1) * np.sqrt(80) / gains.std(axis=1)
    for at in np.flatnonzero(z > stats.norm.ppf(confidences) - 0.5):
        level = confidences[at]
        if superiority(champion, candidates[at], units=None, confidence=level, resamples=399, seed=int(at)).passed:
            return True
    return False


@pytest.mark.slow
def test_a_hundred_equal_candidates_on_the_same_rows_are_seldom_promoted() -> None:
    rng, runs = np.random.default_rng(9), 250
    shared = [attempt_confidence(0.95, attempt) for attempt in range(1, 101)]
    promoted = sum(ever_promoted(rng, shared) for _ in range(runs)) / runs
    assert promoted <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)
    assert np.mean([ever_promoted(rng, [0.95] * 100) for _ in range(10)]) > 0.3  # what the budget is for
