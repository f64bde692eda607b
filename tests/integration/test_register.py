"""`register` on a real broker: verdicts become numbered versions, each once, and state is the topic itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas import events as e
from schemas.policy import ModelPolicy
from streams import kafka, transact
from streams.artifacts import ArtifactStore
from streams.kafka import Out
from streams.register import GROUP, TOPICS, RegisterStep, read_registry
from tests.broker import Mark, Running, fresh, group_from, lag, landed, mark, open_transaction, publish, since, until
from tests.examples import example

REGISTRY, DECISIONS = "models.registry", "models.decisions"


class Bench:
    """A registry process over its topics from their present ends on, and one new model."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap, self.model = bootstrap, fresh("support")
        self.policy, self.store = ModelPolicy(), ArtifactStore(str(folder / "artifacts"))
        self.folder = folder
        self.start: Mark = mark(bootstrap, *TOPICS, REGISTRY, DECISIONS, "dead.register")
        self.group = group_from(bootstrap, {place: end for place, end in self.start.items() if place[0] in TOPICS})
        self.step = self._step()

    def _step(self) -> RegisterStep:
        return RegisterStep(self.bootstrap, {self.model: self.policy}, self.store)

    def say(self, *events: Any, **attributes: Any) -> None:
        publish(self.bootstrap, [kafka.out(event, source="test", **attributes) for event in events])

    def verdict(self, champion: int, **fields: Any) -> Any:
        return example(e.VerdictReached, self.model, champion_version=champion, **{"passed": True, **fields})

    @contextmanager
    def process(self, step: transact.Step | None = None) -> Iterator[Callable[[], Any]]:
        """A registry process whose state is read anew; yields what waits until it has taken everything in."""
        with Running(self.loop(step or self._step())) as running:
            yield lambda: running.until(lambda: lag(self.bootstrap, self.group, *TOPICS) == 0, what="lag 0")

    def settle(self, step: transact.Step | None = None) -> None:
        with self.process(step) as settled:
            settled()

    def loop(self, step: transact.Step) -> Callable:
        return lambda stop: transact.run(
            self.bootstrap, self.group, TOPICS, step, stop, transactional_id=self.group, after_commit=step.sweep
        )

    def adapter(self) -> str:
        """The digest of an adapter that stands in the store."""
        folder = self.folder / fresh("adapter")
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(fresh("weights"))
        return self.store.put_folder("adapters", folder)[1]

    def adapters(self) -> set[str]:
        return {path.split("/")[1] for path, _ in self.store.files("adapters")}

    def receipt(self, *digests: str) -> e.ErasureCompleted:
        named = [e.TaughtBy(model=self.model, version=0, digest=digest) for digest in digests]
        return example(e.ErasureCompleted, "", erasure_id=fresh("erasure"), adapters=named)

    def states(self) -> list[e.ModelStateChanged]:
        return self._said(REGISTRY)

    def decisions(self) -> list[e.DecisionMade]:
        return self._said(DECISIONS)

    def _said(self, topic: str) -> list[Any]:
        events = [kafka.decode(record)[1] for record in since(self.bootstrap, topic, self.start)]
        return [event for event in events if event.model == self.model]


@pytest.fixture
def bench(kafka_bootstrap: str, tmp_path: Path) -> Bench:
    return Bench(kafka_bootstrap, tmp_path)


def test_a_verdict_becomes_a_state_and_a_decision(bench) -> None:
    verdict = bench.verdict(0)
    bench.say(verdict, correlation_id="drift-1")
    bench.settle()
    (state,), (decision,) = bench.states(), bench.decisions()
    assert (state.champion, state.previous, state.epoch, state.change) == (1, 0, 1, "promoted")
    assert state.versions[0].digest == verdict.digest and state.versions[0].correlation_id == "drift-1"
    assert (decision.decision, decision.version, decision.digest) == ("promoted", 1, verdict.digest)
    records = [since(bench.bootstrap, topic, bench.start)[-1] for topic in (REGISTRY, DECISIONS)]
    said = [kafka.decode(record)[0] for record in records]
    assert records[0].key == f"model/{bench.model}".encode() and said[0].correlation_id == "drift-1"
    assert said[0].causation_id == said[1].causation_id != ""


def test_state_and_decision_are_one_transaction(bench) -> None:
    """Where the decision is refused by the broker, the state beside it is not there either."""

    class TooLarge(RegisterStep):
        refused = 0

        def handle(self, batch: list[Any]) -> list[Out]:
            outs = super().handle(batch)
            if outs and not self.refused:
                self.refused = len(outs)
                outs.append(Out(DECISIONS, b"", os.urandom(1_500_000)))
            return outs

    bench.say(bench.verdict(0))
    step = TooLarge(bench.bootstrap, {}, bench.store)
    bench.settle(step)
    assert step.refused == 2
    assert [state.champion for state in bench.states()] == [1]
    assert [decision.decision for decision in bench.decisions()] == ["promoted"]


def test_a_replayed_verdict_numbers_nothing_twice(bench) -> None:
    first, second = bench.verdict(0), bench.verdict(1)
    bench.say(first, second, first, second)
    bench.settle()
    bench.say(first, second)
    bench.settle()
    assert [state.champion for state in bench.states()] == [1, 2]
    assert [entry.version for entry in bench.states()[-1].versions] == [1, 2]
    assert len(bench.decisions()) == 2


def test_a_restart_goes_on_from_the_topic(bench) -> None:
    for champion in range(3):
        bench.say(bench.verdict(champion))
        bench.settle()
    assert [(state.epoch, state.champion) for state in bench.states()] == [(1, 1), (2, 2), (3, 3)]
    models, _ = read_registry(bench.bootstrap)
    assert models[bench.model] == bench.states()[-1]
    assert [entry.status for entry in models[bench.model].versions] == ["retired", "retired", "serving"]


def test_a_verdict_against_yesterdays_champion_or_a_failed_one_is_refused(bench) -> None:
    stale = bench.verdict(0)
    bench.say(bench.verdict(0), stale, bench.verdict(1, passed=False, reason="retention: too few examples"))
    bench.settle()
    assert [state.champion for state in bench.states()] == [1]
    _, superseded, refused = bench.decisions()
    assert superseded.decision == "superseded" and "version 1 serves now" in superseded.reason
    assert superseded.digest == stale.digest
    assert (refused.decision, refused.reason) == ("refused", "retention: too few examples")


def test_a_held_model_is_promoted_by_nobody_until_it_is_let_go_on(bench) -> None:
    hold = e.HoldRequested(model=bench.model, hold=True, reason="the audit", actor="jo")
    resume = e.HoldRequested(model=bench.model, hold=False, actor="jo")
    with bench.process() as settled:
        for said in (bench.verdict(0), hold, bench.verdict(1), resume, bench.verdict(1)):
            bench.say(said)
            settled()
    assert [line.decision for line in bench.decisions()] == ["promoted", "held", "deferred", "resumed", "promoted"]
    assert [state.held for state in bench.states()] == ["", "the audit", "", ""]
    assert [state.champion for state in bench.states()] == [1, 1, 1, 2]


def test_rolling_back_is_one_command_and_a_stale_one_is_refused(bench) -> None:
    bench.say(bench.verdict(0), bench.verdict(1))
    bench.settle()
    bench.say(e.RollbackRequested(model=bench.model, epoch=1), e.RollbackRequested(model=bench.model, epoch=2))
    bench.settle()
    assert [state.champion for state in bench.states()] == [1, 2, 1]
    lines = [(line.decision, line.version) for line in bench.decisions()]
    assert lines == [("promoted", 1), ("promoted", 2), ("command-refused", 0), ("rolled-back", 1)]


def test_a_promotion_that_the_gate_found_worse_on_the_same_questions_is_undone(bench) -> None:
    worse = example(e.ReviewReached, bench.model, version=2, previous=1, epoch=2, worse=True, reason="0.9 before, 0.5 now")
    stands = example(e.ReviewReached, bench.model, version=1, previous=0, epoch=1, worse=False)
    with bench.process() as settled:
        for said in (bench.verdict(0), stands, bench.verdict(1), worse, worse):
            bench.say(said)
            settled()
    assert [state.champion for state in bench.states()] == [1, 2, 1]
    assert (bench.decisions()[-1].decision, bench.decisions()[-1].reason) == ("rolled-back", "0.9 before, 0.5 now")


def test_a_base_is_registered_once(bench) -> None:
    asked = example(e.BaseAddRequested, bench.model)
    bench.say(asked, asked)
    bench.settle()
    bench.say(asked)
    bench.settle()
    (base,) = bench.states()
    assert isinstance(base, e.BaseRegistered) and base.digest == asked.digest
    assert [line.decision for line in bench.decisions()] == ["base-added"]


def test_state_that_another_process_is_just_committing_is_built_upon(bench) -> None:
    """Its partitions come to this one with the offsets; the state in the same transaction may show a moment later."""
    theirs = example(e.ModelStateChanged, bench.model, champion=4, epoch=9)
    with open_transaction(bench.bootstrap, [kafka.out(theirs, source="test")]):
        bench.step.assigned([])
    out = kafka.out(bench.verdict(4), source="test")
    said = bench.step.handle([landed(out)])
    states = [kafka.decode(landed(one))[1] for one in said]
    assert [(one.epoch, one.previous) for one in states if isinstance(one, e.ModelStateChanged)] == [(10, 4)]


def test_what_does_not_decode_is_a_dead_letter(bench) -> None:
    publish(bench.bootstrap, [Out("models.verdicts", b"x", b"{}", [("ce_type", b"VerdictReached")])])
    bench.say(bench.verdict(0))
    bench.settle()
    (letter,) = since(bench.bootstrap, f"dead.{GROUP}", bench.start)
    assert letter.value == b"{}" and [state.champion for state in bench.states()] == [1]


def test_an_adapter_goes_once_its_refusal_is_committed(bench) -> None:
    passed, refused, void = bench.adapter(), bench.adapter(), bench.adapter()
    bench.say(bench.verdict(0, digest=passed), bench.verdict(1, digest=refused, passed=False))
    bench.say(bench.verdict(1, digest=void, passed=False, void=True))
    with bench.process() as settled:
        settled()
        until(lambda: bench.adapters() == {passed}, 10, "the others to be deleted")
    assert [line.decision for line in bench.decisions()] == ["promoted", "refused", "void"]
    assert [line.deletes for line in bench.decisions()] == [[], [f"adapters/{refused}"], [f"adapters/{void}"]]


def test_an_adapter_stays_while_its_refusal_is_not_committed_and_goes_after_a_crash(bench) -> None:
    refused, again = bench.adapter(), bench.adapter()
    step = bench.step
    step.assigned([])
    outs = step.handle([landed(kafka.out(bench.verdict(0, digest=digest, passed=False), source="t")) for digest in (refused, again)])
    assert bench.adapters() == {refused, again}, "handled, not committed"
    step.assigned([])
    assert bench.adapters() == {refused, again}, "the transaction was aborted"
    publish(bench.bootstrap, outs)
    candidate = example(e.CandidateTrained, bench.model, digest=again)
    publish(bench.bootstrap, [kafka.out(candidate, source="test")])
    bench._step().assigned([])
    assert bench.adapters() == {again}, "that one was trained once more, and waits for its verdict"
    decision = example(e.DecisionMade, bench.model, decision="refused", job_id=candidate.job_id)
    publish(bench.bootstrap, [kafka.out(decision, source="test")])
    bench._step().assigned([])
    assert bench.adapters() == set()


def test_a_decision_that_names_something_else_than_an_adapter_deletes_nothing(bench) -> None:
    kept, digest = bench.adapter(), "f" * 64
    bench.store.put_bytes("shards/m/rows.parquet", b"rows")
    for path in ("shards/m", "..", f"adapters/../adapters/{kept}", "adapters", f"bases/{digest}"):
        publish(bench.bootstrap, [kafka.out(example(e.DecisionMade, bench.model, deletes=[path]), source="test")])
    bench._step().assigned([])
    assert bench.adapters() == {kept} and len(bench.store.files("shards")) == 1


@pytest.mark.parametrize("first", ["receipt", "verdict"])
def test_a_candidate_that_a_receipt_names_is_marked_whichever_comes_first(bench, first: str) -> None:
    digest = bench.adapter()
    receipt, verdict = bench.receipt(digest), bench.verdict(0, digest=digest)
    with bench.process() as settled:
        for said in (receipt, verdict) if first == "receipt" else (verdict, receipt):
            bench.say(said)
            settled()
    assert bench.states()[-1].versions[0].erasures == [receipt.erasure_id]


def test_who_just_started_knows_what_receipts_named(bench) -> None:
    digest = bench.adapter()
    receipt = bench.receipt(digest)
    bench.say(receipt)
    bench.settle()
    bench.say(bench.verdict(0, digest=digest, erasures=["erasure-0"]))
    bench.settle()
    assert bench.states()[-1].versions[0].erasures == sorted(["erasure-0", receipt.erasure_id])
