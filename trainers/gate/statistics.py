"""What makes a candidate better, or no worse: paired comparisons of two models on the same examples.

Reads two arrays of scores in [0, 1], one per model, in the same order of examples, and whose example each is; returns a
`Comparison` of plain values. Pure: no clock, no files, randomness from the caller's seed. Leaves to the gate which
examples are judged, and what a refusal leads to. A check with too few examples, or of too few people, refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.events import Check
from streams.planning import DISCORDANCE_FLOOR, LEAST_UNITS, needed_rows, required_n
from trainers.gate.bounds import clustered_bound, wild_bound
from trainers.gate.clusters import Gains, group, labels_of, weights_of

Units = Sequence[Any] | NDArray[Any] | None
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One check of a candidate against the champion; every field is a plain JSON value.

    `difference` is candidate minus champion; `bound` its one-sided lower bound at `confidence`; the check
    asks for `bound > -margin` (margin 0 for superiority). `n` rows of `units` people; under `n_required` nothing is
    judged. `discordance` is the mean squared paired difference: for right-or-wrong answers, the share of examples on
    which the two disagree. `design_effect` says how many times as many rows it takes because people give several.
    `n_planned` is from how many rows such as these an equal model passes 95 times in 100. `power` is the chance to
    pass with this n: for non-inferiority if the true difference is zero (at or above 0.95 exactly when
    n >= n_planned), for superiority if the true difference is the observed one. Means are weighted as the rows are.
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
    units: int
    design_effect: float
    n_planned: int
    details: dict[str, Any] = field(default_factory=dict)

    def to_check(self, dataset: str, **details: Any) -> Check:
        """As the verdict carries it: design effect and planned rows stand in `details`, with the caller's own."""
        looked_at = {"design_effect": round(self.design_effect, 4), "n_planned": self.n_planned}
        names = set(Check.__struct_fields__) - {"dataset", "details"}
        text = json.dumps({**looked_at, **self.details, **details}, sort_keys=True)
        return Check(dataset=dataset, details=text, **{name: getattr(self, name) for name in names})


def superiority(
    champion: ArrayLike,
    candidate: ArrayLike,
    *,
    units: Units,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 9_999,
    minimum_n: int = 20,
    seed: int,
) -> Comparison:
    """Is the candidate better? Wild cluster bootstrap over units (`bounds.wild_bound`).

    Passes when the one-sided lower bound of the weighted mean paired difference is above 0, with at least
    `minimum_n` pairs of at least 20 units. `units` names whose each row is; None: each row is another's. The same
    arrays and seed give the same bound. Raises ValueError on unpaired arrays, scores outside [0, 1], weights below 0,
    or a confidence outside (0.5, 1).
    """
    pair = paired(champion, candidate, units, weights, confidence)
    gains = pair.gains
    bound = wild_bound(gains, confidence, resamples, seed)
    effective = gains.effective_n if gains.n else 0.0
    power = _power(gains.mean, gains.spread if gains.n else 0.0, effective, confidence)
    return _judge("superiority", pair, bound=bound, margin=0.0, n_required=minimum_n, n_planned=minimum_n, power=power,
                  confidence=confidence)  # fmt: skip


def non_inferiority(
    champion: ArrayLike,
    candidate: ArrayLike,
    *,
    units: Units,
    weights: ArrayLike | None = None,
    margin: float,
    confidence: float = 0.95,
) -> Comparison:
    """Has the candidate lost less than `margin` (0.05 = five points)?

    Passes when the one-sided lower bound of the weighted mean paired difference is above -margin
    (`bounds.clustered_bound`), with at least `required_n` pairs for two models that seldom differ, of at least 20
    units. Raises ValueError as `superiority` does, and on a margin outside (0, 1).
    """
    if not 0.0 < margin < 1.0:
        raise ValueError(f"non_inferiority: margin is {margin}; give a loss between 0 and 1, such as 0.05")
    pair = paired(champion, candidate, units, weights, confidence)
    gains = pair.gains
    discordance, effect = max(gains.discordance, DISCORDANCE_FLOOR), max(gains.design_effect, 1.0)
    return _judge(
        "non_inferiority", pair, bound=clustered_bound(gains, confidence), margin=margin, confidence=confidence,
        n_required=required_n(0.0, margin=margin, confidence=confidence),
        n_planned=needed_rows(discordance, effect, margin=margin, confidence=confidence),
        power=_power(margin, math.sqrt(discordance), gains.n / effect, confidence),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models' scores, both of shape (n,), with weights and labels, and their differences in clusters."""

    champion: NDArray[np.float64]
    candidate: NDArray[np.float64]
    weights: NDArray[np.float64]
    labels: NDArray[np.int64]
    gains: Gains

    @property
    def binary(self) -> bool:
        """Are all scores right or wrong?"""
        return self.gains.binary

    @property
    def means(self) -> tuple[float, float]:
        """Weighted means of champion and candidate; 0 without rows."""
        if not self.gains.n:
            return 0.0, 0.0
        old, new = (np.average(scores, weights=self.weights) for scores in (self.champion, self.candidate))
        return float(old), float(new)


def paired(
    champion: ArrayLike, candidate: ArrayLike, units: Units, weights: ArrayLike | None, confidence: float
) -> Paired:
    """Both models' scores, checked. Raises ValueError as `superiority` says."""
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
    if units is not None and len(units) != old.size:
        raise ValueError(f"{len(units)} units for {old.size} scores; say of every row whose it is")
    labels = np.arange(old.size) if units is None else labels_of(units)
    weighed = weights_of(weights, old.size)
    binary = all(bool(np.all((scores == 0.0) | (scores == 1.0))) for scores in (old, new))
    return Paired(old, new, weighed, labels, group(new - old, labels, weighed, binary=binary))


def _judge(
    check: str,
    pair: Paired,
    *,
    bound: float,
    margin: float,
    n_required: int,
    n_planned: int,
    power: float,
    confidence: float,
) -> Comparison:
    gains = pair.gains
    n, units, above = gains.n, gains.units, bound > -margin
    if n < n_required:
        reason = f"refused: {n} examples, {n_required} needed; add examples of this kind and judge again"
    elif units < LEAST_UNITS:
        reason = f"refused: not enough people: {n} examples of {units}, {LEAST_UNITS} needed; ask more people"
    else:
        reason = (
            f"{'passed' if above else 'refused'}: {100 * confidence:.4g}% lower bound of the difference {bound:+.4f} "
            f"is {'above' if above else 'not above'} {-margin if margin else 0.0:+.4f}"
        )
        if not above and n < n_planned:
            reason += f"; with {n} examples of {units} people an equal model may fail, {n_planned} would show it"
    old_mean, new_mean = pair.means
    return Comparison(
        check=check, passed=n >= n_required and units >= LEAST_UNITS and above, n=n, n_required=n_required,
        champion_mean=old_mean, candidate_mean=new_mean, difference=gains.mean, bound=bound, margin=margin,
        discordance=gains.discordance, power=power, confidence=confidence, reason=reason, units=units,
        design_effect=gains.design_effect, n_planned=n_planned,
    )  # fmt: skip


def _power(distance: float, spread: float, n: float, confidence: float) -> float:
    """Chance that a normal mean `distance` above the line, each pair varying by `spread`, clears its bound."""
    z = _NORMAL.inv_cdf(confidence)
    if n == 0:
        return 0.0
    if spread == 0.0:
        return 1.0 if distance > 0.0 else 0.0
    return _NORMAL.cdf(distance * math.sqrt(n) / spread - z)
