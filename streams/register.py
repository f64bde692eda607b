"""The step of `register`, the one writer of `models.registry` and `models.decisions`.

Reads `models.verdicts`, `models.commands`, `subjects.erasures`; what follows from them is
decided by `streams.registry`. State is the registry topic itself, read to its end on assignment.

It also deletes adapters that no version has: the decision says which, and their files go once it is committed (by
`sweep`). What a crash leaves is deleted on the next assignment, from the decisions that stand.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.codec import ContractError, Envelope
from schemas.events import (
    BaseAddRequested,
    BaseRegistered,
    CandidateTrained,
    DecisionMade,
    ErasureCompleted,
    HoldRequested,
    ModelStateChanged,
    ReviewReached,
    RollbackRequested,
    VerdictReached,
)
from schemas.policy import ModelPolicy
from streams import kafka, registry
from streams.artifact_paths import check_content_path
from streams.artifacts import ArtifactStore
from streams.dead_letters import Budget, events_of
from streams.kafka import Out, Record
from streams.registry import Outcome
from streams.unreadable import readable

log = logging.getLogger(__name__)
GROUP = "register"
TOPICS = ["models.verdicts", "models.commands", "subjects.erasures"]


class RegisterStep:
    """See the module."""

    def __init__(
        self, bootstrap: str, policies: Mapping[str, ModelPolicy], store: ArtifactStore, budget: Budget | None = None
    ) -> None:
        self._bootstrap, self._policies, self._store = bootstrap, policies, store
        self._budget = budget or Budget()
        self._models: dict[str, ModelStateChanged] = {}
        self._bases: dict[str, BaseRegistered] = {}
        self._erased: dict[str, set[str]] = {}  # erasures by the digest of what they took rows from
        self._doomed: set[str] = set()

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self._models, self._bases = read_registry(self._bootstrap, settled=True)
        self._erased = {}
        for receipt in facts(self._bootstrap, "subjects.erasures"):
            if isinstance(receipt, ErasureCompleted):
                self._note(receipt)
        self._doomed = self._left_behind()
        self.sweep()

    def _left_behind(self) -> set[str]:
        """Adapters that a decision gave up and that no candidate under way is made of again."""
        decisions = [one for one in facts(self._bootstrap, "models.decisions") if isinstance(one, DecisionMade)]
        decided = {one.job_id for one in decisions}
        said = facts(self._bootstrap, "models.candidates")
        candidates = [one for one in said if isinstance(one, CandidateTrained)]
        under_way = {registry.adapter_path(one.digest) for one in candidates if one.job_id not in decided}
        return {path for one in decisions for path in one.deletes} - under_way

    def sweep(self) -> None:
        """Delete what the committed decisions gave up; called after each commit."""
        versions = (version for state in self._models.values() for version in state.versions)
        doomed = self._doomed - {registry.adapter_path(version.digest) for version in versions}
        self._doomed = set()
        if not doomed:
            return
        # Only what is an adapter's folder, whatever an event may name.
        for path in sorted(doomed & {"/".join(file.split("/")[:2]) for file, _ in self._store.files("adapters")}):
            self._store.delete_folder(path)
            log.info("%s is deleted: no version has it", path)

    def handle(self, batch: list[Record]) -> list[Out]:
        outs: list[Out] = []
        for envelope, event in events_of(batch, GROUP, self._budget, outs, _check_paths):
            outs += self._on(envelope, event)
        return outs

    def _on(self, envelope: Envelope, event: Any) -> list[Out]:
        if isinstance(event, BaseAddRequested):
            return self._add_base(envelope, event)
        if isinstance(event, ErasureCompleted):
            return self._mark(envelope, event)
        state = self._models.get(getattr(event, "model", ""))
        outcome = Outcome(None, None)
        if isinstance(event, VerdictReached):
            judges = self._policies.get(event.model, ModelPolicy()).judges
            erasures = self._erased.get(event.digest, ())
            outcome = registry.on_verdict(state, event, envelope.correlation_id, erasures, judges)
        elif isinstance(event, RollbackRequested):
            outcome = registry.on_rollback(state, event)
        elif isinstance(event, HoldRequested):
            base = self._policies.get(event.model, ModelPolicy()).base
            outcome = registry.on_hold(state, event, base) if event.model in self._policies else outcome
        elif isinstance(event, ReviewReached):
            judges = self._policies.get(event.model, ModelPolicy()).judges
            outcome = registry.on_review(state, event, judges)
        if outcome.state is not None:
            self._models[outcome.state.model] = outcome.state
        if outcome.decision is not None:
            self._doomed.update(outcome.decision.deletes)
        return [_said(fact, envelope) for fact in (outcome.state, outcome.decision) if fact is not None]

    def _mark(self, envelope: Envelope, event: ErasureCompleted) -> list[Out]:
        """Every model that learned from what was erased says so in its state; a candidate, once it has a number."""
        self._note(event)
        outs = []
        for name in sorted({one.model for one in event.adapters} & self._models.keys()):
            after = registry.on_erasure(self._models[name], event).state
            if after is not None:
                self._models[name] = after
                outs.append(_said(after, envelope))
        return outs

    def _note(self, receipt: ErasureCompleted) -> None:
        for one in receipt.adapters:
            self._erased.setdefault(one.digest, set()).add(receipt.erasure_id)

    def _add_base(self, envelope: Envelope, event: BaseAddRequested) -> list[Out]:
        """A name stands for the same weights for ever: adapters were trained on them, and versions name it."""
        known = self._bases.get(event.model)
        if known is None:
            fields = msgspec.structs.asdict(event)
            fields.pop("actor")
            base = BaseRegistered(**fields)
            self._bases[event.model] = base
            line = DecisionMade(
                model=event.model, decision="base-added", reason=event.architecture, digest=event.digest
            )
            return [_said(base, envelope), _said(line, envelope)]
        if known.digest == event.digest:
            return []
        reason = f"base {event.model} has other weights ({known.digest[:12]}): add these under a new name"
        line = DecisionMade(model=event.model, decision="command-refused", reason=reason, digest=event.digest)
        return [_said(line, envelope)]


def _check_paths(event: Any) -> None:
    """What is served later lies where its content says. Raises `ArtifactError`."""
    if isinstance(event, BaseAddRequested):
        check_content_path("bases", event.path, event.digest)
    elif isinstance(event, VerdictReached):
        check_content_path("adapters", event.path, event.digest)


def facts(bootstrap: str, topic: str) -> list[Any]:
    """The committed events of a topic."""
    found = []
    for record in kafka.read_to_end(bootstrap, topic, settled=True):
        if record.value is not None:
            with contextlib.suppress(ContractError):  # whoever consumes it makes a letter of it
                found.append(kafka.decode(record)[1])
    return found


def _said(fact: msgspec.Struct, cause: Envelope) -> Out:
    subject = getattr(fact, "model", "")
    if isinstance(fact, ModelStateChanged):
        subject = f"{fact.model}@{fact.champion}"
    correlation = cause.correlation_id or cause.id
    return kafka.out(fact, source=GROUP, subject=subject, correlation_id=correlation, causation_id=cause.id)


def read_registry(
    bootstrap: str, settled: bool = False
) -> tuple[dict[str, ModelStateChanged], dict[str, BaseRegistered]]:
    """The registry as it stands: model states and bases, by name. `settled` as in `kafka.read_to_end`."""
    models: dict[str, ModelStateChanged] = {}
    bases: dict[str, BaseRegistered] = {}
    for _, event in readable(kafka.read_to_end(bootstrap, "models.registry", settled=settled)):
        if isinstance(event, ModelStateChanged):
            models[event.model] = event
        elif isinstance(event, BaseRegistered):
            bases[event.model] = event
    return models, bases
