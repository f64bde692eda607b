"""A record's way and a version's data, on a real ClickHouse and real shards, by function and by command line."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import command_line
from deploy.lineage import lines, trace
from deploy.local.folders import data_folder
from deploy.version_lineage import LineageError
from schemas import events as e
from schemas.identity import split_of
from schemas.policy import ModelPolicy
from streams import kafka
from streams.artifacts import ArtifactStore, put_shard_set
from streams.clickhouse import connect
from streams.kafka import Out, Record
from streams.monitor.land import ClickHouseStore
from streams.prepare.shard import counted, put_shard
from streams.prepare.step import Committed, PrepareStep
from tests.broker import fresh, landed, publish
from tests.examples import example
from tests.ids import SPLIT_KEY

RAW, POLICY = "training.raw", ModelPolicy()


def subject(split: str) -> str:
    """Somebody whose records fall into `split`."""
    names = (fresh("subject") for _ in range(1_000))
    return next(name for name in names if split_of(name, SPLIT_KEY, POLICY.validation_share, POLICY.test_share) == split)


class Story:
    """Two versions of one model, the second trained on a correction of what taught the first.

    Its events are landed as the monitor lands them, in a partition that no topic has, so that they meet nobody else's.
    """

    def __init__(self, bootstrap: str, url: str, folder: Path) -> None:
        self.bootstrap, self.url, self.folder = bootstrap, url, folder
        self.model, self.partition = fresh("support"), 1_000 + uuid.uuid4().int % 10**8
        self.store, self.client = ArtifactStore(str(folder / "artifacts")), connect(url)
        self.landing = ClickHouseStore(self.client, kafka.producer(bootstrap))
        self.step = PrepareStep({self.model: POLICY}, self.store, lambda: Committed([], []), SPLIT_KEY)
        self.step.assigned([(RAW, self.partition)])
        self.offsets: dict[str, int] = {}
        self.time_ms = 1_790_000_000_000
        self.inference, self.answer = fresh("chatcmpl"), fresh("sft")
        self._tell()

    def record(self, out: Out) -> Record:
        offset = self.offsets.get(out.topic, 10)
        self.offsets[out.topic] = offset + 1
        return landed(out, offset, self.time_ms, self.partition)

    def land(self, *said: Any, **attributes: Any) -> list[Record]:
        records = []
        for event in said:
            self.time_ms += 1_000
            records.append(self.record(kafka.out(event, source="test", time_ms=self.time_ms, **attributes)))
        self.landing.write([self.landing.read(records)])
        return records

    def submitted(self, completion: str, **fields: Any) -> e.RecordSubmitted:
        values = {"prompt": f"{completion}? {fresh('question')}", "subject_id": self.trains, "completion": completion}
        return e.RecordSubmitted(**{"model": self.model, **values, **fields})

    def prepare(self, *said: e.RecordSubmitted) -> e.ShardWritten:
        outs = self.step.handle(self.land(*said))
        shards = [self.record(out) for out in outs if out.topic == "training.shards"]
        self.landing.write([self.landing.read(shards)])
        (shard,) = [kafka.decode(record)[1] for record in shards]
        return shard

    def learn(self, number: int, new: e.ShardWritten, replay: e.ShardWritten | None, **fields: Any) -> e.Version:
        """A job, its candidate, its verdict and its promotion."""
        sets = {"new_data": self.set_of(new), "replay_data": self.set_of(replay) if replay else None}
        job = example(e.JobRequested, self.model, parent_version=number - 1, reason="volume", base="pydoc-4m", **sets, **fields)
        candidate = example(e.CandidateTrained, self.model, job_id=job.job_id, **sets, **fields)
        same = {"job_id": job.job_id, "digest": candidate.digest}
        verdict = example(e.VerdictReached, self.model, passed=True, reason="better", **same, **sets, **fields)
        decision = example(e.DecisionMade, self.model, decision="promoted", version=number, **same)
        self.land(job, candidate, verdict, decision)
        return example(e.Version, self.model, version=number, base="pydoc-4m", base_digest="b" * 64, **same, **sets, **fields)

    def set_of(self, shard: e.ShardWritten) -> e.ShardSet:
        return put_shard_set(self.store, self.model, [e.ShardRef(
            shard_id=shard.shard_id, path=shard.path, digest=shard.digest, rows=shard.rows)])  # fmt: skip

    def _tell(self) -> None:
        self.trains, self.judges = subject("train"), subject("test")
        prompt = f"where? {fresh('question')}"
        self.served = self.land(example(e.InferenceServed, self.model, inference_id=self.inference))[0]
        first = self.submitted("wrong", prompt=prompt, record_id=self.answer, inference_id=self.inference)
        self.first = self.prepare(
            first, self.submitted("wrong", prompt=prompt, record_id="twice"), self.submitted("", record_id="empty"),
            self.submitted("judged", subject_id=self.judges, record_id="test"),
            self.submitted("", kind="preference", chosen="a", rejected="b", record_id="pair", inference_id=self.inference),
            self.submitted("x", model="nobody", record_id="stranger"),
            self.submitted("", kind="kto", label=True, record_id="empty too"),
        )  # fmt: skip
        v1 = self.learn(1, self.first, None)
        self.second = self.prepare(self.submitted("right", prompt=prompt, record_id=self.answer, inference_id=self.inference))
        drift = example(e.DriftDetected, self.model, metric="correct", baseline=0.9, current=0.5)
        self.land(drift)
        v2 = self.learn(2, self.second, self.first, drift_id=drift.drift_id)
        self.land(self.submitted("later", record_id="waiting"))
        self.state = example(
            e.ModelStateChanged, self.model, champion=2, previous=1, epoch=2, shares={"2": 1.0}, versions=[v1, v2]
        )
        self.land(self.state)

    def trace(self, identity: str) -> dict[str, list[dict[str, Any]]]:
        return trace(self.client, self.store, identity)

    def cli(self, *words: str) -> Result:
        flags = ["--data-dir", str(self.folder), "--kafka-bootstrap", self.bootstrap, "--clickhouse-url", self.url, "--http-port", "1"]
        return CliRunner().invoke(command_line(), [*flags, *words])

    def json(self, *words: str) -> Any:
        said = self.cli(*words, "--format", "json")
        assert said.exit_code == 0, (said.output, said.exception)
        return json.loads(said.stdout)


@pytest.fixture(scope="module")
def story(kafka_bootstrap: str, clickhouse_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    yield Story(kafka_bootstrap, clickhouse_url, data_folder(tmp_path_factory.mktemp("story") / "data"))


def test_a_corrected_record_is_followed_to_the_version_that_serves(story) -> None:
    found = story.trace(story.answer)
    origins = [f"{RAW}/{story.partition}/10", f"{RAW}/{story.partition}/17"]
    assert [raw["origin"] for raw in found["raw"]] == origins
    assert [(s["raw"], s["shard"], s["digest"], s["kind"], s["split"]) for s in found["shards"]] == [
        (origins[0], story.first.shard_id, story.first.digest, "sft", "train"),
        (origins[1], story.second.shard_id, story.second.digest, "sft", "train"),
    ]  # fmt: skip
    told = [(use["raw"], use["data"], use["role"], use["version"], use["serves"]) for use in found["uses"]]
    v1, v2 = f"{story.model}@1", f"{story.model}@2"
    assert told == [
        (origins[0], "new", "taught", v1, f"as {v2}"),
        (origins[1], "new", "taught", v2, "now"),
        (origins[0], "replay", "superseded", v2, "now"),
    ]  # fmt: skip
    assert all(use["passed"] is True and use["verdict"] == "better" and use["candidate"] for use in found["uses"])
    steps = [(line["step"], line["id"]) for line in lines(found)]
    assert steps[:4] == [*(("raw", origin) for origin in origins), ("shard", story.first.shard_id), ("shard", story.second.shard_id)]
    assert [step for step, _ in steps[4:]] == ["job", "candidate", "version"] * 3


def test_origins_and_inference_ids_lead_to_the_same_records(story) -> None:
    by_origin = story.trace(f"{RAW}/{story.partition}/17")
    assert by_origin == story.trace(story.answer)
    by_inference = story.trace(story.inference)
    assert {raw["record"] for raw in by_inference["raw"]} == {story.answer, "pair"}
    assert story.trace(story.served.origin) == by_inference, "the answer's own origin"


@pytest.mark.parametrize(("offset", "expected"), [
    (11, "duplicate"), (12, "no answer"), (16, "no answer"), (15, "refused?"), (18, "waits to be prepared"),
])  # fmt: skip
def test_what_made_no_row_says_why(story, offset, expected) -> None:
    found = story.trace(f"{RAW}/{story.partition}/{offset}")
    (shard,) = found["shards"]
    assert shard["kind"] is None and shard["dropped"].startswith(expected) and found["uses"] == []
    if expected == "refused?":
        assert f"tuneloop dlq show {RAW}/{story.partition}/15" in shard["dropped"]


def test_hold_outs_are_judged_on_and_pairs_not_trained_on(story) -> None:
    held_out, pair = (story.trace(f"{RAW}/{story.partition}/{offset}")["uses"] for offset in (13, 14))
    assert [(use["data"], use["role"]) for use in held_out] == [("new", "judged on"), ("replay", "judged on")]
    assert {use["role"] for use in pair} == {"not trained on"}


def test_an_unknown_id_says_what_to_try(story) -> None:
    for identity in ("nothing", f"{RAW}/{story.partition}/99"):
        with pytest.raises(LineageError, match=rf"nothing is known of '{identity}'; give a record id.*tuneloop dlq ls"):
            story.trace(identity)
    assert "give a record id" in str(story.cli("data", "show", "nothing").exception)


def test_a_missing_shard_is_said_and_hides_nothing_else(story, tmp_path) -> None:
    found = trace(story.client, ArtifactStore(str(tmp_path)), f"{RAW}/{story.partition}/18")
    assert found["shards"][0]["dropped"] == "waits to be prepared"
    found = trace(story.client, ArtifactStore(str(tmp_path)), story.answer)
    assert len(found["raw"]) == 2 and all("is missing from the store" in shard["dropped"] for shard in found["shards"])


def test_data_show_prints_a_line_a_step_and_nobodys_words(story) -> None:
    said = story.cli("data", "show", story.answer)
    assert said.exit_code == 0 and f"{story.model}@2" in said.stdout and "where?" not in said.stdout
    assert "where?" not in json.dumps(story.json("data", "show", story.answer))


def test_models_show_lineage_has_every_shard_of_a_version(story) -> None:
    publish(story.bootstrap, [kafka.out(story.state, source="test")])
    (found,) = story.json("models", "show", f"{story.model}@2", "--lineage")
    assert found["parents"] == [f"{story.model}@1", "pydoc-4m"] and found["serves"] == "now"
    assert found["drift"]["current"] == 0.5 and found["job"]["reason"] == "volume" and found["verdict"]["passed"] is True
    told = [(s["data"], s["topic"], s["partition"], s["first_offset"], s["last_offset"], s["digest"], s["rows"]) for s in found["shards"]]
    assert told == [
        ("new", RAW, story.partition, 17, 17, story.second.digest, 1),
        ("replay", RAW, story.partition, 10, 16, story.first.digest, 3),
    ]  # fmt: skip
    assert found["shards"][1]["kinds"] == {"sft": 2, "preference": 1} and found["shards"][1]["sft_splits"] == {"train": 1, "test": 1}
    assert found["totals"]["all"] == {"shards": 2, "rows": 4, "kinds": {"sft": 3, "preference": 1}, "sft_splits": {"train": 2, "test": 1}}
    table = story.cli("models", "show", f"{story.model}@2", "--lineage").stdout
    assert story.first.digest in table and f"{story.model}@2 ← {story.model}@1 ← pydoc-4m" in table


@pytest.mark.parametrize(("choice", "expected"), [
    ((), ["right"]),
    (("--split", "all"), ["judged", "right"]),
    (("--version", "@1"), ["wrong"]),
    (("--version", "@2"), ["right"]),
    (("--since", "@1"), ["right"]),
    (("--since", "2026-01-01"), ["right"]),
])  # fmt: skip
def test_export_takes_the_latest_rows_of_the_data_asked_for(story, choice, expected) -> None:
    words = [word if not word.startswith("@") else story.model + word for word in choice]
    said = story.cli("data", "export", "--model", story.model, *words)
    assert said.exit_code == 0, said.exception
    assert [json.loads(line)["messages"][-1]["content"] for line in said.stdout.splitlines()] == expected


def test_export_writes_a_file_and_refuses_what_makes_none(story, tmp_path) -> None:
    export = ("data", "export", "--model", story.model)
    out = tmp_path / "pairs.parquet"
    said = story.cli(*export, "--kind", "preference", "--format", "parquet", "--out", str(out))
    assert said.exit_code == 0 and said.stdout == "", said.exception
    (pair,) = pq.read_table(out).to_pylist()
    assert [list(pair), pair["chosen"]] == [["prompt", "chosen", "rejected"], [{"role": "assistant", "content": "a"}]]
    none = tmp_path / "none.jsonl"
    refusals = {
        ("--kind", "kto", "--out", str(none)): "no committed row is kto and train",
        ("--since", f"{story.model}@2", "--out", str(none)): "no committed row",
        ("--since", "2999-01-01"): "no committed row",
        ("--version", f"{story.model}@7"): f"there are: {story.model}@1, {story.model}@2",
        ("--version", "other@1"): "is no version of",
        ("--version", f"{story.model}@1", "--since", "2026-01-01"): "give one of them",
        ("--format", "parquet"): "--out",
    }  # fmt: skip
    for words, why in refusals.items():
        said = story.cli(*export, *words)
        assert said.exit_code != 0 and why in str(said.exception), (words, said.exception)
    assert not none.exists() and [file.name for file in tmp_path.iterdir()] == [out.name]
    assert "is committed yet" in str(story.cli("data", "export", "--model", "nobody").exception)


def test_who_was_forgotten_is_in_no_export_and_said_to_be_erased(kafka_bootstrap, clickhouse_url, tmp_path) -> None:
    """A shard that was rewritten is said again under its own id; what was before is not to be read any more."""
    story = Story(kafka_bootstrap, clickhouse_url, data_folder(tmp_path / "data"))
    table = pq.read_table(io.BytesIO(story.store.get_bytes(story.first.path, story.first.digest)))
    kept = table.filter(pc.not_equal(table.column("record_id"), "test"))
    path, digest, size_bytes = put_shard(story.store, story.model, story.first.shard_id, kept)
    again = msgspec.structs.replace(
        story.first, path=path, digest=digest, size_bytes=size_bytes, erased=1, replaces=story.first.digest, **counted(kept)
    )
    story.land(again)
    (story.folder / "artifacts" / story.first.path).unlink()
    for words in ((), ("--version", f"{story.model}@1")):
        said = story.cli("data", "export", "--model", story.model, "--split", "test", *words)
        assert "no committed row is sft and test" in str(said.exception)
    (shard,) = story.trace(f"{RAW}/{story.partition}/13")["shards"]
    assert (shard["kind"], shard["digest"]) == (None, digest) and "erased" in shard["dropped"]
    assert story.trace(f"{RAW}/{story.partition}/14")["shards"][0]["kind"] == "preference"
