"""How often the gate errs, simulated with fixed seeds, where people give several rows each.

Answers are right or wrong, the models disagree on a fifth of the rows, and two paired differences of one person
correlate by 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tests.bench.measure import Measured
from tests.paired import Answers, correlated, layout
from trainers.gate.statistics import Comparison, non_inferiority, superiority

RUNS = 3000
DISCORDANCE = 0.2
RESAMPLES = 999


def rate(
    sizes: NDArray[np.int64], check: Callable[[Answers], bool], *, gain: float = 0.0, discordance: float = DISCORDANCE,
    runs: int = RUNS, copied: bool = False,
) -> float:  # fmt: skip
    """The share of simulated candidates, ahead by `gain` in truth, that `check` lets pass."""
    rng = np.random.default_rng(1)
    drawn = (correlated(rng, sizes, discordance=discordance, gain=gain, copied=copied) for _ in range(runs))
    return sum(map(check, drawn)) / runs


def better(answers: Answers) -> bool:
    """Does superiority pass, heeding whose row each is?"""
    champion, candidate, units = answers
    return superiority(champion, candidate, units=units, resamples=RESAMPLES, seed=0).passed


def better_by_rows(answers: Answers) -> bool:
    """Does superiority pass, every row taken for another person's?"""
    champion, candidate, _ = answers
    return superiority(champion, candidate, units=None, resamples=RESAMPLES, seed=0).passed


def no_worse(answers: Answers, margin: float) -> Comparison:
    """Non-inferiority, heeding whose row each is."""
    champion, candidate, units = answers
    return non_inferiority(champion, candidate, units=units, margin=margin)


def cleared(answers: Answers, margin: float) -> bool:
    """Is non-inferiority's bound above the margin, whether or not there are rows enough to judge?"""
    return no_worse(answers, margin).bound > -margin


def promotion_rate_50x10() -> Iterator[Measured]:
    """Equal candidates promoted, and losses of the whole margin let pass, with 10 rows of each of 50 people."""
    yield from _promotion_rate(50, 0.06)


def promotion_rate_20x10() -> Iterator[Measured]:
    """The same with 20 people."""
    yield from _promotion_rate(20, 0.08)


def _promotion_rate(units: int, asked: float) -> Iterator[Measured]:
    equal, uneven = layout(units, 10), layout(units, 10, heaviest=0.3)
    yield Measured(rate(equal, better), f"<= {asked}")
    yield Measured(rate(equal, better, copied=True), f"<= {asked}", "repeated answers")
    yield Measured(rate(uneven, better), "<= 0.08", "one person with 30% of the rows")
    yield Measured(rate(equal, better_by_rows, runs=1000), None, "if every row counted as another person's")
    for margin, discordance, sizes, limit, words in (
        (0.05, DISCORDANCE, equal, asked, ""),
        (0.05, DISCORDANCE, uneven, 0.08, ", one person with 30% of the rows"),
        (0.15, DISCORDANCE, equal, asked, ""),
        (0.15, DISCORDANCE, uneven, 0.08, ", one person with 30% of the rows"),
        (0.15, 0.15, equal, asked, ", every disagreement a loss"),
    ):
        lost = rate(sizes, lambda a, m=margin: cleared(a, m), gain=-margin, discordance=discordance)  # type: ignore[misc]
        yield Measured(lost, f"<= {limit}", f"a loss of the whole margin {margin} clears the bound{words}")


def pass_rate_200x5() -> Iterator[Measured]:
    """Equal candidates that pass non-inferiority at a margin of 0.05, with 5 rows of each of 200 people."""
    for discordance in (0.05, 0.1, 0.2, 0.3):
        passed = rate(layout(200, 5), lambda a: no_worse(a, 0.05).passed, discordance=discordance, runs=1000)
        yield Measured(passed, None, f"models that disagree on {discordance:.0%}")
