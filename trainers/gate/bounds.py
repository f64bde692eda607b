"""One-sided lower bounds of a mean paired difference whose rows come in clusters.

Which bound is used where was decided by simulation (`tests/bench/rows.py` prints the rates). Pure: randomness comes
from the caller's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from trainers.gate.clusters import Gains

MOST_RESAMPLES = 1_000_000
_BATCH = 4_000_000  # signs drawn at once


def wild_bound(gains: Gains, confidence: float, resamples: int, seed: int) -> float:
    """Lower bound by the wild cluster bootstrap with the null imposed, studentised (Cameron, Gelbach and Miller 2008,
    Review of Economics and Statistics 90:414-427): the lowest difference that flipping clusters' signs does not refute.

    At a difference of 0 the test is exact, however unequal the clusters, if candidate and champion are exchangeable.
    `resamples` is raised where the confidence asks for more, up to a million. -1 where one cluster bounds nothing.
    """
    alpha = 1.0 - confidence
    if gains.units < 2:
        return -1.0
    if np.max(np.abs(gains.sums - gains.mean * gains.shares)) <= 1e-12:
        return gains.mean  # nothing varies
    draws = min(MOST_RESAMPLES, max(resamples, math.ceil(5.0 / alpha)))
    sums, shares = gains.sums, gains.shares
    columns = np.stack([sums, shares, sums * shares, shares**2], axis=1)
    total = columns.sum(axis=0)
    seen_and_drawn = np.concatenate([total[None, :], _flipped(columns, draws, seed)])
    flips = np.ascontiguousarray(seen_and_drawn.T)
    squares = float(np.sum(sums**2))

    def refuted(null: float) -> bool:
        found = _studentised(flips, null, squares - 2.0 * null * total[2] + null**2 * total[3], total[3])
        return bool(np.count_nonzero(found >= found[0] - 1e-9 * abs(found[0])) / (draws + 1) <= alpha)

    return _highest_refuted(refuted, gains.mean)


def _flipped(columns: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over clusters (draws, 4), every cluster's sign drawn by a fair coin."""
    rng, size = np.random.default_rng(seed), len(columns)
    step = max(1, _BATCH // size)
    parts = [
        rng.integers(0, 2, size=(min(step, draws - at), size), dtype=np.int8).astype(np.float64) @ (2.0 * columns)
        for at in range(0, draws, step)
    ]
    return np.concatenate(parts) - columns.sum(axis=0)


def _studentised(flips: NDArray[np.float64], null: float, scale: float, shares2: float) -> NDArray[np.float64]:
    """Mean over its standard error for each column of `flips` (4, draws), signs flipped about `null`.

    Where flipped clusters happen not to vary, a millionth of `scale` stands in for the variance.
    """
    mean = flips[0] - null * flips[1]
    variance = scale - 2.0 * mean * (flips[2] - null * flips[3]) + mean**2 * shares2
    return mean / np.sqrt(np.maximum(variance, 1e-6 * scale))


def _highest_refuted(refuted: Callable[[float], bool], mean: float) -> float:
    """The largest refuted difference below the observed one, which never is; -1 where none is."""
    low, high = -1.0, mean
    if not refuted(low):
        return -1.0
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def clustered_bound(gains: Gains, confidence: float) -> float:
    """Lower bound from the design effect: Tango's score bound for right-or-wrong answers, Student's t for graded.

    Right-or-wrong: wins and losses of as many independent pairs as would tell the same (Rao and Scott 1992, Biometrics
    48:577-585), with Student's quantile where the correlation is estimated. With one row per unit it is Tango's bound
    itself. t over cluster sums and the wild bootstrap were tried: both passed a loss of the whole margin 8 to 28% of
    the time where nearly every disagreement was a loss.
    """
    if not gains.n or gains.units < 2:
        return -1.0
    if gains.binary:
        return tango_bound(gains.effective_n, gains.wins, gains.losses, float(stats.t.ppf(confidence, gains.freedom)))
    freedom = min(gains.freedom, gains.units - 1)
    return max(-1.0, gains.mean - float(stats.t.ppf(confidence, freedom)) * gains.error)


def chance_at_most(gains: Gains, line: float) -> float:
    """The p-value of "the true difference is at most `line`": small where the difference is surely above it."""
    if gains.units < 2 or gains.mean <= line:
        return 1.0
    if gains.binary:
        score = tango_score(line, gains.effective_n, gains.wins * gains.effective_n, gains.losses * gains.effective_n)
        return float(stats.t.sf(score, gains.freedom))
    if gains.error == 0.0:
        return 0.0
    return float(stats.t.sf((gains.mean - line) / gains.error, min(gains.freedom, gains.units - 1)))


def tango_bound(n: float, wins: float, losses: float, quantile: float) -> float:
    """Lower end of Tango's score interval for paired proportions (1998, Statistics in Medicine 17:891-908).

    `wins` and `losses` are shares of the `n` pairs (need not be whole), `quantile` that of the confidence.

    Chosen over the adjusted Wald interval (Agresti and Min 2005), which pulls the difference towards zero
    and so passed a true loss of the whole margin up to 12% of the time when every disagreement was a
    loss; the score bound stayed below 6%.
    """
    if losses >= 1.0 - 1e-12:
        return -1.0

    def excess(difference: float) -> float:
        return tango_score(difference, n, wins * n, losses * n) - quantile

    lowest = -1.0 + 1e-12
    if excess(lowest) <= 0.0:  # a handful of pairs at an extreme confidence bounds nothing
        return -1.0
    return float(optimize.brentq(excess, lowest, wins - losses))


def tango_score(difference: float, n: float, wins: float, losses: float) -> float:
    """Standardised distance of the observed difference from `difference`, its variance at the null's MLE."""
    linear = (2 * n - wins + losses) * difference - wins - losses
    constant = -losses * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * n * constant))
    loss_share = (root - linear) / (4 * n)
    variance = n * (2.0 * loss_share + difference * (1.0 - difference))
    distance = wins - losses - n * difference
    return distance / math.sqrt(variance) if variance > 0.0 and distance > 0.0 else 0.0
