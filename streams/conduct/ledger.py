"""The conductor's own record: which triggers are open, which jobs and reviews were asked for. Built from topics alone
(`training.triggers`, `training.jobs`, `models.candidates`), so that a restart knows all that was ever said, whatever
has landed where.

What became of a job others say (`work`, `gate`, `register`); the conductor asks ClickHouse for that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from schemas.codec import Envelope
from schemas.events import JobRequested, ReviewRequested, TriggerClosed, TriggerOpened

# Of a model so many jobs are remembered: enough for a day's budget and for every open trigger's last attempts.
KEPT_JOBS = 500


@dataclass(frozen=True)
class Trigger:
    """An open trigger: the event, when it was said (Unix ms), and the chain of events that it belongs to."""

    said: TriggerOpened
    opened_ms: int
    correlation_id: str

    @property
    def id(self) -> str:
        return self.said.trigger_id

    @property
    def kind(self) -> str:
        return self.said.kind


@dataclass(frozen=True)
class Job:
    """A job that was asked for, and when (Unix ms)."""

    said: JobRequested
    asked_ms: int

    @property
    def id(self) -> str:
        return self.said.job_id

    @property
    def from_base(self) -> bool:
        return self.said.parent_version == 0


@dataclass
class Ledger:
    """See the module. `apply` may be told the same event twice."""

    _open: dict[str, Trigger] = field(default_factory=dict)
    _closed: set[str] = field(default_factory=set)
    _ordinals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _jobs: dict[str, dict[str, Job]] = field(default_factory=lambda: defaultdict(dict))
    _looks: dict[tuple[str, int], int] = field(default_factory=dict)

    def apply(self, envelope: Envelope, event: msgspec.Struct) -> None:
        if isinstance(event, TriggerOpened):
            self._ordinals[event.model] = max(self._ordinals[event.model], event.ordinal)
            if event.trigger_id not in self._closed:
                trigger = Trigger(event, envelope.time_ms, envelope.correlation_id or envelope.id)
                self._open.setdefault(event.trigger_id, trigger)
        elif isinstance(event, TriggerClosed):
            self._closed.add(event.trigger_id)
            self._open.pop(event.trigger_id, None)
        elif isinstance(event, JobRequested):
            jobs = self._jobs[event.model]
            jobs.setdefault(event.job_id, Job(event, envelope.time_ms))
            while len(jobs) > KEPT_JOBS:
                del jobs[next(iter(jobs))]
        elif isinstance(event, ReviewRequested):
            self._looks[event.model, event.epoch] = max(event.look, self.looks(event.model, event.epoch))

    def open(self, model: str) -> list[Trigger]:
        """In the order in which they were opened."""
        return sorted((one for one in self._open.values() if one.said.model == model), key=lambda one: one.said.ordinal)

    def knows(self, trigger_id: str) -> bool:
        """Whether it is open, or was."""
        return trigger_id in self._open or trigger_id in self._closed

    def looks(self, model: str, epoch: int) -> int:
        """How often a promotion was looked back on so far, by the registry's epoch."""
        return self._looks.get((model, epoch), 0)

    def next_ordinal(self, model: str) -> int:
        return self._ordinals[model] + 1

    def jobs(self, model: str = "") -> list[Job]:
        """The jobs of a model, or of all, in the order in which they were asked for."""
        if model:
            return list(self._jobs[model].values())
        return sorted((job for jobs in self._jobs.values() for job in jobs.values()), key=lambda job: job.asked_ms)
