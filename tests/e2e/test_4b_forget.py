"""A person is forgotten: every topic, shard, table and file loses them, what comes late is kept out, a receipt stays."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from deploy.addresses import identity_secret
from deploy.demo.stage import MODEL
from schemas.identity import InferenceIds
from streams import kafka
from streams.artifacts import get_shard, get_shard_set
from streams.erased import LATE
from tests.broker import fresh, until
from tests.e2e.system import System, read_topic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTIONS = 3


class Person:
    """Somebody with an id, which JSON may spell in many ways, and words that nobody else has."""

    def __init__(self) -> None:
        self.id, self.word = fresh("jörg/jane-doe"), fresh("zebra").replace("-", "")
        # However the id is spelled (JSON's escapes, a URL's), its last part stays as it is.
        self._marks = [self.id.rpartition("-")[2].encode(), self.word.encode()]
        self.inferences: list[str] = []

    def in_files(self, folder: Path) -> list[str]:
        """The files that hold the person's id or words, by a look at every byte."""
        held = []
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                try:
                    data = path.read_bytes()
                except FileNotFoundError:  # a file that was merged or cleaned meanwhile
                    continue
                if any(mark in data for mark in self._marks):
                    held.append(str(path.relative_to(folder)))
        return held

    def raw(self, number: int) -> dict[str, Any]:
        """A record of theirs as any program may submit it."""
        said = f"please help me with {self.word} number {number}"
        return {"model": MODEL, "prompt": said, "completion": f"invoice_copy {number}", "subject_id": self.id}


def submit(system: System, topic: str, partition: int, records: dict[str, bytes]) -> None:
    client = Producer({**kafka.client_settings(system.where.bootstrap), "linger.ms": 0})
    for key, value in records.items():
        client.produce(topic, value, key=key.encode(), partition=partition)
    assert client.flush(15) == 0


def talk(system: System, person: Person) -> None:
    """Questions with demonstrations, over HTTP; imports and a broken record, by a Kafka client that knows nothing."""
    with httpx.Client(base_url=system.where.http, timeout=30, trust_env=False) as client:
        for number in range(QUESTIONS):
            text = f"where is {person.word} number {number}"
            body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "user": person.id}
            identity = client.post("/v1/chat/completions", json=body).json()["id"]
            person.inferences.append(identity)
            said = {"inference_id": identity, "metric_name": "demonstration", "value": f"{person.word} {number}"}
            assert client.post("/v1/feedback", json=said).status_code == 200
    good = {fresh("import"): json.dumps(person.raw(number)).encode() for number in range(2)}
    letter = json.dumps({"model": MODEL, "prompt": 7, "subject_id": person.id}).replace("/", "\\/")
    broken = {fresh("import"): letter.encode()}
    submit(system, "training.raw", 1, good | broken)


def rows_of(system: System, person: Person) -> int:
    tables = ("inference_served", "record_submitted")
    counts = [system.value(f"SELECT count() FROM tuneloop.{t} WHERE subject_id = {{s:String}}", s=person.id) for t in tables]
    theirs = "SELECT count() FROM tuneloop.feedback_given WHERE inference_id IN {i:Array(String)}"
    return sum(counts) + int(system.value(theirs, i=person.inferences))


def shard_rows_of(system: System, person: Person) -> int:
    """Rows of theirs in any shard file, named by an event or not."""
    found = 0
    for path, _ in system.store.files("shards"):
        table = pq.read_table(io.BytesIO(system.store.read_bytes(path)), columns=["subject_id"])
        found += table.column("subject_id").to_pylist().count(person.id)
    return found


@pytest.fixture(scope="module")
def person(system: System) -> Person:
    one = Person()
    talk(system, one)
    until(lambda: rows_of(system, one) == 3 * QUESTIONS + 2, 40, "all of it to be in ClickHouse")
    until(lambda: shard_rows_of(system, one) == QUESTIONS + 2, 40, "all of it to be in shards")
    until(lambda: any(one.id in str(seen.body) for seen in system.topic("dead.prepare")), 40, "the dead letter")
    return one


def test_everything_of_a_person_goes_and_a_receipt_says_so(system: System, person: Person) -> None:
    log = system.settings.data / "logs" / "work.log"
    with log.open("a") as writer:  # as a library's error may quote it
        writer.write(f"no answer of /?param_subject={quote(person.id, safe='')}: {person.id!r}\n")
    before = person.in_files(system.settings.data)
    for part in ("kafka", "clickhouse", "faust", "logs"):
        assert any(path.startswith(part) for path in before), f"nothing of theirs was found in {part}: a blind look"
    others = system.value("SELECT count() FROM tuneloop.inference_served FINAL WHERE subject_id != {s:String}", s=person.id)
    said = system.cli("forget", person.id, "--requested-by", "privacy desk", "--format", "json", timeout_s=300)
    assert said.code == 0, said.err
    (receipt,) = said.json
    topics = receipt["topics"]
    assert topics["usage.inferences"] == topics["usage.feedback"] == QUESTIONS
    # each demonstration made one record, besides what was imported; the broken one counts there and as a letter
    assert topics["training.raw"] == QUESTIONS + 3
    assert topics["dead.prepare"] >= 1 and receipt["rows_erased"] == QUESTIONS + 2
    assert receipt["places_in_logs"] == 2 and quote(person.id, safe="") not in log.read_text()
    assert person.in_files(system.settings.data) == [], "files that hold their words"
    assert rows_of(system, person) == 0 and shard_rows_of(system, person) == 0
    after = system.value("SELECT count() FROM tuneloop.inference_served FINAL WHERE subject_id != {s:String}", s=person.id)
    assert after >= others, "somebody else's answers went with them"


def test_the_receipt_stays_and_names_nobody(system: System, person: Person) -> None:
    (receipt,) = system.topic("subjects.erasures", "ErasureCompleted")
    (request,) = system.topic("subjects.erasures", "ErasureRequested")
    assert receipt.body["erasure_id"] == request.body["erasure_id"] and request.body["subject_id"] == ""
    assert request.body["requested_by"] == ""
    kept = "SELECT count() FROM tuneloop.erasure_requested WHERE subject_id != '' OR requested_by != ''"
    assert system.value(kept) == 0
    until(lambda: system.value("SELECT count() FROM tuneloop.erasure_completed") == 1, 20, "the receipt to land")
    shards = [seen.body for seen in system.topic("training.shards") if seen.body.get("erased")]
    assert sum(shard["erased"] for shard in shards) == QUESTIONS + 2
    assert all(shard["replaces"] and shard["replaces"] != shard["digest"] for shard in shards)


def test_what_comes_late_is_kept_out(system: System, person: Person) -> None:
    """A replay of an import, and a slow gateway's answer to a question of theirs with feedback on an old one."""
    imported, answered = fresh("import"), fresh("late")
    served = {
        "model": MODEL, "inference_id": person.inferences[0], "version": 1, "requested": MODEL, "base": "b",
        "subject_id": person.id, "conversation_id": "c", "messages": [{"role": "user", "content": f"again {person.word}"}],
        "answer": "x", "finish_reason": "stop", "input_tokens": 1, "output_tokens": 1, "latency_ms": 1.0, "first_token_ms": 1.0,
    }  # fmt: skip
    feedback = {"inference_id": person.inferences[1], "metric_name": "demonstration", "value": f"late {person.word}"}
    client = Producer({**kafka.client_settings(system.where.bootstrap), "linger.ms": 0})
    client.produce("usage.inferences", json.dumps(served).encode(), key=person.inferences[0].encode(),
                   headers=[("ce_type", b"InferenceServed"), ("ce_id", b"late-1"), ("ce_source", b"tuneloop/serve")])  # fmt: skip
    client.flush(15)
    submit(system, "usage.feedback", 0, {answered: json.dumps(feedback).encode()})
    submit(system, "training.raw", 2, {imported: json.dumps(person.raw(9)).encode()})

    def left(topic: str) -> bool:
        """Whether the last word of any key in any partition is theirs."""
        last = {(seen.partition, seen.key): str(seen.body) for seen in read_topic(system.where.bootstrap, topic, deletions=True)}
        return any(person.word in body for body in last.values())

    for topic in ("training.raw", "usage.inferences", "usage.feedback"):
        until(lambda topic=topic: not left(topic), 40, f"{topic} to be rid of what came late")
    # An answer that they are given now, and then feedback on it, which says of nobody but of that answer.
    identity, opinion = InferenceIds(identity_secret(system.settings)).issue(), fresh("opinion")
    person.inferences.append(identity)
    client.produce("usage.inferences", json.dumps(served | {"inference_id": identity}).encode(), key=identity.encode(),
                   headers=[("ce_type", b"InferenceServed"), ("ce_id", b"late-2"), ("ce_source", b"tuneloop/serve")])  # fmt: skip
    client.flush(15)
    until(lambda: any(path.endswith(identity) for path, _ in system.store.files(LATE)), 40, "their answer to be noted")
    submit(system, "usage.feedback", 0, {opinion: json.dumps(feedback | {"inference_id": identity}).encode()})
    until(lambda: not left("usage.feedback"), 40, "usage.feedback to be rid of their opinion")
    time.sleep(2)
    assert rows_of(system, person) == 0 and shard_rows_of(system, person) == 0


def test_nobody_is_not_a_person(system: System) -> None:
    said = system.cli("forget", "")
    assert said.code != 0 and "which subject?" in said.err


@pytest.mark.long
def test_forgetting_somebody_unknown_is_done_at_once_and_harms_nobody(system: System) -> None:
    rows = system.value("SELECT count() FROM tuneloop.record_submitted FINAL")
    said = system.cli("forget", fresh("nobody"), "--format", "json", timeout_s=200)
    assert said.code == 0, said.err
    (receipt,) = said.json
    assert receipt["records"] == 0 and receipt["rows_erased"] == 0 and receipt["adapters_that_learned_from_them"] == []
    assert system.value("SELECT count() FROM tuneloop.record_submitted FINAL") >= rows


@pytest.mark.long
def test_an_adapter_that_learned_from_somebody_is_listed_and_marked(system: System) -> None:
    """One of the demo's customers, whose demonstration version 2 was trained on."""
    version = next(v for v in system.registered().versions if v.version == 2)
    found = [get_shard(system.store, ref)[1] for ref in get_shard_set(system.store, version.new_data)]
    subject = next(
        row["subject_id"] for data in found for row in pq.read_table(io.BytesIO(data)).to_pylist()
        if row["subject_id"].startswith("customer-") and row["kind"] == "sft"
    )  # fmt: skip
    said = system.cli("forget", subject, "--format", "json", timeout_s=300)
    assert said.code == 0, said.err
    assert f"{MODEL}@2" in said.json[0]["adapters_that_learned_from_them"]
    erasure = said.json[0]["erasure"]
    marked = lambda: next(v for v in system.registered().versions if v.version == 2).erasures  # noqa: E731
    until(lambda: erasure in marked(), 20, "the registry to mark it")
    assert system.registered().champion == version.version, "it goes on serving until somebody decides"
    assert [get_shard(system.store, ref) for ref in get_shard_set(system.store, version.new_data)], "still readable"
