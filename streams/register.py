"""The step of `register`, the one writer of `models.registry` and `models.decisions`.

Reads `models.verdicts`, `models.commands`, `monitor.performance`, `subjects.erasures`; what follows from them is
decided by `streams.registry`. State is the registry topic itself, read to its end on assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.codec import ContractError, Envelope
from schemas.events import (
    BaseAddRequested,
    BaseRegistered,
    DecisionMade,
    ErasureCompleted,
    ModelStateChanged,
    PerformanceMeasured,
    RollbackRequested,
    VerdictReached,
)
from schemas.policy import ModelPolicy
from streams import kafka, registry
from streams.dead_letters import Budget, dead_letter
from streams.kafka import Out, Record
from streams.registry import Outcome
from streams.unreadable import readable

GROUP = "register"
TOPICS = ["models.verdicts", "models.commands", "monitor.performance", "subjects.erasures"]


class RegisterStep:
    """See the module."""

    def __init__(
        self, bootstrap: str, policies: Mapping[str, ModelPolicy], budget: Budget | None = None
    ) -> None:
        self._bootstrap, self._policies = bootstrap, policies
        self._budget = budget or Budget()
        self._models: dict[str, ModelStateChanged] = {}
        self._bases: dict[str, BaseRegistered] = {}

    def assigned(self, partitions: list[tuple[str, int]]) -> None:
        self._models, self._bases = read_registry(self._bootstrap, settled=True)

    def handle(self, batch: list[Record]) -> list[Out]:
        outs: list[Out] = []
        for record in batch:
            if record.value is None:
                continue
            try:
                envelope, event = kafka.decode(record)
            except ContractError as error:
                self._budget.count(refused=True)
                outs.append(dead_letter(GROUP, record, str(error)))
                continue
            self._budget.count(refused=False)
            outs += self._on(envelope, event)
        self._budget.slow_down()
        return outs

    def _on(self, envelope: Envelope, event: Any) -> list[Out]:
        if isinstance(event, BaseAddRequested):
            return self._add_base(envelope, event)
        if isinstance(event, ErasureCompleted):
            return self._mark(envelope, event)
        state = self._models.get(getattr(event, "model", ""))
        outcome = Outcome(None, None)
        if isinstance(event, VerdictReached):
            outcome = registry.on_verdict(state, event, envelope.correlation_id)
        elif isinstance(event, RollbackRequested):
            outcome = registry.on_rollback(state, event)
        elif isinstance(event, PerformanceMeasured):
            policy = self._policies.get(event.model, ModelPolicy())
            outcome = registry.on_performance(state, event, policy.max_live_loss)
        if outcome.state is not None:
            self._models[outcome.state.model] = outcome.state
        return [_said(fact, envelope) for fact in (outcome.state, outcome.decision) if fact is not None]

    def _mark(self, envelope: Envelope, event: ErasureCompleted) -> list[Out]:
        """Every model that learned from what was erased says so in its state."""
        outs = []
        for name in sorted({one.model for one in event.adapters} & self._models.keys()):
            after = registry.on_erasure(self._models[name], event).state
            if after is not None:
                self._models[name] = after
                outs.append(_said(after, envelope))
        return outs

    def _add_base(self, envelope: Envelope, event: BaseAddRequested) -> list[Out]:
        base = BaseRegistered(**msgspec.structs.asdict(event))
        if self._bases.get(event.model) == base:
            return []
        self._bases[event.model] = base
        line = DecisionMade(
            model=event.model, decision="base-added", reason=event.architecture, digest=event.digest
        )
        return [_said(base, envelope), _said(line, envelope)]


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
        else:
            bases[event.model] = event
    return models, bases
