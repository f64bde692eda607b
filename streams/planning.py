"""What a check will need before it is carried out: rows, people, and how sure an attempt on the same rows must be.

`conduct` asks here before it asks for a job, so that none is trained that cannot be judged. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import msgspec

from schemas.events import Check
from schemas.policy import MOST_TEST_ROWS

TARGET_POWER = 0.95
DISCORDANCE_FLOOR = 0.10  # two models that seldom differ in a small sample may still differ in the next one
WIDEST_MARGIN = 0.15
LEAST_UNITS = 20  # people, or conversations where people are fewer, under which nothing is judged
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Disagreement:
    """On what share of rows two models of one line give answers of which one is right, and how many times the rows it
    takes because one person gives several. What is said before there was a verdict."""

    share: float = 0.25
    design_effect: float = 1.0


FIRST = Disagreement()


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether a job's candidate can be judged, by which margin, and what is missing if not."""

    enough: bool
    margin: float
    rows_missing: int
    people_missing: int
    words: str


def required_n(discordance: float, *, margin: float, confidence: float = 0.95) -> int:
    """Pairs, each another person's, with which a non-inferiority check passes an equal model 95 times in 100.

    (z_confidence + z_power)² · max(discordance, 0.10) / margin², the normal approximation for paired
    proportions at true difference zero (Liu et al. 2002, Statistics in Medicine 21:231-245).
    """
    return needed_rows(discordance, 1.0, margin=margin, confidence=confidence)


def needed_rows(discordance: float, design_effect: float, *, margin: float, confidence: float = 0.95) -> int:
    """`required_n` for rows of which one person gives several: the same times the design effect (at least 1)."""
    return math.ceil(_squared(discordance, design_effect, confidence) / margin**2)


def shown_margin(rows: int, discordance: float, design_effect: float, *, confidence: float = 0.95) -> float:
    """The smallest margin at which `rows` rows pass an equal model 95 times in 100; 1 without rows."""
    return min(1.0, math.sqrt(_squared(discordance, design_effect, confidence) / rows)) if rows > 0 else 1.0


def _squared(discordance: float, design_effect: float, confidence: float) -> float:
    z_sum = _NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(TARGET_POWER)
    return z_sum**2 * max(discordance, DISCORDANCE_FLOOR) * max(design_effect, 1.0)


def plan(
    rows: int,
    units: int,
    *,
    last: Disagreement = FIRST,
    margin: float,
    confidence: float,
    minimum_n: int,
    small_data: Literal["widen", "wait"] | str,
) -> Plan:
    """Can `rows` test rows of `units` people judge a candidate?

    `units` is the number of clusters (`clusters.clusters`: conversations where people are under 20), `last` what the
    last verdict found (`disagreement`). With `widen` the margin grows to what the rows can show, at most 0.15 (or
    `margin`, if that is wider); what is missing is then what the widest margin lacks.
    """
    widest = max(margin, WIDEST_MARGIN) if small_data == "widen" else margin
    planned = needed_rows(last.share, last.design_effect, margin=widest, confidence=confidence)
    needed = max(minimum_n, min(MOST_TEST_ROWS, planned))
    shown = shown_margin(rows, last.share, last.design_effect, confidence=confidence)
    used = min(widest, max(margin, math.ceil(shown * 1000 - 1e-6) / 1000))
    rows_missing, people_missing = max(0, needed - rows), max(0, LEAST_UNITS - units)
    enough = not rows_missing and not people_missing
    words = _words(rows, units, rows_missing, people_missing)
    if used > margin:
        words += f"; the margin is {used:.1%} instead of {margin:.1%}: fewer rows cannot show a smaller loss"
    return Plan(enough, used, rows_missing, people_missing, words)


def disagreement(verdicts: Iterable[Iterable[Check]]) -> Disagreement:
    """What the last of these verdicts, the oldest first, found on the most rows that it judged by a margin.

    One of few people says little, and a candidate that was worse more than the next one will be: they are passed over.
    """
    found = FIRST
    for checks in verdicts:
        judged = [
            check for check in checks
            if check.check == "non_inferiority" and check.passed and check.units >= LEAST_UNITS
        ]  # fmt: skip
        if judged:
            widest = max(judged, key=lambda check: check.n)
            effect = msgspec.json.decode(widest.details or "{}", type=dict[str, object]).get("design_effect")
            found = Disagreement(widest.discordance, float(effect) if isinstance(effect, float | int) else 1.0)
    return found


def _words(rows: int, units: int, rows_missing: int, people_missing: int) -> str:
    stand = f"{_number(rows, 'test row')} of {_number(units, 'person', 'people')}"
    missing = [_number(rows_missing, "test row")] if rows_missing else []
    missing += [f"rows of {_number(people_missing, 'more person', 'more people')}"] if people_missing else []
    return f"{stand}: {' and '.join(missing)} missing" if missing else f"{stand} are enough"


def _number(n: int, one: str, more: str = "") -> str:
    return f"{n:,} {one if n == 1 else more or one + 's'}"


def attempt_confidence(confidence: float, attempt: int) -> float:
    """How sure the `attempt`-th check (from 1) on the same rows must be for all of them to share one error.

    Attempt k spends 6 / (π² k²) of the error: these sum to 1 over all attempts, so that by Bonferroni any number of
    equal candidates is promoted with a chance of at most 1 - confidence. Halving each time sums to 1 as well, but the
    first attempt gets 50% instead of 61% and the tenth 0.1% instead of 0.6%. Raises ValueError on an attempt below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempt is {attempt}; the first is 1")
    return 1.0 - (1.0 - confidence) * 6.0 / (math.pi * attempt) ** 2
