"""Confidence intervals for a share of right answers: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from statistics import NormalDist

from scipy import special


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval (Wilson 1927, JASA 22:209-212), for reports and charts; (0, 1) when n is 0.

    `successes` may be a sum of shares, such as one of each person.
    """
    _refuse_impossible(successes, n, confidence)
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    share, scale = successes / n, 1.0 + z * z / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def lower_bound(successes: int, n: int, confidence: float = 0.95) -> float:
    """One-sided exact lower bound (Clopper and Pearson 1934, Biometrika 26:404-413); 0 when nothing succeeded.

    Exact, because the detector's promise rests on it: Wilson's bound covers too seldom close to 1, where
    live quality is.
    """
    _refuse_impossible(successes, n, confidence)
    if successes == 0:
        return 0.0
    return float(special.betaincinv(successes, n - successes + 1, 1.0 - confidence))


def _refuse_impossible(successes: float, n: int, confidence: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of n={n}; count each answer once, right or wrong")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; give a level between 0 and 1, such as 0.95")
