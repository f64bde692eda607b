"""`work`, the fine-tuning engine's parent side: takes jobs, keeps the broker informed, publishes candidates.

Reads `training.jobs`, writes `models.candidates` and `training.progress`. The training itself happens in a
warm child (`trainers.work_child`). A job whose candidate is already published is not trained again.
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
from streams.unreadable import readable

log = logging.getLogger(__name__)
_SETS = ("new_data", "replay_data")
GROUP, TOPIC, SOURCE = "work", "training.jobs", "work"


class WorkJob:
    """The job of the long-job loop; see `streams.long_job.Job`."""

    def __init__(self, bootstrap: str, policies: dict[str, ModelPolicy]) -> None:
        self._policies = policies
        self._done = finished_jobs(bootstrap)
        self._current: tuple[Envelope, JobRequested] | None = None

    def accept(self, envelope: Envelope, job: JobRequested) -> Any | None:
        if job.job_id in self._done:
            log.info("%s was trained before; its candidate stands", job.job_id)
            return None
        self._current = envelope, job
        policy = self._policies.get(job.model, ModelPolicy())
        return {"job": msgspec.to_builtins(job), "policy": msgspec.to_builtins(policy)}

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        envelope, job = self._now()
        fields = message or {"phase": "working"}
        return [self._out(JobProgressed(model=job.model, job_id=job.job_id, **fields), envelope)]

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        envelope, job = self._now()
        if isinstance(result, Exception):
            log.error("%s failed: %s", job.job_id, result)
            ended = JobEnded(
                model=job.model, job_id=job.job_id, outcome="failed", reason=str(result), seconds=elapsed_s
            )
            return [self._out(ended, envelope)]
        if "void" in result:
            log.info("%s is void: %s", job.job_id, result["void"])
            ended = JobEnded(
                model=job.model, job_id=job.job_id, outcome="void", reason=result["void"], seconds=elapsed_s
            )
            return [self._out(ended, envelope)]
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
            seconds=elapsed_s,
            **result
            | msgspec.convert({name: result[name] for name in _SETS}, dict[str, ShardSet | None])
            | {"seen": msgspec.convert(result["seen"], FileRef)},
        )
        ended = JobEnded(model=job.model, job_id=job.job_id, outcome="succeeded", seconds=elapsed_s)
        return [self._out(candidate, envelope), self._out(ended, envelope)]

    def _now(self) -> tuple[Envelope, JobRequested]:
        assert self._current is not None, "progress without a job"
        return self._current

    def _out(self, event: msgspec.Struct, cause: Envelope) -> Out:
        correlation = cause.correlation_id or cause.id
        job_id: str = event.job_id  # type: ignore[attr-defined]
        return kafka.out(event, source=SOURCE, subject=job_id, correlation_id=correlation, causation_id=cause.id)


def finished_jobs(bootstrap: str) -> set[str]:
    """Jobs whose candidate is published."""
    return {event.job_id for _, event in readable(kafka.read_to_end(bootstrap, "models.candidates"))}
