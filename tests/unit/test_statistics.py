"""The gate's statistics: how often they are wrong, simulated with fixed seeds, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streams.planning import required_n
from trainers.gate.statistics import Comparison, non_inferiority, superiority

pytestmark = pytest.mark.slow

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def pairs(rng: np.random.Generator, n: int, discordance: float, gain: float = 0.0) -> Pair:
    """Right-or-wrong answers of two models that disagree on a share `discordance`, candidate ahead by `gain`."""
    wins, losses = (discordance + gain) / 2, (discordance - gain) / 2
    both_right = (1.0 - discordance) * 0.9
    kind = rng.choice(4, size=n, p=[wins, losses, both_right, 1.0 - discordance - both_right])
    return np.isin(kind, (1, 2)), np.isin(kind, (0, 2))


def graded(rng: np.random.Generator, n: int, gain: float = 0.0) -> Pair:
    champion = rng.beta(4, 2, n)
    return champion, np.clip(champion + gain + rng.normal(0, 0.15, n), 0.0, 1.0)


def pass_rate(check: Callable[[int], Comparison], runs: int) -> float:
    return float(np.mean([check(i).passed for i in range(runs)]))


def lose_everywhere(n: int, losses: int) -> Pair:
    champion = np.ones(n, dtype=bool)
    candidate = champion.copy()
    candidate[:losses] = False
    return champion, candidate


# --- superiority


@pytest.mark.parametrize(("n", "discordance"), [(20, 0.2), (60, 0.1), (200, 0.2)])
def test_an_equal_candidate_is_called_better_at_most_one_time_in_twenty(n: int, discordance: float) -> None:
    rng = np.random.default_rng(10)
    runs = 600
    rate = pass_rate(lambda i: superiority(*pairs(rng, n, discordance), units=None, resamples=399, seed=i), runs)
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


def test_a_better_candidate_is_called_better() -> None:
    rng = np.random.default_rng(11)
    rate = pass_rate(lambda i: superiority(*pairs(rng, 200, 0.2, 0.12), units=None, resamples=399, seed=i), 200)
    assert rate >= 0.95


def test_the_same_model_is_not_better_than_itself() -> None:
    scores = np.random.default_rng(12).random(200) < 0.9
    found = superiority(scores, scores, units=None, seed=0)
    assert not found.passed and found.bound == 0.0 and found.difference == 0.0 and found.discordance == 0.0


def test_superiority_refuses_a_handful_of_examples_however_good() -> None:
    found = superiority(np.zeros(19), np.ones(19), units=None, seed=0)
    assert not found.passed and found.reason.startswith("refused: 19 examples, 20 needed")
    assert superiority(np.zeros(20), np.ones(20), units=None, seed=0).passed


def test_superiority_takes_graded_scores() -> None:
    rng = np.random.default_rng(13)
    assert superiority(*graded(rng, 200, 0.06), units=None, seed=0).passed
    assert not superiority(*graded(rng, 200, -0.02), units=None, seed=0).passed


@given(seed=st.integers(0, 2**31), n=st.integers(0, 80))
def test_the_same_seed_gives_the_same_comparison(seed: int, n: int) -> None:
    champion, candidate = pairs(np.random.default_rng(seed), n, 0.3)
    first = superiority(champion, candidate, units=None, resamples=200, seed=seed)
    assert first == superiority(champion, candidate, units=None, resamples=200, seed=seed)
    assert json.loads(json.dumps(asdict(first))) == asdict(first)


# --- non-inferiority


def test_five_points_lost_on_120_examples_is_refused_for_want_of_examples() -> None:
    rng = np.random.default_rng(20)
    for _ in range(300):
        found = non_inferiority(*pairs(rng, 120, 0.12, -0.05), units=None, margin=0.05)
        assert not found.passed and found.n_required >= 433
        assert found.reason.startswith("refused: 120 examples")


@pytest.mark.parametrize(("discordance", "margin"), [(0.05, 0.05), (0.2, 0.05), (0.2, 0.1), (0.1, 0.1)])
def test_a_loss_of_the_whole_margin_passes_at_most_one_time_in_twenty(discordance: float, margin: float) -> None:
    """discordance == margin is the hard case, every disagreement a loss: adjusted Wald bounds pass 8% there."""
    rng = np.random.default_rng(21)
    n, runs = required_n(discordance, margin=margin), 1500
    rate = pass_rate(lambda _: non_inferiority(*pairs(rng, n, discordance, -margin), units=None, margin=margin), runs)
    assert rate <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(("discordance", "margin"), [(0.06, 0.05), (0.2, 0.05), (0.2, 0.1)])
def test_an_equal_candidate_passes_with_the_planned_head_room(discordance: float, margin: float) -> None:
    rng = np.random.default_rng(22)
    n = round(1.3 * required_n(discordance, margin=margin))
    rate = pass_rate(lambda _: non_inferiority(*pairs(rng, n, discordance), units=None, margin=margin), 500)
    assert rate >= 0.95


def test_the_bound_itself_clears_the_margin_95_times_in_100_at_the_required_n() -> None:
    """The formula's claim, apart from the refusal for n, which rests on the discordance observed."""
    rng = np.random.default_rng(23)
    n = required_n(0.2, margin=0.05)
    found = [non_inferiority(*pairs(rng, n, 0.2), units=None, margin=0.05) for _ in range(1000)]
    assert np.mean([c.bound > -0.05 for c in found]) == pytest.approx(0.95, abs=0.02)


def test_graded_scores_hold_their_level_too() -> None:
    rng = np.random.default_rng(24)
    lost = [non_inferiority(*graded(rng, 500, -0.06), units=None, margin=0.05) for _ in range(300)]
    assert not any(c.passed for c in lost if c.difference <= -0.05)
    assert np.mean([c.passed for c in lost]) <= 0.08
    assert non_inferiority(*graded(rng, 500, 0.02), units=None, margin=0.05).passed


def test_power_reaches_95_percent_exactly_at_the_required_n() -> None:
    assert required_n(0.0, margin=0.05) == required_n(0.1, margin=0.05) == 433
    same = np.ones(433)
    at, below = (non_inferiority(same[cut:], same[cut:], units=None, margin=0.05) for cut in (0, 1))
    assert at.passed and at.power >= 0.95
    assert not below.passed and below.power < 0.95


def test_tango_bound_agrees_with_a_bound_found_by_hand() -> None:
    """With no disagreement the score equation is n|d| / (1 - |d|) = z², whose root is z² / (n + z²)."""
    same = np.ones(500)
    z_squared = 1.6448536269514722**2
    assert non_inferiority(same, same, units=None, margin=0.05).bound == pytest.approx(-z_squared / (500 + z_squared))


@given(n=st.integers(1, 300), share=st.floats(0, 1))
def test_the_bound_lies_below_the_difference_and_above_minus_one(n: int, share: float) -> None:
    found = non_inferiority(*lose_everywhere(n, round(share * n)), units=None, margin=0.05)
    assert -1.0 <= found.bound <= found.difference <= 0.0
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_a_missing_check_is_a_refusal() -> None:
    for found in (superiority([], [], units=None, seed=0), non_inferiority([], [], units=None, margin=0.05)):
        assert not found.passed and found.n == 0 and found.bound == -1.0 and found.power == 0.0
        assert found.reason.startswith("refused: 0 examples")


@pytest.mark.parametrize(
    ("champion", "candidate", "said"),
    [
        ([1, 0], [1], "same examples"),
        ([[1], [0]], [[1], [0]], "one number each"),
        ([1, 0], [1, 1.2], r"candidate\[1\] is 1.2"),
        ([float("nan"), 0], [1, 1], r"champion\[0\] is nan"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(champion: list, candidate: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        superiority(champion, candidate, units=None, seed=0)
    with pytest.raises(ValueError, match=said):
        non_inferiority(champion, candidate, units=None, margin=0.05)


def test_settings_that_judge_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="margin is 0"):
        non_inferiority([1], [1], units=None, margin=0)
    with pytest.raises(ValueError, match="confidence is 95"):
        superiority([1], [1], confidence=95, units=None, seed=0)
