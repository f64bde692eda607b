"""Has this version's quality fallen? An alarm that may look after every answer and still keeps its promise.

Reads one version's answers in their order, right or wrong and whose; returns an `Alarm` at most once. Pure: the same
answers give the same alarm, so a replay repeats it. Leaves to the monitor which answers belong to the version,
where they come from, and what the alarm is called.

The evidence is an e-detector (Shin, Ramdas and Rinaldo 2023, "E-detectors", NEJSDS 2:229-260) of
Shiryaev-Roberts form. For a bet λ and tolerated quality m0 = b - delta,

    M_t = (M_{t-1} + 1) · (1 + λ · (m0 - x_t)),       x_t = 1 for a right answer, 0 for a wrong one,

and the evidence is the mean of M over a grid of bets. While quality is at least m0, the expected evidence
grows by at most 1 an answer, so alarming at `average_run_length` takes at least that many answers on
average. (The mean is over whole detectors: the factor is linear in λ, so a mean of factors would be one
bet.) Given when answers came, the mean is promised in days instead: as many answers as come in so many days, at
the rate that was seen so far. b is the lower confidence bound of the version's first answers, not their mean: an
estimated baseline taken as exact breaks the promise.

People are counted, not answers alone. Two rules, and both keep the promise, for neither looks at the answer
that it decides about:

- Turns. At most one answer of a person counts in 20 in a row (fewer where fewer people answer, never under 5). What
  one person says is a 20th of what counts, and moves quality by no more than the tolerated loss of 0.05.
- No one alone. The alarm has to stand without what any one person has added: for each person the evidence is
  also kept with their factors taken as 1. That one keeps the promise whatever the person says, so at the
  alarm it holds for everybody but any one of them. A version that a single person uses raises no alarm.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from schemas.topics import DAY_MS
from streams.monitor.intervals import lower_bound

SMALLEST_BASELINE = 100
SHORTEST_RUN = 100  # far above the few units of evidence that right answers alone can gather
# A bet f is λ = f / (1 - m0), the best bet against quality having fallen to (1 - f) · m0; f < 1 keeps M positive.
BETS = (0.05, 0.1, 0.2, 0.4, 0.7)
# In how many answers in a row one person counts once: as many as people were heard lately, within these bounds.
SHORTEST_ROUND, LONGEST_ROUND, LATELY = 5, 20, 100


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """`delta` is the loss tolerated below the baseline; `average_run_length` the mean answers per false alarm.

    With `false_alarm_days` above 0 these are as many as come in so many days.
    """

    baseline_n: int = 100
    delta: float = 0.05
    average_run_length: float = 10_000
    baseline_confidence: float = 0.95
    false_alarm_days: float = 0.0

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
    the likeliest moment of change; `quality` is the share right over the `n_since_change` answers that counted between
    them, both included, of `people` people; `average_run_length` was asked of the evidence.
    Chosen for being bad, those answers read a little worse than the quality now is. `n_observed` answers counted after
    the baseline.
    """

    index: int
    changed_at: int
    n_observed: int
    n_since_change: int
    people: int
    baseline: float
    threshold: float
    evidence: float
    quality: float
    average_run_length: float = 0.0


class Detector:
    """One version's evidence, fed one answer at a time; silent over its baseline and after its alarm.

    `n` answers were seen, of which `counted` count. `baseline` and `threshold` are None until the baseline is full.
    With a threshold of 0 or less no fall can be told from the tolerated loss, so the evidence stays 0.
    """

    def __init__(self, settings: DetectorSettings) -> None:
        self.settings = settings
        self.n = self.counted = 0
        self.evidence = 0.0
        self.baseline: float | None = None
        self.threshold: float | None = None
        self.alarm: Alarm | None = None
        self._right = 0
        self._first_ms = 0
        self._least = settings.average_run_length
        self._factors: dict[bool, tuple[float, ...]] = {}
        self._evidence_by_bet = [0.0] * len(BETS)
        self._turns, self._change, self._added = _Turns(), _ChangePoint(), _Added()

    def update(self, correct: bool, person: str = "", at_ms: int = 0, watched: bool = True) -> Alarm | None:
        """Take the next answer; return the alarm at the answer that raises it, None at every other.

        An answer of nobody known counts as a person's of its own. `at_ms` is when it came (Unix ms), in order. One that
        is not `watched` may count for the baseline alone: it came before the alarm was armed again.
        """
        index = self.n
        self.n += 1
        who: Hashable = person or index
        self._first_ms = self._first_ms or at_ms
        if not watched and self.threshold is not None:
            return None
        if self.alarm is not None or self._is_suspect(who) or not self._turns.take(who, index):
            return None
        self.counted += 1
        if self.settings.false_alarm_days and at_ms:
            days = max(1.0, (at_ms - self._first_ms) / DAY_MS)
            self._least = max(SHORTEST_RUN, self.settings.false_alarm_days * self.counted / days)
        self._right += bool(correct)
        if self.threshold is None:
            self._learn_baseline()
        elif self.threshold > 0.0:
            self._observe(bool(correct), who, index)
        return self.alarm

    def _is_suspect(self, who: Hashable) -> bool:
        """Whether the evidence would do, but for what this one person added: more of it would change nothing."""
        return self.evidence >= self._least and who == self._added.most

    def _observe(self, correct: bool, who: Hashable, index: int) -> None:
        assert self.threshold is not None
        self._change.update(correct, self.threshold, who, index)
        before, factors = self._evidence_by_bet, self._factors[correct]
        self._evidence_by_bet = [(m + 1.0) * f for m, f in zip(before, factors, strict=True)]
        self._added.update(who, correct, before, self._factors)
        self.evidence = sum(self._evidence_by_bet) / len(BETS)
        if self.evidence >= self._least and self._added.stands(self.evidence, self._least):
            self.alarm = self._alarm_at(index)

    def _learn_baseline(self) -> None:
        if self.counted < self.settings.baseline_n:
            return
        self.baseline = lower_bound(self._right, self.counted, self.settings.baseline_confidence)
        self.threshold = self.baseline - self.settings.delta
        odds = self.threshold / (1.0 - self.threshold)
        self._factors = {True: tuple(1.0 - f for f in BETS), False: tuple(1.0 + f * odds for f in BETS)}

    def _alarm_at(self, index: int) -> Alarm:
        assert self.baseline is not None and self.threshold is not None
        return Alarm(
            index=index,
            changed_at=self._change.began,
            n_observed=self.counted - self.settings.baseline_n,
            n_since_change=self._change.n,
            people=len(self._change.people),
            baseline=self.baseline,
            threshold=self.threshold,
            evidence=self.evidence,
            quality=self._change.correct / self._change.n,
            average_run_length=self._least,
        )


class _Turns:
    """Whose answer counts: each person's once in a round of answers."""

    def __init__(self) -> None:
        self._last: dict[Hashable, int] = {}
        self._lately: deque[Hashable] = deque()
        self._people: Counter[Hashable] = Counter()

    def take(self, who: Hashable, index: int) -> bool:
        """Whether the answer at `index` counts; a person's turn is taken with it."""
        answers = min(LONGEST_ROUND, max(SHORTEST_ROUND, len(self._people)))
        if index - self._last.get(who, -answers) < answers:
            return False
        self._last[who] = index
        self._lately.append(who)
        self._people[who] += 1
        if len(self._lately) > LATELY:
            left = self._lately.popleft()
            self._people[left] -= 1
            if not self._people[left]:
                del self._people[left]
        return True


class _Added:
    """What each person has added to the evidence, for each bet, and who added `most` when that was last asked.

    With a person's factors taken as 1 their evidence is M - d, where d starts at 0, becomes d + (M + 1) · (L - 1) with
    their own answer of factor L and d · L with anybody else's. A d below 0 counts as 0: that only defers an alarm.
    """

    def __init__(self) -> None:
        self.most: Hashable = None
        # Kept as it was at the person's last answer, with how many were right and wrong by then.
        self._by_person: dict[Hashable, tuple[list[float], int, int]] = {}
        self._right = self._wrong = 0
        self._logs: dict[bool, list[float]] = {}

    def update(
        self, who: Hashable, correct: bool, before: list[float], factors: dict[bool, tuple[float, ...]]
    ) -> None:
        """Take the answer that multiplied the evidence `before` (each plus 1) by its factors."""
        if not self._logs:
            self._logs = {side: [math.log(f) for f in factors[side]] for side in (True, False)}
        known = who in self._by_person
        added = self._now(who) if known else [0.0] * len(BETS)
        self._right += correct
        self._wrong += not correct
        if known or not correct:
            bets = zip(added, before, factors[correct], strict=True)
            added = [max(0.0, d + (m + 1.0) * (f - 1.0)) for d, m, f in bets]
            self._by_person[who] = added, self._right, self._wrong

    def _now(self, who: Hashable) -> list[float]:
        added, right, wrong = self._by_person[who]
        right, wrong = self._right - right, self._wrong - wrong
        logs = zip(self._logs[True], self._logs[False], strict=True)
        return [d and d * math.exp(right * r + wrong * w) for d, (r, w) in zip(added, logs, strict=True)]

    def _sum(self, who: Hashable) -> float:
        return sum(self._now(who)) / len(BETS)

    def stands(self, evidence: float, least: float) -> bool:
        """Whether the evidence is still enough without any one person."""
        if self.most in self._by_person and evidence - self._sum(self.most) < least:
            return False  # the same as before: no need to ask for all
        self.most = max(self._by_person, key=self._sum)
        return evidence - self._sum(self.most) >= least


class _ChangePoint:
    """Answers since the summed shortfall Σ(m0 - x) was last at its lowest (Page 1954): the likeliest change."""

    def __init__(self) -> None:
        self.n = self.correct = self.began = 0
        self.people: set[Hashable] = set()

    def update(self, correct: bool, threshold: float, who: Hashable, index: int) -> None:
        if not self.n:
            self.began = index
        self.n += 1
        self.correct += bool(correct)
        self.people.add(who)
        if self.n * threshold <= self.correct:
            self.n = self.correct = 0
            self.people.clear()


def detect(answers: Iterable[tuple[bool, str]], settings: DetectorSettings) -> Alarm | None:
    """The first alarm these answers (right or wrong, and whose) raise, or None; reads no further than that."""
    detector = Detector(settings)
    for correct, person in answers:
        alarm = detector.update(correct, person)
        if alarm is not None:
            return alarm
    return None
