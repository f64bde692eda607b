"""Rows that come in clusters: how often the gate is wrong then, simulated with fixed seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import promotions, rows
from tests.bench.measure import Measured
from tests.paired import correlated, layout
from trainers.gate.clusters import clusters, group, labels_of
from trainers.gate.statistics import Comparison, non_inferiority, superiority

RUNS = 400
NOISE = 2 * np.sqrt(0.05 * 0.95 / RUNS)


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> object:
    """The bench's simulations with as few resamples as a level of 95% bears."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotions, "RESAMPLES", 399)
        yield


# --- equal candidates


@pytest.mark.parametrize(
    ("units", "heaviest", "asked"), [(50, 0.0, 0.06), (20, 0.0, 0.08), (50, 0.3, 0.08), (20, 0.3, 0.08)]
)
def test_an_equal_candidate_is_seldom_promoted_on_correlated_rows(units: int, heaviest: float, asked: float) -> None:
    found = promotions.rate(layout(units, 10, heaviest=heaviest), promotions.better, runs=RUNS)
    assert found <= asked


def test_counting_rows_in_place_of_people_would_promote_equal_candidates() -> None:
    """What the layouts above are for: the same rows, taken for so many people's, are too sure of themselves."""
    assert promotions.rate(layout(50, 10), promotions.better_by_rows, runs=100) > 0.08


def test_a_better_candidate_is_promoted_on_correlated_rows() -> None:
    assert promotions.rate(layout(50, 10), promotions.better, gain=0.12, runs=100) >= 0.7


# --- losses of the whole margin


@pytest.mark.parametrize(
    ("units", "heaviest", "discordance", "margin", "copied"),
    [
        (50, 0.0, 0.2, 0.05, False),
        (20, 0.0, 0.2, 0.15, False),
        (50, 0.3, 0.2, 0.15, True),
        (20, 0.3, 0.2, 0.05, False),
        (50, 0.0, 0.05, 0.05, False),  # every disagreement a loss: t over cluster sums passes 15% here
        (20, 0.0, 0.15, 0.15, True),
    ],
)
def test_a_loss_of_the_whole_margin_seldom_clears_the_bound(
    units: int, heaviest: float, discordance: float, margin: float, copied: bool
) -> None:
    found = promotions.rate(
        layout(units, 10, heaviest=heaviest), lambda answers: promotions.cleared(answers, margin),
        gain=-margin, discordance=discordance, runs=RUNS, copied=copied,
    )  # fmt: skip
    assert found <= (0.06 if units == 50 else 0.08) + (NOISE if discordance == margin else 0.0)


def test_an_equal_candidate_often_passes_with_two_hundred_people() -> None:
    sizes = layout(200, 5)
    assert promotions.rate(sizes, lambda answers: promotions.no_worse(answers, 0.05).passed, runs=200) >= 0.65


# --- what a comparison says


def compared(units: int = 40, rows: int = 10, seed: int = 0) -> Comparison:
    champion, candidate, whose = correlated(np.random.default_rng(seed), layout(units, rows), discordance=0.2)
    return non_inferiority(champion, candidate, units=whose, margin=0.05)


def test_a_comparison_counts_units_and_says_its_design_effect() -> None:
    found = compared()
    assert (found.n, found.units) == (400, 40)
    assert 2.0 < found.design_effect < 6.0  # 1 + 9 · 0.3 = 3.7
    assert found.n_planned > found.n_required == 433
    alone = non_inferiority([1] * 50, [1] * 49 + [0], units=range(50), margin=0.15)
    assert alone.units == 50 and alone.design_effect == pytest.approx(1.0)


def test_a_row_each_is_the_same_as_no_units() -> None:
    rng = np.random.default_rng(4)
    champion, candidate = rng.random(80) < 0.8, rng.random(80) < 0.7
    names = [f"person {at}" for at in range(80)]
    for check in (
        lambda units: superiority(champion, candidate, units=units, seed=1),
        lambda units: non_inferiority(champion, candidate, units=units, margin=0.1),
    ):
        assert check(names) == check(None)


def test_a_thousand_rows_of_nineteen_people_judge_nothing() -> None:
    whose = np.arange(1000) % 19
    for found in (
        superiority(np.zeros(1000), np.ones(1000), units=whose, seed=0),
        non_inferiority(np.ones(1000), np.ones(1000), units=whose, margin=0.15),
    ):
        assert not found.passed and found.units == 19
        assert found.reason.startswith("refused: not enough people: 1000 examples of 19, 20 needed")
    assert superiority(np.zeros(1000), np.ones(1000), units=np.arange(1000) % 20, seed=0).passed


def test_a_check_carries_what_the_next_plan_needs() -> None:
    found = compared()
    check = found.to_check("frozen", slice="common")
    assert (check.dataset, check.units, check.n, check.bound) == ("frozen", 40, 400, found.bound)
    details = json.loads(check.details)
    assert details["design_effect"] == pytest.approx(found.design_effect, abs=1e-3)
    assert details["n_planned"] == found.n_planned and details["slice"] == "common"


def test_a_refusal_for_want_of_rows_says_how_many_would_do() -> None:
    champion = np.array([1, 1, 1, 0] * 120)
    found = non_inferiority(champion, champion[::-1], units=np.arange(480) % 60, margin=0.05)
    assert not found.passed and found.difference == 0.0
    assert found.reason.endswith(f"an equal model may fail, {found.n_planned} would show it")


def test_a_handful_of_rows_at_an_extreme_confidence_bounds_nothing() -> None:
    found = non_inferiority([1, 1, 0], [0, 1, 0], units=[0, 0, 1], margin=0.05, confidence=1 - 1e-7)
    assert found.bound == -1.0 and not found.passed
    assert superiority([0] * 5, [1] * 5, units=[7] * 5, seed=0).bound == -1.0


# --- weights


def test_weights_make_weighted_means() -> None:
    champion, candidate = np.array([1, 0] * 30), np.array([1, 1] * 30)
    weights = np.array([3.0, 1.0] * 30)
    found = superiority(champion, candidate, units=None, weights=weights, seed=0)
    assert found.champion_mean == pytest.approx(0.75) and found.difference == pytest.approx(0.25)
    assert found.discordance == pytest.approx(0.25) and found.candidate_mean == 1.0
    assert found.design_effect == pytest.approx(60 * (30 * 10) / 120**2)  # Kish: n Σw² / (Σw)²


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
@settings(max_examples=25)
def test_only_the_weights_proportions_matter_and_rows_without_weight_do_not_count(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    champion, candidate, whose = correlated(rng, layout(25, 4), discordance=0.3)
    weights = rng.integers(0, 4, whose.size).astype(float)
    kept = weights > 0
    full = non_inferiority(champion, candidate, units=whose, weights=weights * scale, margin=0.15)
    cut = non_inferiority(champion[kept], candidate[kept], units=whose[kept], weights=weights[kept], margin=0.15)
    assert full.n == cut.n == kept.sum() and full.units == cut.units
    assert full.bound == pytest.approx(cut.bound) and full.difference == pytest.approx(cut.difference)


def test_a_weighted_loss_of_the_margin_seldom_passes() -> None:
    rng, passed = np.random.default_rng(5), 0
    for _ in range(RUNS):
        champion, candidate, whose = correlated(rng, layout(60, 5), discordance=0.25, gain=-0.1)
        weights = rng.exponential(size=whose.size)
        passed += non_inferiority(champion, candidate, units=whose, weights=weights, margin=0.1).bound > -0.1
    assert passed / RUNS <= 0.06


@pytest.mark.parametrize(
    ("weights", "said"), [([1], "weights have shape"), ([1, -1], r"weights\[1\] is -1"), ([1, np.nan], "nan")]
)
def test_weights_that_weigh_nothing_are_refused(weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        superiority([1, 0], [0, 1], units=None, weights=weights, seed=0)


def test_every_row_has_a_unit() -> None:
    with pytest.raises(ValueError, match="1 units for 2 scores"):
        superiority([1, 0], [0, 1], units=["a"], seed=0)


# --- which clusters


def test_people_are_the_clusters_where_there_are_twenty() -> None:
    labels, level = clusters([f"p{at % 20}" for at in range(100)], [f"c{at}" for at in range(100)])
    assert level == "unit" and labels.tolist() == [at % 20 for at in range(100)]


def test_conversations_are_the_clusters_of_fewer_people() -> None:
    units, talks = [at % 19 for at in range(100)], [f"c{at // 5}" for at in range(100)]
    labels, level = clusters(units, talks)
    assert level == "conversation" and labels.tolist() == [at // 5 for at in range(100)]


def test_few_conversations_of_few_people_are_no_clusters() -> None:
    talks = ["" if at < 10 else f"c{at % 17}" for at in range(1000)]
    labels, level = clusters([at % 2 for at in range(1000)], talks)
    assert level == "none" and len(set(labels.tolist())) == 19  # an empty conversation is its unit's
    refused = superiority(np.zeros(1000), np.ones(1000), units=labels, seed=0)
    assert not refused.passed and "not enough people" in refused.reason


def test_a_conversation_for_each_row() -> None:
    with pytest.raises(ValueError, match="2 units, 1 conversations"):
        clusters([1, 2], ["a"])


def test_labels_may_be_text_or_numbers() -> None:
    assert labels_of(["b", "a", "b"]).tolist() == labels_of(np.array([7, 3, 7])).tolist() == [0, 1, 0]


def test_correlation_is_estimated_once_many_people_disagree() -> None:
    """Rows that do not correlate end near a design effect of 1, those that repeat each other near their number."""
    rng = np.random.default_rng(6)
    labels, ones = np.repeat(np.arange(500), 10), np.ones(5000)
    apart = group(rng.choice([-1.0, 0.0, 1.0], 5000), labels, ones, binary=True)
    same = group(rng.choice([-1.0, 0.0, 1.0], 500)[labels], labels, ones, binary=True)
    assert apart.design_effect == pytest.approx(1.0, abs=0.35) and same.design_effect == pytest.approx(10.0, abs=0.5)


# --- the bench


def test_the_bench_prints_a_line_of_json_for_each_measurement() -> None:
    told = json.loads(rows.line("promotion_rate_50x10", Measured(0.0412345, "<= 0.06", "uneven")))
    assert told == {"figure": "promotion_rate_50x10", "value": 0.04123, "asked": "<= 0.06", "part": "uneven"}
    assert "part" not in json.loads(rows.line("holdout_leak", Measured(0, "== 0")))
    assert {"promotion_rate_50x10", "promotion_rate_20x10"} <= set(rows.FIGURES)
