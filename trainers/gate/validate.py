"""`gate`, the model validation service's parent side: takes candidates, publishes verdicts.

Reads `models.candidates` and, to know the champion, `models.registry`; writes `models.verdicts` and
`training.progress`. The judging happens in a warm child (`trainers.gate.judge`), as does looking back on promotions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import (
    CandidateTrained,
    Check,
    FileRef,
    JobProgressed,
    ReviewReached,
    ReviewRequested,
    VerdictReached,
)
from schemas.policy import ModelPolicy
from streams import kafka
from streams.kafka import Out
from streams.long_job import Limits
from streams.planning import disagreement
from streams.register import read_registry
from streams.unreadable import readable

log = logging.getLogger(__name__)
GROUP, TOPIC, SOURCE = "gate", "models.candidates", "gate"
# What the registry knows this judge by.
JUDGE = "gate"
_JUDGED = ("passed", "reason", "champion_version", "void", "failed", "erasures", "warnings", "live_quality", "superior")
_FILES = ("test_rows", "scores")


class GateJob:
    """The job of the long-job loop; see `streams.long_job.Job`."""

    def __init__(self, bootstrap: str, policies: dict[str, ModelPolicy]) -> None:
        self._bootstrap, self._policies = bootstrap, policies
        self._current: tuple[Envelope, CandidateTrained | ReviewRequested] | None = None

    def accept(self, envelope: Envelope, candidate: CandidateTrained | ReviewRequested) -> Any | list[Out] | None:
        self._current = envelope, candidate
        if isinstance(candidate, ReviewRequested):
            return self._look_back(candidate)
        said = verdicts(self._bootstrap, candidate.model)
        if any(one.job_id == candidate.job_id for one in said):  # a group that lost its place reads the past again
            log.info("%s was judged before", candidate.job_id)
            return None
        models, _ = read_registry(self._bootstrap)
        policy = self._policies.get(candidate.model, ModelPolicy())
        state = models.get(candidate.model)
        plain: dict[str, Any] = {"candidate": candidate, "policy": policy, "state": state}
        last = disagreement(one.checks for one in said)
        before = attempts(said, state.champion if state else 0, candidate.changed_at)
        return {
            **msgspec.to_builtins(plain), "attempt": before + 1,
            "last": [last.share, last.design_effect],
        }  # fmt: skip

    def _look_back(self, asked: ReviewRequested) -> Any | None:
        """The request for a review; None where another version serves by now."""
        state = read_registry(self._bootstrap)[0].get(asked.model)
        if state is None or (state.champion, state.epoch) != (asked.version, asked.epoch):
            log.info("%s is past: another version serves", asked.review_id)
            return None
        policy = self._policies.get(asked.model, ModelPolicy())
        return msgspec.to_builtins({"review": asked, "policy": policy, "state": state})

    def limits(self) -> Limits:
        policy = self._policies.get(self._now()[1].model, ModelPolicy())
        return Limits(policy.verdict_limit_s, policy.silent_limit_s)

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        envelope, candidate = self._now()
        if isinstance(candidate, ReviewRequested):
            return []
        fields = message or {"phase": "evaluating"}
        return [self._out(JobProgressed(model=candidate.model, job_id=candidate.job_id, **fields), envelope)]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        envelope, candidate = self._now()
        if isinstance(candidate, ReviewRequested):
            return [self._reviewed(candidate, result, elapsed_s)]
        if isinstance(result, Exception):
            said = f"the check failed: {result}"
            result = {"passed": False, "reason": said, "checks": [], "champion_version": 0, "failed": True}
        judged = {name: result[name] for name in _JUDGED if name in result}
        verdict = VerdictReached(
            model=candidate.model,
            job_id=candidate.job_id,
            digest=candidate.digest,
            path=candidate.path,
            base=candidate.base,
            base_digest=candidate.base_digest,
            fingerprint=candidate.fingerprint,
            dtype=candidate.dtype,
            probe=candidate.probe,
            seen=candidate.seen,
            newest_row_ms=candidate.newest_row_ms,
            new_data=candidate.new_data,
            replay_data=candidate.replay_data,
            drift_id=candidate.drift_id,
            changed_at=candidate.changed_at,
            seconds=elapsed_s,
            judge=JUDGE,
            **judged | msgspec.convert({name: result.get(name) for name in _FILES}, dict[str, FileRef | None]),
            checks=msgspec.convert(result["checks"], list[Check]),
        )
        log.info("%s: %s", candidate.job_id, _in_a_word(verdict))
        return [self._out(verdict, envelope)]

    def _reviewed(self, asked: ReviewRequested, result: Any, elapsed_s: float) -> Out:
        failed = isinstance(result, Exception)
        found: Any = {"worse": False, "reason": f"the check failed: {result}", "checks": []} if failed else result
        reached = ReviewReached(
            model=asked.model, review_id=asked.review_id, version=asked.version, previous=asked.previous,
            epoch=asked.epoch, worse=found["worse"], reason=found["reason"],
            checks=msgspec.convert(found["checks"], list[Check]), judge=JUDGE, failed=failed, seconds=elapsed_s,
        )
        log.info("%s@%d: %s", asked.model, asked.version, reached.reason)
        return self._out(reached, self._now()[0])

    def _now(self) -> tuple[Envelope, CandidateTrained | ReviewRequested]:
        assert self._current is not None, "progress without a candidate"
        return self._current

    def _out(self, event: msgspec.Struct, cause: Envelope) -> Out:
        correlation = cause.correlation_id or cause.id
        subject = getattr(event, "job_id", "") or getattr(event, "review_id", "")
        return kafka.out(event, source=SOURCE, subject=subject, correlation_id=correlation, causation_id=cause.id)


def verdicts(bootstrap: str, model: str) -> list[VerdictReached]:
    """The committed verdicts on a model's candidates, oldest first."""
    read = readable(kafka.read_to_end(bootstrap, "models.verdicts", settled=True))
    return [event for _, event in read if isinstance(event, VerdictReached) and event.model == model]


def attempts(said: Sequence[VerdictReached], champion: int, changed_at: int = 0) -> int:
    """How many candidates were judged against this champion on about the same rows as the last of them.

    What was said since a drift began are other rows than those since the champion learned. Once twice as many rows
    judge, most of them are new, and the error that was spent on the old ones is over.
    """
    rows = [
        one.test_rows.rows for one in said
        if one.champion_version == champion and one.changed_at == changed_at and not one.passed and one.test_rows
    ]  # fmt: skip
    return sum(2 * count > rows[-1] for count in rows)


def _in_a_word(verdict: VerdictReached) -> str:
    return "passed" if verdict.passed else f"{'void' if verdict.void else 'refused'}: {verdict.reason}"
