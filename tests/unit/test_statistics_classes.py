"""One check for all classes: what it refuses, and how seldom wrongly."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tests.paired import correlated, layout
from trainers.gate.classes import class_check
from trainers.gate.statistics import Comparison

CLASSES = [f"c{at}" for at in range(8)]


def checked(lost: dict[str, float], *, rows: int = 60, units: int = 20, seed: int = 0) -> Comparison:
    """Eight classes of `rows` rows each; in those of `lost` the candidate is wrong for that share of the rows."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(CLASSES, rows)
    champion = np.ones(classes.size)
    candidate = np.array([float(rng.random() >= lost.get(name, 0.0)) for name in classes])
    return class_check(champion, candidate, classes.tolist(), np.arange(classes.size) % units)


def test_a_class_that_is_lost_is_refused_by_name() -> None:
    found = checked({"c3": 0.9, "c5": 0.6})
    assert not found.passed and found.details["worse"] == ["c3", "c5"]
    assert (found.details["looked_at"], found.details["of"], found.n, found.units) == (8, 8, 480, 20)
    assert found.reason.startswith("refused: 8 of 8 classes") and "c3, c5" in found.reason
    assert found.bound < -0.20 and found.difference == pytest.approx(-0.9, abs=0.12)
    assert [one["class"] for one in found.details["classes"][:2]] == ["c3", "c5"]


def test_a_class_that_is_little_worse_passes() -> None:
    found = checked({"c3": 0.10})
    assert found.passed and found.details["worse"] == [] and found.bound >= -0.20
    assert found.reason == "passed: 8 of 8 classes have 30 rows of 10 people; none is surely 20% worse"


@pytest.mark.parametrize(("rows", "units"), [(29, 29), (60, 9)])
def test_a_class_of_few_rows_or_few_people_is_not_looked_at(rows: int, units: int) -> None:
    found = checked(dict.fromkeys(CLASSES, 1.0), rows=rows, units=units)
    assert found.passed and found.details["looked_at"] == 0 and found.details["of"] == 8 and found.n == 0
    assert not checked(dict.fromkeys(CLASSES, 1.0), rows=30, units=30).passed


def test_a_loss_of_exactly_the_margin_in_every_class_is_seldom_refused() -> None:
    """Holm: with ten classes at the line, any is refused as seldom as one alone would be."""
    rng, refused, runs = np.random.default_rng(7), 0, 150
    for _ in range(runs):
        parts = [correlated(rng, layout(15, 4), discordance=0.3, gain=-0.2) for _ in range(10)]
        champion, candidate = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
        units = np.concatenate([part[2] for part in parts])
        refused += not class_check(champion, candidate, np.repeat(np.arange(10), 60).astype(str).tolist(), units).passed
    assert refused / runs <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / runs)


def test_twenty_people_who_say_the_same_count_less_than_sixty() -> None:
    """Six of ten lost: sure by sixty people, not by ten with six rows each."""
    champion, candidate = np.ones(60), np.array([1.0, 0.0, 0.0, 1.0, 0.0] * 12)
    by_one = class_check(champion, candidate, ["a"] * 60, np.arange(60))
    by_ten = class_check(champion, np.sort(candidate), ["a"] * 60, np.arange(60) // 6)
    assert not by_one.passed and by_one.bound < by_ten.bound


def test_graded_scores_are_looked_at_too() -> None:
    champion = np.linspace(0.8, 1.0, 40)
    assert not class_check(champion, champion - 0.5, ["a"] * 40, np.arange(40)).passed
    assert class_check(champion, champion - 0.1, ["a"] * 40, np.arange(40)).passed


def test_rows_without_a_class_are_not_looked_at() -> None:
    found = class_check(np.ones(40), np.zeros(40), [None] * 20 + [""] * 20, np.arange(40))
    assert found.passed and found.details == {"classes": [], "looked_at": 0, "of": 0, "worse": []}
    assert class_check([], [], [], []).passed


def test_a_verdict_carries_it() -> None:
    found = checked({"c3": 0.9})
    check = found.to_check("recent")
    assert (check.check, check.dataset, check.passed) == ("classes", "recent", False)
    assert json.loads(check.details)["worse"] == ["c3"]
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_a_class_for_each_row() -> None:
    with pytest.raises(ValueError, match="1 classes for 2 scores"):
        class_check([1, 0], [1, 0], ["a"], None)
