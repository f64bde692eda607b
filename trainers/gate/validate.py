"""`gate`, the model validation service's parent side: takes candidates, publishes verdicts.

Reads `models.candidates` and, to know the champion, `models.registry`; writes `models.verdicts` and
`training.progress`. The judging happens in a warm child (`trainers.gate.judge`).
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import CandidateTrained, Check, JobProgressed, VerdictReached
from schemas.policy import ModelPolicy
from streams import kafka
from streams.kafka import Out
from streams.register import read_registry

log = logging.getLogger(__name__)
GROUP, TOPIC, SOURCE = "gate", "models.candidates", "gate"


class GateJob:
    """The job of the long-job loop; see `streams.long_job.Job`."""

    def __init__(self, bootstrap: str, policies: dict[str, ModelPolicy]) -> None:
        self._bootstrap, self._policies = bootstrap, policies
        self._current: tuple[Envelope, CandidateTrained] | None = None

    def accept(self, envelope: Envelope, candidate: CandidateTrained) -> Any | None:
        self._current = envelope, candidate
        models, _ = read_registry(self._bootstrap)
        policy = self._policies.get(candidate.model, ModelPolicy())
        state = models.get(candidate.model)
        plain: dict[str, Any] = {"candidate": candidate, "policy": policy, "state": state}
        return msgspec.to_builtins(plain)

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        envelope, candidate = self._now()
        fields = message or {"phase": "evaluating"}
        return [self._out(JobProgressed(model=candidate.model, job_id=candidate.job_id, **fields), envelope)]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        envelope, candidate = self._now()
        if isinstance(result, Exception):
            said = f"the check failed: {result}"
            result = {"passed": False, "reason": said, "checks": [], "champion_version": 0, "failed": True}
        verdict = VerdictReached(
            model=candidate.model,
            job_id=candidate.job_id,
            digest=candidate.digest,
            passed=result["passed"],
            reason=result["reason"],
            champion_version=result["champion_version"],
            checks=[msgspec.convert(check, Check) for check in result["checks"]],
            path=candidate.path,
            base=candidate.base,
            base_digest=candidate.base_digest,
            fingerprint=candidate.fingerprint,
            new_data=candidate.new_data,
            replay_data=candidate.replay_data,
            drift_id=candidate.drift_id,
            void=result.get("void", False),
            failed=result.get("failed", False),
            erasures=result.get("erasures", []),
            seconds=elapsed_s,
        )
        log.info("%s: %s", candidate.job_id, _in_a_word(verdict))
        return [self._out(verdict, envelope)]

    def _now(self) -> tuple[Envelope, CandidateTrained]:
        assert self._current is not None, "progress without a candidate"
        return self._current

    def _out(self, event: msgspec.Struct, cause: Envelope) -> Out:
        correlation = cause.correlation_id or cause.id
        job_id: str = event.job_id  # type: ignore[attr-defined]
        return kafka.out(event, source=SOURCE, subject=job_id, correlation_id=correlation, causation_id=cause.id)


def _in_a_word(verdict: VerdictReached) -> str:
    return "passed" if verdict.passed else f"{'void' if verdict.void else 'refused'}: {verdict.reason}"
