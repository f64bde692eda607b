"""What makes a candidate better, or no worse: paired comparisons of two models on the same examples.

Reads two arrays of scores in [0, 1], one per model, in the same order of examples; returns a `Comparison`
of plain values. Pure: no clock, no files, randomness from the caller's seed. Leaves to the gate which
examples are judged, and what a refusal leads to. A missing or underpowered check is a refusal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

TARGET_POWER = 0.95
DISCORDANCE_FLOOR = 0.10  # two models that seldom differ in a small sample may still differ in the next one
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One check of a candidate against the champion; every field is a plain JSON value.

    `difference` is candidate minus champion; `bound` its one-sided lower bound at `confidence`; the check
    asks for `bound > -margin` (margin 0 for superiority). `discordance` is the mean squared paired
    difference: for right-or-wrong answers, the share of examples on which the two disagree. `power` is the
    chance to pass with this n: for non-inferiority if the true difference is zero (at or above 0.95 exactly
    when n >= n_required), for superiority if the true difference is the observed one.
    """

    check: str
    passed: bool
    n: int
    n_required: int
    champion_mean: float
    candidate_mean: float
    difference: float
    bound: float
    margin: float
    discordance: float
    power: float
    confidence: float
    reason: str


def superiority(
    champion: ArrayLike,
    candidate: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    minimum_n: int = 20,
    seed: int,
) -> Comparison:
    """Is the candidate better? Percentile bootstrap over pairs (Efron and Tibshirani 1993, ch. 13).

    Passes when the one-sided lower bound of the mean paired difference is above 0 and there are at least
    `minimum_n` pairs. The same arrays and seed give the same bound. Raises ValueError on unpaired arrays,
    scores outside [0, 1], or a confidence outside (0.5, 1).
    """
    old, new = _paired(champion, candidate, confidence)
    gain = new - old
    bound = _bootstrap_bound(gain, confidence, resamples, seed)
    spread = float(gain.std()) if gain.size else 0.0
    power = _power(float(gain.mean()) if gain.size else 0.0, spread, gain.size, confidence)
    return _judge("superiority", old, new, bound=bound, margin=0.0, n_required=minimum_n, power=power,
                  confidence=confidence)  # fmt: skip


def non_inferiority(
    champion: ArrayLike, candidate: ArrayLike, *, margin: float, confidence: float = 0.95
) -> Comparison:
    """Has the candidate lost less than `margin` (0.05 = five points)?

    Passes when the one-sided lower bound of the mean paired difference is above -margin and n reaches
    `required_n` for the observed discordance. Right-or-wrong answers take Tango's score bound, graded
    scores Student's t over the paired differences. Raises ValueError as `superiority` does, and on a
    margin outside (0, 1).
    """
    if not 0.0 < margin < 1.0:
        raise ValueError(f"non_inferiority: margin is {margin}; give a loss between 0 and 1, such as 0.05")
    old, new = _paired(champion, candidate, confidence)
    gain = new - old
    discordance = max(_discordance(gain), DISCORDANCE_FLOOR)
    bound = _tango_bound(gain, confidence) if _is_binary(old, new) else _student_bound(gain, confidence)
    power = _power(margin, math.sqrt(discordance), gain.size, confidence)
    return _judge("non_inferiority", old, new, bound=bound, margin=margin, power=power, confidence=confidence,
                  n_required=required_n(discordance, margin=margin, confidence=confidence))  # fmt: skip


def required_n(discordance: float, *, margin: float, confidence: float = 0.95) -> int:
    """Pairs a non-inferiority check needs to pass an equal model 95 times in 100.

    (z_confidence + z_power)² · max(discordance, 0.10) / margin², the normal approximation for paired
    proportions at true difference zero (Liu et al. 2002, Statistics in Medicine 21:231-245). The check
    applies it to the discordance it observes, which exceeds the expected one half of the time: plan a
    hold-out of about 1.3 times this number.
    """
    z_sum = _NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(TARGET_POWER)
    return math.ceil(z_sum**2 * max(discordance, DISCORDANCE_FLOOR) / margin**2)


def _judge(
    check: str,
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    *,
    bound: float,
    margin: float,
    n_required: int,
    power: float,
    confidence: float,
) -> Comparison:
    n = int(old.size)
    old_mean, new_mean = (float(old.mean()), float(new.mean())) if n else (0.0, 0.0)
    enough, above = n >= n_required, bound > -margin
    if not enough:
        reason = f"refused: {n} examples, {n_required} needed; add examples of this kind and judge again"
    else:
        reason = (
            f"{'passed' if above else 'refused'}: {confidence:.0%} lower bound of the difference {bound:+.4f} "
            f"is {'above' if above else 'not above'} {-margin if margin else 0.0:+.4f}"
        )
    return Comparison(
        check=check, passed=bool(enough and above), n=n, n_required=n_required, champion_mean=old_mean,
        candidate_mean=new_mean, difference=new_mean - old_mean, bound=bound, margin=margin,
        discordance=_discordance(new - old), power=power, confidence=confidence, reason=reason,
    )  # fmt: skip


def _paired(
    champion: ArrayLike, candidate: ArrayLike, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; give a level between 0.5 and 1, such as 0.95")
    old, new = np.asarray(champion, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError(
            f"champion has shape {old.shape}, candidate {new.shape}; score both models on the same examples, "
            "in the same order, one number each"
        )
    for name, scores in (("champion", old), ("candidate", new)):
        outside = np.flatnonzero(~((scores >= 0.0) & (scores <= 1.0)))  # also true of NaN
        if outside.size:
            at = int(outside[0])
            raise ValueError(f"{name}[{at}] is {scores[at]}; scale every score to [0, 1] before judging")
    return old, new


def _discordance(gain: NDArray[np.float64]) -> float:
    return float(np.mean(gain**2)) if gain.size else 0.0


def _is_binary(*scores: NDArray[np.float64]) -> bool:
    return all(bool(np.all((values == 0.0) | (values == 1.0))) for values in scores)


def _power(distance: float, spread: float, n: int, confidence: float) -> float:
    """Chance that a normal mean `distance` above the line, each pair varying by `spread`, clears its bound."""
    z = _NORMAL.inv_cdf(confidence)
    if n == 0:
        return 0.0
    if spread == 0.0:
        return 1.0 if distance > 0.0 else 0.0
    return _NORMAL.cdf(distance * math.sqrt(n) / spread - z)


def _bootstrap_bound(gain: NDArray[np.float64], confidence: float, resamples: int, seed: int) -> float:
    if gain.size < 2 or np.all(gain == gain[0]):
        return float(gain[0]) if gain.size > 1 else -1.0  # one pair bounds nothing
    result = stats.bootstrap(
        (gain,), np.mean, n_resamples=resamples, batch=max(1, 2_000_000 // gain.size), method="percentile",
        confidence_level=confidence, alternative="greater", random_state=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low)


def _student_bound(gain: NDArray[np.float64], confidence: float) -> float:
    if gain.size < 2:
        return -1.0
    error = float(gain.std(ddof=1)) / math.sqrt(gain.size)
    return max(-1.0, float(gain.mean()) - float(stats.t.ppf(confidence, gain.size - 1)) * error)


def _tango_bound(gain: NDArray[np.float64], confidence: float) -> float:
    """Lower end of Tango's score interval for paired proportions (1998, Statistics in Medicine 17:891-908).

    Chosen over the adjusted Wald interval (Agresti and Min 2005), which pulls the difference towards zero
    and so passed a true loss of the whole margin up to 12% of the time when every disagreement was a
    loss; the score bound stayed below 6%.
    """
    n, wins, losses = int(gain.size), int(np.sum(gain > 0)), int(np.sum(gain < 0))
    if n == 0 or losses == n:
        return -1.0
    z = _NORMAL.inv_cdf(confidence)
    observed = (wins - losses) / n

    def excess(difference: float) -> float:
        return _tango_score(difference, n, wins, losses) - z

    return float(optimize.brentq(excess, -1.0 + 1e-12, observed))


def _tango_score(difference: float, n: int, wins: int, losses: int) -> float:
    """Standardised distance of the observed difference from `difference`, its variance at the null's MLE."""
    linear = (2 * n - wins + losses) * difference - wins - losses
    constant = -losses * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear**2 - 8 * n * constant))
    loss_share = (root - linear) / (4 * n)
    variance = n * (2.0 * loss_share + difference * (1.0 - difference))
    distance = wins - losses - n * difference
    return distance / math.sqrt(variance) if variance > 0.0 and distance > 0.0 else 0.0
