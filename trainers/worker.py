"""`work`, the fine-tuning engine's parent side: takes jobs, keeps the broker informed, publishes candidates.

Reads `training.jobs`, writes `models.candidates` and `training.progress`. The training itself happens in a
warm child (`trainers.work_child`). A job whose candidate is already published is not trained again; one that nobody
waits for any more, because a later one was asked for or another version serves than it would go on from, is cancelled.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import CandidateTrained, FileRef, JobEnded, JobProgressed, JobRequested, JobSpec, ShardSet
from schemas.policy import ModelPolicy
from streams import kafka
from streams.kafka import Out
from streams.long_job import Limits
from streams.register import read_registry
from streams.registry import find
from streams.unreadable import readable

log = logging.getLogger(__name__)
_SETS = ("new_data", "replay_data")
GROUP, TOPIC, SOURCE = "work", "training.jobs", "work"


class WorkJob:
    """The job of the long-job loop; see `streams.long_job.Job`."""

    def __init__(self, bootstrap: str, policies: dict[str, ModelPolicy]) -> None:
        self._bootstrap, self._policies = bootstrap, policies
        self._done = finished_jobs(bootstrap)
        self._current: tuple[Envelope, JobRequested] | None = None

    def accept(self, envelope: Envelope, job: JobRequested) -> Any | list[Out] | None:
        if job.job_id in self._done:
            log.info("%s was trained before; its candidate stands", job.job_id)
            return None
        self._current = envelope, job
        if why := self._superseded(job):
            log.info("%s is cancelled: %s", job.job_id, why)
            return [self._ended("cancelled", why, 0.0)]
        return {"job": msgspec.to_builtins(job), "policy": msgspec.to_builtins(self._policy(job))}

    def _superseded(self, job: JobRequested) -> str:
        """Why a job is not worth its time any more; "" where it is. A group that lost its place reads all of the past
        again."""
        said = readable(kafka.read_to_end(self._bootstrap, TOPIC))
        *before, last = [one.job_id for _, one in said if one.model == job.model] or [job.job_id]
        if job.job_id in before and last != job.job_id:
            return f"a later job was asked for: {last}"
        state = read_registry(self._bootstrap)[0].get(job.model)
        serves = find(state, state.champion) if state else None
        if job.parent_digest and (serves is None or serves.digest != job.parent_digest):
            now = f"version {serves.version}" if serves else "the base"
            return f"it would go on from version {job.parent_version}, but {now} serves now"
        return ""

    def _policy(self, job: JobRequested) -> ModelPolicy:
        return self._policies.get(job.model, ModelPolicy())

    def limits(self) -> Limits:
        policy = self._policy(self._now()[1])
        return Limits(policy.job_limit_s, policy.silent_limit_s)

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        envelope, job = self._now()
        fields = message or {"phase": "working"}
        return [self._out(JobProgressed(model=job.model, job_id=job.job_id, **fields), envelope)]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        envelope, job = self._now()
        if isinstance(result, Exception):
            log.error("%s failed: %s", job.job_id, result)
            return [self._ended("failed", str(result), elapsed_s)]
        if "void" in result:
            log.info("%s is void: %s", job.job_id, result["void"])
            return [self._ended("void", result["void"], elapsed_s)]
        self._done.add(job.job_id)
        candidate = CandidateTrained(
            model=job.model,
            job_id=job.job_id,
            base=job.base,
            base_path=job.base_path,
            base_digest=job.base_digest,
            parent_version=job.parent_version,
            method=(job.spec or JobSpec()).method,
            drift_id=job.drift_id,
            reason=job.reason,
            changed_at=job.changed_at,
            accept=job.accept,
            void_before=job.void_before,
            live_quality=job.live_quality,
            seconds=elapsed_s,
            **result
            | msgspec.convert({name: result[name] for name in _SETS}, dict[str, ShardSet | None])
            | {"seen": msgspec.convert(result["seen"], FileRef)},
        )
        return [self._out(candidate, envelope), self._ended("succeeded", "", elapsed_s)]

    def _ended(self, outcome: str, reason: str, elapsed_s: float) -> Out:
        envelope, job = self._now()
        ended = JobEnded(model=job.model, job_id=job.job_id, outcome=outcome, reason=reason, seconds=elapsed_s)
        return self._out(ended, envelope)

    def _now(self) -> tuple[Envelope, JobRequested]:
        assert self._current is not None, "progress without a job"
        return self._current

    def _out(self, event: msgspec.Struct, cause: Envelope) -> Out:
        correlation = cause.correlation_id or cause.id
        job_id: str = event.job_id  # type: ignore[attr-defined]
        return kafka.out(event, source=SOURCE, subject=job_id, correlation_id=correlation, causation_id=cause.id)


def finished_jobs(bootstrap: str) -> set[str]:
    """Jobs whose candidate is published."""
    said = readable(kafka.read_to_end(bootstrap, "models.candidates"))
    return {event.job_id for _, event in said if isinstance(event, CandidateTrained)}
