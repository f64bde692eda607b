"""Rows that go while a job is under way: void, asked for again at once, judged the second time; on real parts.

A tiny real model is trained and judged by the functions that the warm children run. What was asked for and what came of
it is read from a real ClickHouse.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from schemas import events as e
from schemas.codec import Envelope
from schemas.identity import content_hash
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams import kafka
from streams.artifacts import get_shard_set, put_shard_set
from streams.clickhouse import connect
from streams.conduct.situation import End, Knowledge
from streams.erase import shards
from streams.monitor.land import ClickHouseStore
from streams.planning import FIRST, Disagreement
from streams.prepare.shard import counted, put_shard, ref_of
from tests.broker import fresh, landed
from tests.examples import example
from tests.stores import store_at
from tests.tiny_model import make_tiny_base
from trainers import work_child
from trainers.gate import judge
from trainers.gate.validate import GateJob
from trainers.worker import WorkJob

PEOPLE = ("ann", "bob", "eve", "gus", "tom")
POLICY = ModelPolicy(min_holdout_examples=1, replay_share=0.5, max_tokens=4)
RECIPE = {"min_steps": 2, "max_steps": 2, "batch_examples": 2, "rank": 2}


def row(person: str, kind: str, split: str, number: int) -> dict[str, Any]:
    asked = content_hash(person, split)
    return {
        "record_id": f"{person}-{split}", "subject_id": person, "unit": person, "inference_id": "", "kind": kind,
        "split": split, "question": asked[:16], "input_hash": asked, "answer_hash": content_hash(number % 3),
        "judges": True, "dated": True,
        "messages": [{"role": "user", "content": f"what does {person} say {split}"}], "completion": f"hello {number % 3}",
        "submitted_ms": number, "partition": 0, "offset": number, "origin": "import",
    }  # fmt: skip


class Loop:
    """A store with a base and one shard: Tom's row is a hold-out, Gus's a preference, the others' are trained on."""

    def __init__(self, folder: Path) -> None:
        self.store = store_at(folder / "artifacts")
        self.base_path, self.base_digest = self.store.put_folder("bases", make_tiny_base(folder / "base"))
        said = [row(person, "sft", "train", number) for number, person in enumerate(PEOPLE[:3])]
        said += [row("gus", "preference", "train", 3), row("tom", "sft", "test", 4)]
        table = pa.Table.from_pylist(said, schema=SHARD_SCHEMA)
        path, digest, size = put_shard(self.store, "m", "shard-1", table)
        event = example(e.ShardWritten, "m", shard_id="shard-1", erased=0, replaces="")
        self.shard = msgspec.structs.replace(event, path=path, digest=digest, size_bytes=size, **counted(table))

    def forget(self, person: str) -> None:
        shards.rewrite(self.store, [self.shard], person, set(), f"erasure-{person}")

    def job(self, **fields: Any) -> e.JobRequested:
        given = put_shard_set(self.store, "m", [ref_of(self.shard)])
        return example(
            e.JobRequested, "m", base_path=self.base_path, base_digest=self.base_digest, recipe=RECIPE, new_data=given,
            replay_data=None, parent_digest="", parent_path="", parent_version=0, **fields,
        )  # fmt: skip

    def train(self, job: e.JobRequested, at_phase: str = "", then: Callable[[], Any] = lambda: None) -> list[Any]:
        """What `work` publishes of a job, where something happens at a phase of it."""
        request = {"job": msgspec.to_builtins(job), "policy": msgspec.to_builtins(POLICY)}
        result = msgspec.json.decode(msgspec.json.encode(work_child.train(request, struck(at_phase, then), self.store)))
        worker = WorkJob.__new__(WorkJob)
        worker._policies, worker._done, worker._current = {}, set(), (Envelope("id", "JobRequested", "conduct", 1), job)
        return [kafka.decode(landed(out))[1] for out in worker.finished(result, 1.0)]

    def judged(
        self, candidate: e.CandidateTrained, at_phase: str = "", then: Callable[[], Any] = lambda: None,
        state: e.ModelStateChanged | None = None,
    ) -> e.VerdictReached:
        """What `gate` publishes of a candidate."""
        request = msgspec.to_builtins({"candidate": candidate, "policy": POLICY, "state": state})
        result = judge.judge(request, struck(at_phase, then), self.store)
        gate = GateJob("", {})
        gate._current = Envelope("id", "CandidateTrained", "work", 1), candidate
        (verdict,) = [kafka.decode(landed(out))[1] for out in gate.finished(msgspec.json.decode(msgspec.json.encode(result)), 1.0)]
        return verdict


def struck(phase: str, then: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    left = [then] if phase else []

    def report(message: dict[str, Any]) -> None:
        if left and message["phase"] == phase:
            left.pop()()

    return report


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_job_whose_rows_go_while_it_trains_is_void_and_leaves_no_adapter(loop: Loop) -> None:
    (ended,) = loop.train(loop.job(), "training", lambda: loop.forget("ann"))
    assert (ended.outcome, ended.reason) == ("void", "1 rows that it was trained on were erased meanwhile (erasure-ann)")
    assert loop.store.files("adapters") == []


@pytest.mark.parametrize(("person", "what"), [("tom", "a hold-out"), ("gus", "a kind that is not trained on"), ("zoe", "nobody's")])
def test_a_row_that_it_did_not_train_on_may_go(loop: Loop, person: str, what: str) -> None:
    candidate, ended = loop.train(loop.job(), "training", lambda: loop.forget(person))
    assert ended.outcome == "succeeded", what
    assert not loop.judged(candidate).void, what


def test_a_row_that_was_gone_before_it_began_is_no_reason_and_the_candidate_says_what_it_read(loop: Loop) -> None:
    """Its shards are still named by their old digests: the erasure says so at its very end."""
    job = loop.job()
    loop.forget("ann")
    candidate, ended = loop.train(job)
    assert ended.outcome == "succeeded" and candidate.new_data != job.new_data and candidate.new_data.rows == 4
    (read,) = get_shard_set(loop.store, candidate.new_data)
    assert read.digest != loop.shard.digest and not loop.judged(candidate).void


def test_the_second_time_running_it_is_judged_and_the_verdict_names_the_erasure(loop: Loop) -> None:
    candidate, ended = loop.train(loop.job(void_before=1), "training", lambda: loop.forget("ann"))
    assert ended.outcome == "succeeded" and candidate.void_before == 1
    verdict = loop.judged(candidate, "evaluating", lambda: loop.forget("bob"))
    assert not verdict.void and verdict.erasures == ["erasure-ann", "erasure-bob"] and verdict.checks


@pytest.mark.parametrize("when", ["before it is judged", "while it is judged"])
def test_a_candidate_whose_rows_go_before_its_verdict_is_void(loop: Loop, when: str) -> None:
    candidate, _ = loop.train(loop.job())
    if when == "before it is judged":
        loop.forget("bob")
        verdict = loop.judged(candidate)
    else:
        verdict = loop.judged(candidate, "evaluating", lambda: loop.forget("bob"))
    assert verdict.void and not verdict.passed and verdict.checks == [] and verdict.erasures == ["erasure-bob"]
    assert verdict.reason == "1 rows that it was trained on were erased meanwhile (erasure-bob)"


def test_what_its_parent_had_learned_marks_a_candidate_and_does_not_make_it_void(loop: Loop) -> None:
    candidate, _ = loop.train(loop.job())
    candidate = msgspec.structs.replace(candidate, parent_version=1)
    parent = example(
        e.VerdictReached, "m", digest=candidate.digest, path=candidate.path, base_digest=candidate.base_digest,
        new_data=candidate.new_data, fingerprint=candidate.fingerprint, passed=True,
    )  # fmt: skip
    fields = {name: getattr(parent, name) for name in e.Version.__struct_fields__ if hasattr(parent, name)}
    version = e.Version(version=1, **fields | {"erasures": ["erasure-old"]})
    state = example(e.ModelStateChanged, "m", champion=1, versions=[version])
    verdict = loop.judged(candidate, state=state)
    assert not verdict.void and verdict.erasures == ["erasure-old"]


def version_of(candidate: e.CandidateTrained, number: int) -> e.Version:
    fields = {name: getattr(candidate, name) for name in ("digest", "path", "base", "base_digest", "job_id", "fingerprint", "new_data")}
    return e.Version(version=number, **fields)


def test_a_candidate_on_another_base_is_compared_each_in_its_own_engine(loop: Loop, tmp_path: Path) -> None:
    first, *_ = loop.train(loop.job())
    loop.base_path, loop.base_digest = loop.store.put_folder("bases", make_tiny_base(tmp_path / "other", hidden=32, layers=1))
    second, *_ = loop.train(loop.job())
    assert first.base_digest != second.base_digest
    state = example(e.ModelStateChanged, "m", champion=1, versions=[version_of(first, 1)])
    verdict = loop.judged(second, state=state)
    assert verdict.champion_version == 1 and verdict.checks and "another base" not in verdict.reason
    assert {check.check for check in verdict.checks} >= {"superiority", "classes"}


def test_a_look_back_has_both_versions_answer_what_was_asked_since(loop: Loop) -> None:
    candidate, *_ = loop.train(loop.job())
    state = example(e.ModelStateChanged, "m", champion=1, previous=0, epoch=1, versions=[version_of(candidate, 1)])
    given = put_shard_set(loop.store, "m", [ref_of(loop.shard)])
    asked = e.ReviewRequested(
        model="m", review_id="r", version=1, previous=0, epoch=1, look=1, since_ms=1, data=given, live_quality=0.5
    )
    request = msgspec.to_builtins({"review": asked, "policy": POLICY, "state": state})
    found = judge.judge(request, lambda message: None, loop.store)
    (check,) = found["checks"]
    assert found["worse"] is False and check["check"] == "review" and check["n"] == 2, "eve's and tom's, asked since"
    elsewhere = msgspec.structs.replace(state, champion=2)
    past = judge.judge(msgspec.to_builtins({"review": asked, "policy": POLICY, "state": elsewhere}), lambda message: None, loop.store)
    assert past == {"worse": False, "reason": "version 2 serves now", "checks": []}


class Told:
    """What the conductor knows after events were landed as the monitor lands them."""

    def __init__(self, url: str, bootstrap: str, folder: Path) -> None:
        self.model, self.partition, self.offset, self.time_ms = fresh("support"), 10**6 + uuid.uuid4().int % 10**8, 0, 10**12
        self.landing = ClickHouseStore(connect(url), kafka.producer(bootstrap))
        self.knowledge = Knowledge(connect(url), store_at(folder))

    def land(self, event: Any, **attributes: Any) -> None:
        self.offset, self.time_ms = self.offset + 1, self.time_ms + 1_000
        out = kafka.out(event, source="test", time_ms=self.time_ms, **attributes)
        self.landing.write([self.landing.read([landed(out, self.offset, self.time_ms, self.partition)])])

    def facts(self) -> Any:
        self.knowledge.look()
        return self.knowledge.facts(self.model, POLICY)


@pytest.mark.parametrize("found_by", ["work", "gate"])
def test_the_conductor_hears_of_a_void_job_whoever_found_it(
    kafka_bootstrap: str, clickhouse_url: str, tmp_path: Path, found_by: str
) -> None:
    told, job = Told(clickhouse_url, kafka_bootstrap, tmp_path), fresh("job")
    assert told.knowledge.ends([job]) == {}
    if found_by == "work":
        told.land(e.JobEnded(model=told.model, job_id=job, outcome="void", reason="erased", seconds=5.0))
        assert told.knowledge.ends([job]) == {job: End("void", "erased", told.time_ms, True, 5.0)}
    else:
        told.land(e.JobEnded(model=told.model, job_id=job, outcome="succeeded", seconds=5.0))
        assert told.knowledge.ends([job]) == {job: End("", "", told.time_ms, True, 5.0)}, "being judged"
        told.land(example(e.DecisionMade, told.model, decision="void", reason="erased", job_id=job))
        assert told.knowledge.ends([job]) == {job: End("void", "erased", told.time_ms, True, 5.0)}


def test_the_next_job_is_planned_with_what_the_last_verdict_found(
    kafka_bootstrap: str, clickhouse_url: str, tmp_path: Path
) -> None:
    told = Told(clickhouse_url, kafka_bootstrap, tmp_path)
    assert told.facts().last == FIRST
    for share in (0.4, 0.12):
        check = msgspec.structs.replace(
            example(e.Check, told.model), check="non_inferiority", passed=True, n=90, units=90, discordance=share, details='{"design_effect": 1.5}'
        )
        told.land(example(e.VerdictReached, told.model, checks=[check]))
    told.land(example(e.VerdictReached, told.model, checks=[], void=True))
    assert told.facts().last == Disagreement(0.12, 1.5)
