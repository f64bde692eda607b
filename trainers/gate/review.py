"""Looking back on a promotion: the version before it answers the same questions that were asked of the new one since.

Live quality alone cannot tell a bad version from a bad week. Asked the same questions, in the gate's engine, the
version before tells: the new one is undone only where it is surely worse, by more than `max_live_loss`. Neither has
seen these questions, for both were trained before they were asked. People speak of what went wrong, so the rows are
weighted such that the new version is right among them as often as it is live; where that is not known it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.events import Check
from schemas.policy import ModelPolicy
from streams.planning import LEAST_UNITS, attempt_confidence
from trainers.gate.checks import Judged, Scores, weights_of
from trainers.gate.clusters import clusters
from trainers.gate.statistics import superiority
from trainers.rows import JudgingRow, Rows

MOST_ASKED, FEWEST_ASKED = 200, 50


def asked_since(rows: Rows, since_ms: int) -> list[JudgingRow]:
    """At most 200 of the questions asked since then to which an answer stands, chosen by hash."""
    chosen = [
        JudgingRow(row, 1.0, False) for row in (*rows.said, *rows.confirmed)
        if row.dated and row.said_ms > since_ms and row.judges and row.fact not in rows.contested
    ]  # fmt: skip
    by_hash = lambda one: hashlib.sha256(f"{one.row.question}/{one.row.fact}/{one.row.unit}".encode()).digest()  # noqa: E731
    return sorted(chosen, key=by_hash)[:MOST_ASKED]


def surely_worse(
    rows: Sequence[JudgingRow], new: Scores, old: Scores, policy: ModelPolicy, *, live: float | None, look: int
) -> Check:
    """The check of a promotion; passed = it stands. `look` counts from 1: all looks share one error.

    Undone where the lower bound of what the version before is better by lies above `max_live_loss`
    (`bounds.wild_bound`, by people).
    """
    judged = Judged(rows, new, old, old, live=live)
    labels, level = clusters([one.row.unit for one in rows], [one.row.conversation for one in rows])
    weights = weights_of(judged, rows)
    picked = np.array([one.row.picked for one in rows], dtype=bool)
    confidence = attempt_confidence(policy.confidence, look)
    done = superiority(
        new, old, units=labels, weights=weights, confidence=confidence, minimum_n=FEWEST_ASKED, seed=0
    )
    enough = done.n >= FEWEST_ASKED and done.units >= LEAST_UNITS
    told = not picked.any() or (live is not None and 0 < float(new[picked].mean()) < 1)
    worse = enough and told and done.bound > policy.max_live_loss
    asked = f"of {done.n} questions of {done.units} people"
    share = f"{asked} the version before is right on {done.candidate_mean:.3f}, this"
    bound = f"{100 * confidence:.4g}% lower bound of the difference {done.bound:+.4f}"
    reason = f"{share} one on {done.champion_mean:.3f}; {bound}, {policy.max_live_loss:.4g} is allowed"
    if not enough:
        reason = f"{done.n} questions of {done.units} people: {FEWEST_ASKED} of {LEAST_UNITS} are needed"
    elif not told:
        reason = "how often the new version is right is not known: nothing but failures, or successes, was reported"
    done = replace(done, check="review", passed=not worse, reason=reason, margin=policy.max_live_loss)
    return done.to_check("since the promotion", clusters=level, look=look)
