"""Erasure's own promises, on a real broker: what is suppressed when, what a killed attempt leaves to the next one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pytest
from confluent_kafka import KafkaException

from schemas import events as e
from schemas.codec import Envelope
from schemas.identity import erasure_id, key_id, subject_hash
from schemas.shards import SHARD_SCHEMA
from streams import erased, failpoints, kafka, metrics
from streams.artifacts import UNFINISHED, ArtifactStore, put_shard_set
from streams.clickhouse import connect, rows
from streams.erase import child, compact, find, shards
from streams.erase.job import EraseJob
from streams.erase.subject import Subject
from streams.erased import Erased
from streams.kafka import Out
from streams.monitor.land import ClickHouseStore
from streams.prepare.shard import counted, put_shard, ref_of
from tests import parts
from tests.broker import fresh, fresh_topic, landed, open_transaction, publish
from tests.examples import example
from tests.ids import KEY_ID, SECRET, answer
from tests.stores import store_at

BEFORE, LATE, OTHERS = (answer(letter) for letter in "abc")


@pytest.fixture(scope="module")
def kafka_bootstrap(own_bootstrap: str) -> str:
    """An erasure reads all there is, others' registry and records of other secrets too."""
    return own_bootstrap


@pytest.fixture(scope="module")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """And others' jobs under way."""
    with parts.clickhouse(tmp_path_factory.mktemp("clickhouse")) as url:
        yield url


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "artifacts")


def request(subject: str, **fields: Any) -> e.ErasureRequested:
    hashed = subject_hash(SECRET, subject)
    return e.ErasureRequested(erasure_id=erasure_id(hashed), subject_hash=hashed, key_id=KEY_ID, **{"subject_id": subject, **fields})


def known(bootstrap: str, store: ArtifactStore) -> Erased:
    suppression = Erased(bootstrap, SECRET, store)
    suppression.refresh()
    return suppression


def test_feedback_that_names_nobody_is_known_by_its_answer_while_they_are_erased_and_after(
    kafka_bootstrap: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erased, "STALE_S", 0.0)
    jane = request(fresh("jane"))
    publish(kafka_bootstrap, [kafka.out(jane, source="test")])
    suppression = known(kafka_bootstrap, store)
    assert suppression.covers(jane.subject_id) and not suppression.covers(fresh("john"))
    assert not suppression.covers("", BEFORE), "nobody has looked yet which answers are hers"
    path = erased.put_inferences(store, jane.erasure_id, {BEFORE})
    suppression.refresh()
    assert suppression.covers("", BEFORE) and not suppression.covers("", OTHERS)
    publish(kafka_bootstrap, [kafka.out(msgspec.structs.replace(jane, subject_id="", inferences=path), source="erase")])
    for one in (suppression, known(kafka_bootstrap, store)):
        one.refresh()
        assert one.covers("", BEFORE)
        assert one.covers(jane.subject_id, OTHERS), "what she says of somebody else's answer"
        assert not one.covers("", OTHERS), "that answer stays theirs"
    suppression.answered(jane.subject_id, LATE)
    assert suppression.covers("", LATE) and known(kafka_bootstrap, store).covers("", LATE), "an answer given afterwards"
    assert erased.late_inferences(store, jane.subject_hash) == {LATE}
    assert erased.late_inferences(store, request(fresh("john")).subject_hash) == set()


def test_whoever_has_another_secret_goes_on_with_nothing(kafka_bootstrap: str, store: ArtifactStore) -> None:
    publish(kafka_bootstrap, [kafka.out(request(fresh("jane")), source="test")])
    with pytest.raises(erased.OtherSecretError, match="name the same identity_secret_file"):
        Erased(kafka_bootstrap, SECRET[::-1], store).refresh()


def test_one_request_under_another_secret_stops_nobody(kafka_bootstrap: str, store: ArtifactStore) -> None:
    ours, before = request(fresh("jane")), metrics.UNREADABLE.labels(erased.TOPIC)._value.get()
    foreign = msgspec.structs.replace(request(fresh("joan")), key_id=key_id(SECRET[::-1]))
    publish(kafka_bootstrap, [kafka.out(one, source="test") for one in (ours, foreign)])
    suppression = known(kafka_bootstrap, store)
    assert suppression.covers(ours.subject_id) and not suppression.covers(foreign.subject_id)
    assert metrics.UNREADABLE.labels(erased.TOPIC)._value.get() > before
    envelope = Envelope("an-id", "ErasureRequested", "test", 1)
    assert EraseJob(kafka_bootstrap, KEY_ID).accept(envelope, foreign) is None


def test_an_empty_name_is_nobodys(kafka_bootstrap: str, store: ArtifactStore) -> None:
    publish(kafka_bootstrap, [kafka.out(request(""), source="test")])
    suppression = known(kafka_bootstrap, store)
    assert suppression.anybody() and not suppression.covers("") and not suppression.covers("", "")
    envelope = Envelope("an-id", "ErasureRequested", "test", 1)
    assert EraseJob(kafka_bootstrap, KEY_ID).accept(envelope, request("")) is None


def test_whoever_cannot_learn_who_was_forgotten_does_not_go_on(
    kafka_bootstrap: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(kafka_bootstrap, [kafka.out(request(fresh("jane")), source="test")])
    monkeypatch.setattr(erased, "READ_LIMIT_S", 0.0)
    with pytest.raises(KafkaException, match="could not be read"):
        known(kafka_bootstrap, store)


def test_a_receipt_is_of_one_request(kafka_bootstrap: str) -> None:
    """A person may be forgotten again: the receipt of the first time says nothing of the second."""
    job, named = EraseJob(kafka_bootstrap, KEY_ID), request(fresh("jane"))
    nameless = msgspec.structs.replace(named, subject_id="", inferences="erasures/x.json")
    asked = [Envelope(f"request-{n}", "ErasureRequested", "tuneloop", n) for n in (1, 2)]
    renamed = [Envelope(f"nameless-{n}", "ErasureRequested", "erase", n, causation_id=f"request-{n}") for n in (1, 2)]
    taken = job.accept(asked[0], named)
    assert taken is not None and taken["id"] == "request-1"
    assert job.accept(renamed[0], nameless), "no receipt yet"
    job.accept(asked[0], named)
    done = {"tombstones": {}, "rewritten": 0, "rows": 0, "adapters": [], "shards": [], "jobs": [], "deleted": 0, "log_places": 0}
    publish(kafka_bootstrap, job.finished(done, 1.0))
    assert job.accept(renamed[0], nameless) is None, "that one has its receipt"
    assert job.accept(renamed[1], nameless), "this one has not"
    publish(kafka_bootstrap, job.finished(done, 1.0))
    assert job.accept(renamed[1], nameless) is None


def settings_of(bootstrap: str, topic: str) -> dict[str, str]:
    return compact._own_settings(kafka.admin(bootstrap), topic)


def test_settings_that_were_lowered_are_put_back_also_by_whoever_comes_after(
    kafka_bootstrap: str, store: ArtifactStore
) -> None:
    own = {"cleanup.policy": "compact", "segment.ms": "86400000", "max.compaction.lag.ms": "86400000"}
    topic = fresh_topic(kafka_bootstrap, "hurried", **own)
    before = settings_of(kafka_bootstrap, topic)
    with compact._in_a_hurry(kafka_bootstrap, store, [topic]):
        assert settings_of(kafka_bootstrap, topic) == compact._HASTY
    assert settings_of(kafka_bootstrap, topic) == before == {k: v for k, v in own.items() if k != "cleanup.policy"}
    killed = compact._in_a_hurry(kafka_bootstrap, store, [topic])
    killed.__enter__()
    compact.restore_settings(kafka_bootstrap, store)
    assert settings_of(kafka_bootstrap, topic) == before
    assert store.files(compact.BEFORE) == [], "there is nothing more to put back"


def test_an_attempt_that_finds_all_deleted_still_waits_for_who_has_not_passed_the_deletions(
    kafka_bootstrap: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it was killed between its deletions and its wait; the consumers stand where they stood."""
    jane = request(fresh("jane"))
    key, place = fresh("record").encode(), ("training.raw", 0)
    value = msgspec.json.encode({"model": "support", "prompt": "q", "completion": "a", "subject_id": jane.subject_id})
    publish(kafka_bootstrap, [kafka.Out(place[0], key, value, [], 0), kafka.Out(place[0], key, None, [], 0)])
    waited: list[dict[find.Place, int]] = []
    monkeypatch.setattr(child, "wait_until_passed", lambda bootstrap, marks, limit_s: waited.append(marks))
    asked = {"event": msgspec.to_builtins(jane), "asked_ms": int(time.time() * 1000), "id": "request-1"}
    work = child.Erasure(kafka_bootstrap, "", [], store, asked, lambda message: None)
    work._delete_records()
    deletion = max(r.offset for r in kafka.read_to_end(kafka_bootstrap, place[0], [0]) if r.key == key)
    assert len(waited) == 1 and waited[0][place] >= deletion


def test_a_dead_letter_that_is_just_being_committed_is_found(kafka_bootstrap: str) -> None:
    jane = fresh("jane")
    value = msgspec.json.encode({"model": "support", "prompt": 7, "subject_id": jane})
    letter = kafka.Out("dead.prepare", fresh("letter").encode(), value, [], 0)
    with open_transaction(kafka_bootstrap, [letter]):
        found = find.find(kafka_bootstrap, Subject(jane))
    assert found.keys == {("dead.prepare", 0): {letter.key}}


def test_what_a_killed_process_was_just_writing_is_swept(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ORPHANED_AFTER_S", 0.2)
    store.put_bytes("shards/support/named.parquet", b"rows")
    store.put_bytes("shards/support/orphan.parquet", b"somebody's words")
    failpoints.arm("artifact.written=raise")
    try:
        with pytest.raises(failpoints.FailpointError):
            store.put_bytes("shards/support/never.parquet", b"somebody's words")
    finally:
        failpoints.arm("")
    assert len(store.files(UNFINISHED)) == 1
    assert shards.sweep(store, lambda: {"shards/support/named.parquet"}, time.time() + 1) == 2
    left = [path for prefix in ("shards", UNFINISHED) for path, _ in store.files(prefix)]
    assert left == ["shards/support/named.parquet"]


class Everywhere:
    """Jane's old answer: landed in ClickHouse, gone from its topic; with what others keep of it, and Eve beside her."""

    def __init__(self, bootstrap: str, url: str, store: ArtifactStore) -> None:
        self.bootstrap, self.client, self.store = bootstrap, connect(url), store
        self.jane, self.eve, self.model = fresh("jörg/jane"), fresh("eve"), fresh("support")
        self.hers, self.eves, self.lettered = answer(self.jane), answer(self.eve), answer(self.jane + "letter")
        self.word = fresh("zebra")
        landing = ClickHouseStore(self.client, kafka.producer(bootstrap))
        served = [(answer_of, whose) for answer_of, whose in ((self.hers, self.jane), (self.eves, self.eve))]
        said = [kafka.out(self._answer(*one), source="serve") for one in served]
        opinions = [kafka.out(self._opinion(one), source="app") for one in (self.hers, self.eves, self.lettered)]
        # What Jane says of Eve's answer, and what another version would have answered her.
        authored = msgspec.structs.replace(self._opinion(self.eves), author=self.jane, subject_id=self.eve)
        shadow = example(e.ShadowAnswered, self.model, inference_id=self.hers, subject_id=self.jane)
        self.others = [kafka.out(authored, source="app"), kafka.out(shadow, source="serve")]
        everything = [*said, *opinions, *self.others]
        # In no partition that there is: a sink resumes behind what has landed of one.
        records = [landed(out, number, 1_700_000_000_000, 77) for number, out in enumerate(everything)]
        landing.write([landing.read(records)])
        # The answers' own topic keeps nothing of that age; feedback that came late, and a letter, still lie about.
        self.letters = [
            Out("dead.join-feedback", fresh("usage.feedback/0/").encode(), opinions[0].value, []),
            Out("dead.join-feedback", fresh("usage.feedback/1/").encode(), opinions[1].value, []),
            Out("dead.monitor", fresh("usage.inferences/2/").encode(), json.dumps({"prompt": 7, "subject_id": self.jane}).encode(),
                [("__connect.errors.topic", b"usage.inferences"), ("tuneloop.original.key", self.lettered.encode())]),
            Out("dead.prepare", fresh("training.raw/3/").encode(), json.dumps({"prompt": 7, "user": self.jane}).replace("/", "\\/").encode(), []),
        ]  # fmt: skip
        self.late = [msgspec.structs.replace(opinions[0], key=fresh("late").encode()), msgspec.structs.replace(opinions[2], key=fresh("late").encode())]
        publish(bootstrap, [*self.letters, *self.late, *self.others])

    def _answer(self, inference: str, subject: str) -> e.InferenceServed:
        return example(e.InferenceServed, self.model, inference_id=inference, subject_id=subject)

    def _opinion(self, inference: str) -> e.FeedbackGiven:
        value = f"{self.word} {inference}"
        return e.FeedbackGiven(inference_id=inference, metric_name="demonstration", value=value, feedback_id=fresh("opinion"))

    def stands(self, out: kafka.Out) -> bool:
        last = [record.value for record in kafka.read_to_end(self.bootstrap, out.topic) if record.key == out.key]
        return bool(last) and last[-1] is not None

    def naming(self, table: str, column: str) -> int:
        """How many rows name Jane there."""
        counted = f"SELECT count() AS n FROM tuneloop.{table} WHERE {column} = {{jane:String}}"
        return int(rows(self.client, counted, jane=self.jane)[0]["n"])

    def rows(self, table: str) -> set[str]:
        found = rows(self.client, f"SELECT inference_id FROM tuneloop.{table} WHERE inference_id IN {{ids:Array(String)}}",
                     ids=[self.hers, self.eves, self.lettered])  # fmt: skip
        return {row["inference_id"] for row in found}


def test_feedback_on_answers_older_than_their_topic_keeps_goes_with_them(
    kafka_bootstrap: str, clickhouse_url: str, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "wait_until_passed", lambda *_: None)  # nobody consumes here
    monkeypatch.setattr(erased, "STALE_S", 0.1)
    there = Everywhere(kafka_bootstrap, clickhouse_url, store)
    assert there.rows("inference_served") == {there.hers, there.eves} and len(there.rows("feedback_given")) == 3
    assert there.naming("feedback_given", "author") == there.naming("shadow_answered", "subject_id") == 1
    log = tmp_path / "logs" / "serve.log"
    log.parent.mkdir()
    log.write_text(f"url: /?param_subject={quote(there.jane, safe='')}&x\nuser='{there.jane}'\nuser='{there.eve}'\n")
    jane = request(there.jane, requested_by="Mr. Nobody")
    publish(kafka_bootstrap, [kafka.out(jane, source="test")])
    asked = {"event": msgspec.to_builtins(jane), "asked_ms": int(time.time() * 1000), "id": "request-1"}
    work = child.Erasure(kafka_bootstrap, clickhouse_url, [str(log.parent)], store, asked, lambda message: None)
    receipt = work.done()
    assert receipt["tombstones"] == {
        "dead.join-feedback": 1, "dead.monitor": 1, "dead.prepare": 1, "usage.feedback": 3, "usage.shadows": 1,
    }  # fmt: skip
    assert [there.stands(letter) for letter in there.letters] == [False, True, False, False]
    assert not any(there.stands(out) for out in [*there.late, *there.others])
    assert there.naming("feedback_given", "author") == there.naming("shadow_answered", "subject_id") == 0
    assert there.rows("inference_served") == there.rows("feedback_given") == {there.eves}
    assert receipt["log_places"] == 2 and there.eve in log.read_text() and there.jane not in log.read_text()
    assert receipt["adapters"] == [] and receipt["jobs"] == [] and receipt["deleted"] == 0
    suppression = known(kafka_bootstrap, store)
    assert suppression.covers("", there.hers) and suppression.covers("", there.lettered), "what comes late"
    assert not suppression.covers("", there.eves)
    (said,) = [kafka.decode(r)[1] for r in kafka.read_to_end(kafka_bootstrap, erased.TOPIC) if r.key == jane.erasure_id.encode() and r.value]
    assert (said.subject_id, said.requested_by) == ("", "")


def test_an_error_of_an_erasure_names_nobody(kafka_bootstrap: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """ClickHouse quotes the statement, a refused connection its address."""
    monkeypatch.setattr(erased, "STALE_S", 0.0)
    jane = request("jörg/jane doe")
    work = child.make(kafka_bootstrap, "http://127.0.0.1:9", [], str(store._local))

    def refused(*_: object) -> None:
        raise OSError("no answer of /?param_subject=j%C3%B6rg%2Fjane+doe&x for 'jörg/jane doe' (j\\u00f6rg/jane doe)")

    monkeypatch.setattr(child.tables, "inferences_of", refused)
    monkeypatch.setattr(child, "connect", lambda url: None)
    with pytest.raises(RuntimeError) as told:
        work({"event": msgspec.to_builtins(jane), "asked_ms": 0, "id": "r"}, lambda message: None)
    assert str(told.value) == "OSError: no answer of /?param_subject=*&x for '*' (*)" and told.value.__suppress_context__


def test_what_learned_from_rows_that_are_gone_is_named_in_the_receipt(
    kafka_bootstrap: str, clickhouse_url: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version, a candidate and a job that had read them; none of each that had not; an adapter that nobody named."""
    monkeypatch.setattr(shards, "UNNAMED_AFTER_S", -1.0)
    monkeypatch.setattr(shards, "ORPHANED_AFTER_S", 0.0)
    model, jane = fresh("support"), fresh("jane")
    table = pa.Table.from_pylist(
        [{"subject_id": who, "inference_id": "", "kind": "sft", "split": "train", "completion": "x"} for who in (jane, "eve")],
        schema=SHARD_SCHEMA,
    )
    path, digest, size = put_shard(store, model, fresh("shard"), table)
    shard = example(e.ShardWritten, model, shard_id=fresh("shard"), path=path, digest=digest, size_bytes=size, replaces="", erased=0)
    shard = msgspec.structs.replace(shard, **counted(table))
    others = e.ShardRef(shard_id=fresh("shard"), path="shards/other", digest="0" * 64, rows=1)
    with_her, without = (put_shard_set(store, model, [ref]) for ref in (ref_of(shard), others))
    candidates = [example(e.CandidateTrained, model, new_data=data) for data in (with_her, without, with_her)]
    decided = example(e.DecisionMade, model, decision="refused", job_id=candidates[2].job_id)
    versions = [
        e.Version(version=n, digest=fresh("digest"), path="adapters/x", base="b", base_digest="d", job_id="j", fingerprint=[],
                  new_data=without, replay_data=data) for n, data in ((1, with_her), (2, without), (3, None))
    ]  # fmt: skip
    state = example(e.ModelStateChanged, model, versions=versions)
    publish(kafka_bootstrap, [kafka.out(one, source="test") for one in (*candidates, decided, state)])
    jobs = [example(e.JobRequested, model, new_data=without, replay_data=data) for data in (with_her, None, with_her)]
    ended = e.JobEnded(model=model, job_id=jobs[2].job_id, outcome="failed")
    landing = ClickHouseStore(connect(clickhouse_url), kafka.producer(kafka_bootstrap))
    records = [landed(kafka.out(one, source="t"), n, 1_700_000_000_000, 9) for n, one in enumerate([*jobs, ended])]
    landing.write([landing.read(records)])
    monkeypatch.setattr(child, "read_committed_shards", lambda _: [shard])
    store.put_bytes(f"sorted/{model}/2026-01/train-{'0' * 64}.parquet", b"what a crash left of a copy")
    unnamed = store.put_bytes("adapters/feed/adapter_model.safetensors", b"weights") and "adapters/feed"
    asked = {"event": msgspec.to_builtins(request(jane)), "asked_ms": 0, "id": "r"}
    work = child.Erasure(kafka_bootstrap, clickhouse_url, [], store, asked, lambda message: None)
    touched = work._touched(work._rewrite_shards())
    learned = [(1, versions[0].digest), (0, candidates[0].digest)]
    assert [(one.version, one.digest) for one in touched["adapters"] if one.model == model] == learned
    assert touched["jobs"] == [jobs[0].job_id] and touched["deleted"] == 1 and not store.files(unnamed)
    assert store.files("sorted") == []
    again = child.Erasure(kafka_bootstrap, clickhouse_url, [], store, asked, lambda message: None)
    assert again._touched(again._rewrite_shards()) == touched | {"deleted": 0}, "an attempt after a crash says the same"
