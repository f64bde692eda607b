"""The checks of a verdict: pure functions of what each model scored on each row.

Superiority is shown on recent rows, against the champion. That nothing was forgotten is shown on older ones, against
the anchor: the last version that was shown to be better, so that losses since it share one margin. No class may be
surely lost. Common questions and unseen ones are looked at apart wherever there are enough of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.events import Check
from schemas.policy import ModelPolicy
from streams.planning import FIRST, Disagreement, Plan, attempt_confidence, plan
from trainers.gate.classes import class_check
from trainers.gate.clusters import Labels, clusters, count
from trainers.gate.parts import RECENT, Part
from trainers.gate.statistics import non_inferiority, superiority
from trainers.rows import JudgingRow

Scores = NDArray[np.float64]
# A row's weight is never changed by more than this, however seldom live answers are right.
MOST_REWEIGHTED = 10.0


@dataclass(frozen=True)
class Judged:
    """What the models scored on the rows: the champion (or the base), the candidate, the anchor; one number a row each.

    `anchor_name` says which version the anchor is, `live` how often the champion's answers are right (None: not known),
    `last` what the verdict before this one found.
    """

    tests: Sequence[JudgingRow]
    champion: Scores
    candidate: Scores
    anchor: Scores
    anchor_name: str = ""
    live: float | None = None
    attempt: int = 1
    unknown: str = ""  # why live quality is not known
    last: Disagreement = FIRST


class Checks:
    """Makes the checks of one verdict."""

    def __init__(self, judged: Judged, policy: ModelPolicy, parts: Sequence[Part]) -> None:
        self._judged, self._policy, self._parts = judged, policy, parts
        self._place = {id(one): number for number, one in enumerate(judged.tests)}
        rows = [one.row for one in judged.tests]
        self._labels, self._level = clusters([row.unit for row in rows], [row.conversation for row in rows])
        self._weights = weights_of(judged, [one for part in parts if part.name == RECENT for one in part.rows])
        self._confidence = attempt_confidence(policy.confidence, judged.attempt)

    def all(self) -> list[Check]:
        """Every check; the verdict passes where all do."""
        made = []
        for part in self._parts:
            made += [self._better(part)] if part.better else self._no_worse(part)
        classes = [one.row.class_name or None for one in self._judged.tests]
        lost = class_check(
            self._judged.champion, self._judged.candidate, classes, self._labels, weights=self._weights,
            confidence=self._policy.confidence,
        )
        return [*made, lost.to_check("classes", **self._about())]

    def _better(self, part: Part) -> Check:
        rows = part.rows
        if self._judged.unknown:  # what people picked to complain of shows no better model
            rows = tuple(one for one in rows if not one.row.picked)
        at = self._at(rows)
        done = superiority(
            self._judged.champion[at], self._judged.candidate[at], units=self._labels[at], weights=self._weights[at],
            confidence=self._confidence, minimum_n=self._policy.min_holdout_examples, seed=0,
        )
        check = done.to_check(part.name, **self._about(), attempt=self._judged.attempt)
        if self._judged.unknown and not check.passed:
            check = _with_reason(check, f"{check.reason}; {self._judged.unknown}")
        return check

    def _no_worse(self, part: Part) -> list[Check]:
        """All of a part's rows; then its common questions and its unseen ones, where there are enough of them."""
        rows = part.rows
        name = part.name
        if not self._plan(rows).enough and len(rows) < len(self._judged.tests):
            rows, name = tuple(self._judged.tests), f"{part.name} and other"
        checks = [self._retained(name, rows)]
        for kind, common in (("common", True), ("unseen", False)):
            some = tuple(one for one in rows if one.common is common)
            if len(some) < len(rows) and self._plan(some).enough:
                checks.append(self._retained(f"{name} {kind}", some))
        return checks

    def _retained(self, name: str, rows: Sequence[JudgingRow]) -> Check:
        at, planned = self._at(rows), self._plan(rows)
        done = non_inferiority(
            self._judged.anchor[at], self._judged.candidate[at], units=self._labels[at], weights=self._weights[at],
            margin=planned.margin, confidence=self._policy.confidence,
        )
        check = done.to_check(name, **self._about(), against=self._judged.anchor_name)
        if not planned.enough:
            return _with_reason(check, f"refused: {planned.words}", passed=False)
        if planned.margin > self._policy.max_retention_loss:
            return _with_reason(check, f"{check.reason}; {planned.words}")
        return check

    def _plan(self, rows: Sequence[JudgingRow]) -> Plan:
        policy = self._policy
        return plan(
            len(rows), count(self._labels[self._at(rows)]) if rows else 0, last=self._judged.last,
            margin=policy.max_retention_loss, confidence=policy.confidence, minimum_n=policy.min_holdout_examples,
            small_data=policy.small_data,
        )

    def _at(self, rows: Sequence[JudgingRow]) -> NDArray[np.int64]:
        return np.array([self._place[id(one)] for one in rows], dtype=np.int64)

    def _about(self) -> dict[str, Any]:
        return {"clusters": self._level}

    @property
    def labels(self) -> Labels:
        return self._labels

    @property
    def weights(self) -> Scores:
        return self._weights


def weights_of(judged: Judged, recent: Sequence[JudgingRow]) -> Scores:
    """Each row's weight: its askers; recent rows that people picked such that the champion is right among them as often
    as it is live.

    Feedback is given on what goes wrong. A champion that is always wrong, or never, cannot be weighted; nor can older
    rows: how often it is right now says nothing of what was asked then.
    """
    late = set(map(id, recent))
    askers = np.array([one.weight for one in judged.tests], dtype=np.float64)
    said = np.array([one.row.picked and id(one) in late for one in judged.tests], dtype=bool)
    if judged.live is None or not said.any():
        return askers
    right = float(np.average(judged.champion[said], weights=askers[said]))
    if not 0 < right < 1:
        return askers
    up = min(MOST_REWEIGHTED, judged.live / right)
    down = min(MOST_REWEIGHTED, (1 - judged.live) / (1 - right))
    change = judged.champion * up + (1 - judged.champion) * down
    return np.where(said, askers * change, askers)


def _with_reason(check: Check, reason: str, **changes: Any) -> Check:
    fields: Mapping[str, Any] = {name: getattr(check, name) for name in Check.__struct_fields__}
    return Check(**{**fields, **changes, "reason": reason})
