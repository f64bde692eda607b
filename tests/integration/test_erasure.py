"""Erasure's own promises, on a real broker: what is suppressed when, what a killed attempt leaves to the next one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaException

from schemas import events as e
from schemas.codec import Envelope
from schemas.identity import erasure_id, subject_hash
from streams import erased, failpoints, kafka
from streams.artifacts import UNFINISHED, ArtifactStore
from streams.erase import child, compact, find, shards
from streams.erase.job import EraseJob
from streams.erased import Erased
from tests.broker import fresh, fresh_topic, open_transaction, publish
from tests.ids import KEY_ID, SECRET, answer

BEFORE, LATE, OTHERS = (answer(letter) for letter in "abc")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


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


def test_an_empty_name_is_nobodys(kafka_bootstrap: str, store: ArtifactStore) -> None:
    publish(kafka_bootstrap, [kafka.out(request(""), source="test")])
    suppression = known(kafka_bootstrap, store)
    assert suppression.anybody() and not suppression.covers("") and not suppression.covers("", "")
    envelope = Envelope("an-id", "ErasureRequested", "test", 1)
    assert EraseJob(kafka_bootstrap, {}).accept(envelope, request("")) is None


def test_whoever_cannot_learn_who_was_forgotten_does_not_go_on(
    kafka_bootstrap: str, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(kafka_bootstrap, [kafka.out(request(fresh("jane")), source="test")])
    monkeypatch.setattr(erased, "READ_LIMIT_S", 0.0)
    with pytest.raises(KafkaException, match="could not be read"):
        known(kafka_bootstrap, store)


def test_a_receipt_is_of_one_request(kafka_bootstrap: str) -> None:
    """A person may be forgotten again: the receipt of the first time says nothing of the second."""
    job, named = EraseJob(kafka_bootstrap, {}), request(fresh("jane"))
    nameless = msgspec.structs.replace(named, subject_id="", inferences="erasures/x.json")
    asked = [Envelope(f"request-{n}", "ErasureRequested", "tuneloop", n) for n in (1, 2)]
    renamed = [Envelope(f"nameless-{n}", "ErasureRequested", "erase", n, causation_id=f"request-{n}") for n in (1, 2)]
    taken = job.accept(asked[0], named)
    assert taken is not None and taken["id"] == "request-1"
    assert job.accept(renamed[0], nameless), "no receipt yet"
    job.accept(asked[0], named)
    done = {"tombstones": {}, "rewritten": 0, "rows": 0, "adapters": [], "shards": []}
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
    work = child.Erasure(kafka_bootstrap, "", store, asked, lambda message: None)
    work._delete_records()
    deletion = max(r.offset for r in kafka.read_to_end(kafka_bootstrap, place[0], [0]) if r.key == key)
    assert len(waited) == 1 and waited[0][place] >= deletion


def test_a_dead_letter_that_is_just_being_committed_is_found(kafka_bootstrap: str) -> None:
    jane = fresh("jane")
    value = msgspec.json.encode({"model": "support", "prompt": 7, "subject_id": jane})
    letter = kafka.Out("dead.prepare", fresh("letter").encode(), value, [], 0)
    with open_transaction(kafka_bootstrap, [letter]):
        found = find.find(kafka_bootstrap, find.Subject(jane))
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
