"""Whose rows they are: paired differences grouped by the people (or conversations) they came from.

Rows of one person resemble each other, so a thousand rows of ten people tell about as much as some tens of rows.
Pure: arrays in, plain values out. Leaves the bounds to `bounds`, the verdicts to `statistics` and `classes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streams.planning import LEAST_UNITS

# Before enough people have shown how alike their rows are: this much, as if this many had shown it.
PRIOR_CORRELATION, PRIOR_UNITS = 0.3, 20

Level = Literal["unit", "conversation", "none"]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gains:
    """Paired differences (candidate minus champion) with what the bounds need of their clusters.

    `shares` (weight) and `sums` (weighted difference) are per cluster, both divided by the total weight: `shares` sum
    to 1, `sums` to `mean`. `wins` and `losses` are shares of the weight. `discordance` is the weighted mean squared
    difference. `correlation` is that of two rows of one cluster, `design_effect` how many times as many rows it takes
    as it would if every row counted the same and were another person's.
    """

    n: int
    units: int
    mean: float
    discordance: float
    wins: float
    losses: float
    binary: bool
    shares: Floats
    sums: Floats
    correlation: float
    design_effect: float

    @property
    def effective_n(self) -> float:
        """Rows that would tell as much, were each another person's."""
        return self.n / self.design_effect

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the variance: effective clusters less one; endless where no correlation is guessed at.

        Effective clusters are 1 / Σ shares² (Kish 1965): one person with a third of the rows leaves about nine.
        """
        if self.units == self.n:
            return math.inf
        return max(1.0, 1.0 / float(np.sum(self.shares**2)) - 1.0)

    @property
    def spread(self) -> float:
        """Standard deviation of one row's difference, corrected for the mean being estimated from correlated rows."""
        lost = 1.0 - min(0.99, self.design_effect / self.n)
        return math.sqrt(max(0.0, self.discordance - self.mean**2) / lost)

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / math.sqrt(self.effective_n)


NOTHING = Gains(0, 0, 0.0, 0.0, 0.0, 0.0, True, np.zeros(0), np.zeros(0), 0.0, 1.0)


def clusters(units: Sequence[Any], conversations: Sequence[Any]) -> tuple[Labels, Level]:
    """One cluster label per row (0, 1, …), and what a cluster is.

    The unit; with fewer than 20 different units the conversation (an empty one is its unit's); `none` with fewer than
    20 of these too: nothing can be judged, and a check of such labels refuses. Raises ValueError on unequal lengths.
    """
    if len(units) != len(conversations):
        raise ValueError(f"{len(units)} units, {len(conversations)} conversations; give one of each for every row")
    people = labels_of(units)
    if count(people) >= LEAST_UNITS:
        return people, "unit"
    talks = labels_of([talk or ("", unit) for unit, talk in zip(units, conversations, strict=True)])
    return talks, "conversation" if count(talks) >= LEAST_UNITS else "none"


def labels_of(ids: Sequence[Any] | NDArray[Any]) -> Labels:
    """Ids (strings or integers) as labels 0, 1, … in order of first appearance."""
    known: dict[Any, int] = {}
    listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return np.array([known.setdefault(one, len(known)) for one in listed], dtype=np.int64)


def count(labels: Labels) -> int:
    """How many different labels."""
    return int(np.unique(labels).size)


def group(gain: Floats, labels: Labels, weights: Floats, *, binary: bool) -> Gains:
    """Put differences (n,) into their clusters. Rows of weight 0 do not count. All three arrays have shape (n,)."""
    kept = weights > 0.0
    gain, labels, weights = gain[kept], labels[kept], weights[kept]
    if not gain.size:
        return NOTHING
    names, labels = np.unique(labels, return_inverse=True)
    total = float(weights.sum())  # divided by last: whole numbers stay exact
    shares, sums = np.bincount(labels, weights) / total, np.bincount(labels, weights * gain) / total
    mean = min(1.0, max(-1.0, float(np.sum(weights * gain)) / total))
    touched = int(np.sum(np.bincount(labels, gain != 0.0) > 0))
    correlation, effect = _design(gain, weights, shares, sums - shares * mean, touched)
    return Gains(
        n=int(gain.size),
        units=int(names.size),
        mean=mean,
        discordance=float(np.sum(weights * gain**2)) / total,
        wins=float(np.sum(weights[gain > 0])) / total,
        losses=float(np.sum(weights[gain < 0])) / total,
        binary=binary,
        shares=shares,
        sums=sums,
        correlation=correlation,
        design_effect=effect,
    )


def _design(gain: Floats, weights: Floats, shares: Floats, residuals: Floats, touched: int) -> tuple[float, float]:
    """Correlation within clusters and design effect. `residuals` are the clusters' sums about the mean.

    With rows correlated by ρ in a cluster, the variance of the weighted mean is σ² [(1-ρ) Σ w² + ρ Σ shares²]. ρ comes
    from the cluster-robust variance (CR2: Bell and McCaffrey 2002, Survey Methodology 28:169-181), drawn towards 0.3:
    few clusters with a disagreement show little correlation exactly when they happen to show few losses, and without
    the prior a loss of the whole margin passed up to 17% of the time (50 clusters of 10 rows).
    """
    n, total = gain.size, float(weights.sum())
    alone, together = n * float(np.sum(weights**2)) / total**2, n * float(np.sum(shares**2))
    if together - alone < 1e-9:  # every row is another person's
        return 0.0, alone
    mean = float(np.sum(weights * gain)) / total
    spread = float(np.sum(weights * (gain - mean) ** 2)) / total
    seen = 0.0
    if spread > 0.0 and shares.size > 1:
        robust = n * float(np.sum(residuals**2 / (1.0 - shares)))
        seen = min(1.0, max(0.0, (robust / spread - alone) / (together - alone)))
    correlation = (touched * seen + PRIOR_UNITS * PRIOR_CORRELATION) / (touched + PRIOR_UNITS)
    return correlation, alone + correlation * (together - alone)


def weights_of(weights: ArrayLike | None, n: int) -> Floats:
    """Row weights as an array of shape (n,), ones where none are given. Raises ValueError below 0 or not finite."""
    if weights is None:
        return np.ones(n)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (n,):
        raise ValueError(f"weights have shape {given.shape}; give one number for each of the {n} rows")
    wrong = np.flatnonzero(~((given >= 0.0) & np.isfinite(given)))
    if wrong.size:
        raise ValueError(f"weights[{wrong[0]}] is {given[wrong[0]]}; give 0 or more")
    return given
