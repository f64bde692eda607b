"""One check for all classes of answers: is any of them surely much worse than before?

A candidate that is as good on the whole may have lost one class altogether. Every class with enough rows of enough
people is looked at, and Holm's correction keeps the chance of one false refusal below 1 - confidence whatever their
number. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainers.gate.bounds import chance_at_most, clustered_bound
from trainers.gate.clusters import NOTHING, Gains, count, group
from trainers.gate.statistics import Comparison, Paired, Units, paired

MOST_NAMED = 20  # classes told of in a verdict, those that lost most first


@dataclass(frozen=True, slots=True)
class _Class:
    """One class: its losses (champion minus candidate) and the p-value of "it lost no more than the margin"."""

    name: str
    champion_mean: float
    losses: Gains
    chance: float

    @property
    def order(self) -> tuple[float, float, str]:
        """The surest loss first."""
        return self.chance, -self.losses.mean, self.name


def class_check(
    champion: ArrayLike,
    candidate: ArrayLike,
    classes: Sequence[str | None],
    units: Units,
    *,
    weights: ArrayLike | None = None,
    margin: float = 0.20,
    confidence: float = 0.95,
    least_rows: int = 30,
    least_units: int = 10,
) -> Comparison:
    """Has no class surely lost more than `margin` (0.20 = twenty points)?

    For each class with `least_rows` rows of `least_units` units, "the loss is at most `margin`" is tested; Holm's
    step-down procedure (1979, Scandinavian Journal of Statistics 6:65-70) over all of them says which are refused.
    Passes where none is, also where no class is large enough. Rows without a class (None or empty) are not looked at.

    `n` and `units` are of all rows looked at. The other numbers are those of the class with the surest loss, `bound`
    its one-sided *upper* bound with the error shared by all classes: refused means `bound < -margin`. `details` says
    how many classes of how many were looked at, which are `worse`, and the numbers of up to 20. Raises ValueError as
    `superiority` does, and where there is not one class for each row.
    """
    pair = paired(champion, candidate, units, weights, confidence)
    if len(classes) != pair.champion.size:
        raise ValueError(
            f"{len(classes)} classes for {pair.champion.size} scores; say one of every row, None where it has none"
        )
    named = np.array([name or "" for name in classes], dtype=object)
    found = [_class(pair, name, named == name, margin) for name in sorted(set(named.tolist()) - {""})]
    large = sorted(
        (one for one in found if one.losses.n >= least_rows and one.losses.units >= least_units),
        key=lambda one: one.order,
    )
    worse = _holm([one.chance for one in large], 1.0 - confidence)
    details = {
        "classes": [_told(one, at < worse) for at, one in enumerate(large[:MOST_NAMED])], "looked_at": len(large),
        "of": len(found), "worse": sorted(one.name for one in large[:worse]),
    }  # fmt: skip
    reason = _reason(details, margin, least_rows, least_units)
    rows = np.isin(named, [one.name for one in large]) & (pair.weights > 0.0)
    return _comparison(
        large, int(rows.sum()), count(pair.labels[rows]), worse == 0, reason, margin, confidence, details
    )


def _class(pair: Paired, name: str, of: NDArray[np.bool_], margin: float) -> _Class:
    losses = group((pair.champion - pair.candidate)[of], pair.labels[of], pair.weights[of], binary=pair.binary)
    mean = float(np.average(pair.champion[of], weights=pair.weights[of])) if losses.n else 0.0
    return _Class(name, mean, losses, chance_at_most(losses, margin))


def _holm(chances: list[float], alpha: float) -> int:
    """How many of the p-values (ascending) are rejected, with a chance of at most alpha that any is so wrongly."""
    for done, chance in enumerate(chances):
        if chance > alpha / (len(chances) - done):
            return done
    return len(chances)


def _told(one: _Class, worse: bool) -> dict[str, Any]:
    return {
        "class": one.name, "rows": one.losses.n, "units": one.losses.units, "difference": round(-one.losses.mean, 4),
        "p": round(one.chance, 6), "worse": worse,
    }  # fmt: skip


def _reason(details: dict[str, Any], margin: float, least_rows: int, least_units: int) -> str:
    large, of, worse = details["looked_at"], details["of"], details["worse"]
    seen = f"{large} of {of} classes have {least_rows} rows of {least_units} people"
    if not worse:
        return f"passed: {seen}; none is surely {margin:.0%} worse"
    names = ", ".join(worse[:MOST_NAMED]) + (f" and {len(worse) - MOST_NAMED} more" if len(worse) > MOST_NAMED else "")
    return f"refused: {seen}; surely over {margin:.0%} worse: {names}; add examples of these classes and train again"


def _comparison(
    large: list[_Class],
    n: int,
    units: int,
    passed: bool,
    reason: str,
    margin: float,
    confidence: float,
    details: dict[str, Any],
) -> Comparison:
    worst = large[0] if large else _Class("", 0.0, NOTHING, 1.0)
    losses, shared = worst.losses, 1.0 - (1.0 - confidence) / max(1, len(large))
    return Comparison(
        check="classes", passed=passed, n=n, n_required=0, champion_mean=worst.champion_mean,
        candidate_mean=worst.champion_mean - losses.mean, difference=-losses.mean,
        bound=-clustered_bound(losses, shared), margin=margin, discordance=losses.discordance, power=0.0,
        confidence=confidence, reason=reason, units=units, design_effect=losses.design_effect, n_planned=0,
        details=details,
    )  # fmt: skip
