"""Has this version's quality fallen? An alarm that may look after every answer and still keeps its promise.

Reads one version's answers, right or wrong, in (partition, offset) order; returns an `Alarm` at most once.
Pure: the same answers give the same alarm, so a replay repeats it. Leaves to the monitor which answers
belong to the version, where they come from, and what the alarm is called.

The evidence is an e-detector (Shin, Ramdas and Rinaldo 2023, "E-detectors", NEJSDS 2:229-260) of
Shiryaev-Roberts form. For a bet λ and tolerated quality m0 = b - delta,

    M_t = (M_{t-1} + 1) · (1 + λ · (m0 - x_t)),       x_t = 1 for a right answer, 0 for a wrong one,

and the evidence is the mean of M over a grid of bets. While quality is at least m0, the expected evidence
grows by at most 1 an answer, so alarming at `average_run_length` takes at least that many answers on
average. (The mean is over whole detectors: the factor is linear in λ, so a mean of factors would be one
bet.) b is the lower confidence bound of the version's first answers, not their mean: an estimated baseline
taken as exact breaks the promise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streams.monitor.intervals import lower_bound

SMALLEST_BASELINE = 100
SHORTEST_RUN = 100  # far above the few units of evidence that right answers alone can gather
# A bet f is λ = f / (1 - m0), the best bet against quality having fallen to (1 - f) · m0; f < 1 keeps M positive.
BETS = (0.05, 0.1, 0.2, 0.4, 0.7)


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """`delta` is the loss tolerated below the baseline; `average_run_length` the mean answers per false alarm."""

    baseline_n: int = 100
    delta: float = 0.05
    average_run_length: float = 10_000
    baseline_confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.baseline_n < SMALLEST_BASELINE:
            raise ValueError(f"baseline_n is {self.baseline_n}; give at least {SMALLEST_BASELINE} answers")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta is {self.delta}; give a tolerated loss between 0 and 1, such as 0.05")
        if not self.average_run_length >= SHORTEST_RUN:
            raise ValueError(f"average_run_length is {self.average_run_length}; give {SHORTEST_RUN} or more")
        if not 0.5 < self.baseline_confidence < 1.0:
            raise ValueError(f"baseline_confidence is {self.baseline_confidence}; give a level between 0.5 and 1")


@dataclass(frozen=True, slots=True)
class Alarm:
    """Quality has fallen below `threshold`.

    `index` is the 0-based position of the answer that raised it, `changed_at` that of the first answer after
    the likeliest moment of change; `quality` is the share right over the `n_since_change` answers between
    them, both included. Chosen for being bad, those answers read a little worse than the quality now is.
    """

    index: int
    changed_at: int
    n_observed: int
    n_since_change: int
    baseline: float
    threshold: float
    evidence: float
    quality: float


class Detector:
    """One version's evidence, fed one answer at a time; silent over its baseline and after its alarm.

    `baseline` and `threshold` are None until the baseline is full. With a threshold of 0 or less no fall can
    be told from the tolerated loss, so the evidence stays 0.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        self.settings = settings
        self.n = 0
        self.evidence = 0.0
        self.baseline: float | None = None
        self.threshold: float | None = None
        self.alarm: Alarm | None = None
        self._baseline_correct = 0
        self._factors: dict[bool, tuple[float, ...]] = {}
        self._evidence_by_bet = [0.0] * len(BETS)
        self._change = _ChangePoint()

    def update(self, correct: bool) -> Alarm | None:
        """Take the next answer; return the alarm at the answer that raises it, None at every other."""
        index = self.n
        self.n += 1
        if self.alarm is not None:
            return None
        if self.threshold is None:
            self._learn_baseline(correct)
            return None
        if self.threshold <= 0.0:
            return None
        self._change.update(correct, self.threshold)
        factors = self._factors[bool(correct)]
        self._evidence_by_bet = [(m + 1.0) * f for m, f in zip(self._evidence_by_bet, factors, strict=True)]
        self.evidence = sum(self._evidence_by_bet) / len(BETS)
        if self.evidence >= self.settings.average_run_length:
            self.alarm = self._alarm_at(index)
        return self.alarm

    def _learn_baseline(self, correct: bool) -> None:
        self._baseline_correct += bool(correct)
        if self.n < self.settings.baseline_n:
            return
        self.baseline = lower_bound(self._baseline_correct, self.n, self.settings.baseline_confidence)
        self.threshold = self.baseline - self.settings.delta
        odds = self.threshold / (1.0 - self.threshold)
        self._factors = {True: tuple(1.0 - f for f in BETS), False: tuple(1.0 + f * odds for f in BETS)}

    def _alarm_at(self, index: int) -> Alarm:
        assert self.baseline is not None and self.threshold is not None
        return Alarm(
            index=index,
            changed_at=index + 1 - self._change.n,
            n_observed=self.n - self.settings.baseline_n,
            n_since_change=self._change.n,
            baseline=self.baseline,
            threshold=self.threshold,
            evidence=self.evidence,
            quality=self._change.correct / self._change.n,
        )


class _ChangePoint:
    """Answers since the summed shortfall Σ(m0 - x) was last at its lowest (Page 1954): the likeliest change."""

    def __init__(self) -> None:
        self.n = 0
        self.correct = 0

    def update(self, correct: bool, threshold: float) -> None:
        self.n += 1
        self.correct += bool(correct)
        if self.n * threshold <= self.correct:
            self.n = self.correct = 0


def detect(outcomes: Iterable[bool], settings: DetectorSettings) -> Alarm | None:
    """The first alarm these answers raise, or None; reads no further than the answer that raises it."""
    detector = Detector(settings)
    for correct in outcomes:
        alarm = detector.update(correct)
        if alarm is not None:
            return alarm
    return None
