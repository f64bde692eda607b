"""Paired right-or-wrong answers of two models on rows of which each person gives several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Answers = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]


def layout(units: int, rows: int, *, heaviest: float = 0.0) -> NDArray[np.int64]:
    """Rows of each unit, `rows` on average; the first holds the share `heaviest` of all, where that is given."""
    if not heaviest:
        return np.full(units, rows)
    first = round(units * rows * heaviest)
    rest, over = divmod(units * rows - first, units - 1)
    return np.array([first, *(rest + (at < over) for at in range(units - 1))])


def correlated(
    rng: np.random.Generator,
    sizes: NDArray[np.int64],
    *,
    discordance: float,
    gain: float = 0.0,
    correlation: float = 0.3,
    copied: bool = False,
) -> Answers:
    """Champion's and candidate's answers and whose row each is; the candidate is ahead by `gain` in expectation.

    Two differences of one unit correlate by `correlation`: every unit has its own shares of wins and losses (Dirichlet),
    or, with `copied`, each row repeats the unit's one answer with the chance √correlation.
    """
    wins, losses = (discordance + gain) / 2.0, (discordance - gain) / 2.0
    share, units = np.array([losses, 1.0 - discordance, wins]), np.repeat(np.arange(sizes.size), sizes)
    if copied:
        own, common = rng.choice(3, size=units.size, p=share), rng.choice(3, size=sizes.size, p=share)[units]
        kind = np.where(rng.random(units.size) < np.sqrt(correlation), common, own)
    else:
        drawn = rng.gamma(np.maximum(share * (1.0 - correlation) / correlation, 1e-9), size=(sizes.size, 3)) + 1e-300
        below = np.cumsum(drawn / drawn.sum(axis=1, keepdims=True), axis=1)[units]
        at = rng.random(units.size)
        kind = (at > below[:, 0]).astype(int) + (at > below[:, 1])
    both = rng.random(units.size) < 0.8
    return (kind == 0) | ((kind == 1) & both), (kind == 2) | ((kind == 1) & both), units
