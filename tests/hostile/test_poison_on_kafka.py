"""Poison on a real broker: what it does to who reads our own topics, and what a record may be when it is unpacked."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from confluent_kafka import KafkaError, Producer

from schemas.events import ErasureRequested, ModelStateChanged, ShardWritten
from schemas.identity import erasure_id, subject_hash
from streams import kafka, metrics
from streams.erased import Erased
from streams.kafka import Out
from streams.prepare import step
from streams.prepare.step import read_committed_shards
from streams.prepare.workers import WorkerPool
from streams.register import read_registry
from tests.broker import fresh, publish
from tests.hostile.planted import planted
from tests.ids import KEY_ID, SECRET, SPLIT_KEY
from tests.integration.test_prepare import PARTITION, RAW, Bench, question
from tests.stores import store_at

POISON = [b"", b"\x00\xff", b'{"model": ', b"[]", b'{"a":' * 5_000]


def spoil(bootstrap: str, topic: str, key: bytes = b"") -> None:
    headers = [[], [("ce_type", b"Nothing")], [("ce_type", b"\xff")], [("ce_source", b"x" * 9_000)], []]
    publish(bootstrap, [Out(topic, key or fresh("poison").encode(), value, said)
                        for value, said in zip(POISON, headers, strict=True)])  # fmt: skip


def test_the_registry_and_the_shards_are_read_past_what_cannot_be_read(own_bootstrap) -> None:
    before = metrics.UNREADABLE.labels("models.registry")._value.get()
    spoil(own_bootstrap, "models.registry")
    spoil(own_bootstrap, "training.shards")
    state = ModelStateChanged(
        model=fresh("m"), base="b", epoch=1, champion=0, previous=0, versions=[], change="promoted", reason=""
    )
    shard = ShardWritten(
        model=state.model, shard_id=fresh("shard"), path="p", digest="d", size_bytes=1, rows=0, rows_by_kind={},
        rows_by_split={}, dropped={}, source_topic="training.raw", source_partition=0, first_offset=0, last_offset=0,
        rules_version="5",
    )  # fmt: skip
    publish(own_bootstrap, [kafka.out(state, source="test"), kafka.out(shard, source="test")])
    models, _ = read_registry(own_bootstrap, settled=True)
    assert models[state.model] == state
    assert metrics.UNREADABLE.labels("models.registry")._value.get() == before + len(POISON)
    assert shard in read_committed_shards(own_bootstrap)


def test_an_unreadable_erasure_keeps_its_subject_out_and_the_next_is_read(own_bootstrap, tmp_path) -> None:
    identity = erasure_id(subject_hash(SECRET, "jane"))
    spoil(own_bootstrap, "subjects.erasures", identity.encode())
    hashed = subject_hash(SECRET, "joan")
    request = ErasureRequested(erasure_id=erasure_id(hashed), subject_hash=hashed, key_id=KEY_ID, subject_id="joan")
    publish(own_bootstrap, [kafka.out(request, source="test")])
    erased = Erased(own_bootstrap, SECRET, store_at(tmp_path))
    erased.refresh()
    assert erased.covers("joan") and erased.covers("jane") and not erased.covers("jim")


def test_rules_that_do_not_return_cost_their_records_alone(own_bootstrap, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(step, "READ_LIMIT_S", 0.0)  # each batch is cut off as soon as it may be
    bench = Bench(own_bootstrap, tmp_path)
    bench.workers = WorkerPool({bench.model: bench.policy}, SPLIT_KEY, rules=planted, limit_s=0.5)
    said = [{**question(number), "completion": f"answer {number}"} for number in range(600)]
    said[0]["completion"] = said[300]["completion"] = "loops"
    bench.submit(*said)
    shards = sorted(bench.prepared(), key=lambda shard: shard.first_offset)
    first = bench.start[RAW, PARTITION]
    letters = {(letter.key or b"").decode() for letter in bench.dead()}
    assert letters == {f"{RAW}/{PARTITION}/{first}", f"{RAW}/{PARTITION}/{first + 300}"}
    offsets = [row["offset"] - first for shard in shards for row in bench.rows(shard)]
    assert sorted(offsets) == [number for number in range(600) if number not in (0, 300)], "each once"
    assert len(shards) > 1 and all(before.last_offset < after.first_offset for before, after in pairwise(shards))


def packed(bootstrap: str, topic: str, value: bytes, codec: str) -> KafkaError | None:
    """What the broker says of this value under a stranger's codec."""
    told: list[KafkaError | None] = []
    settings = {"compression.codec": codec, "message.max.bytes": 999_999_999, "message.timeout.ms": 30_000}
    producer = Producer(kafka.client_settings(bootstrap, **settings))
    producer.produce(topic, value, key=b"bomb", partition=PARTITION, on_delivery=lambda error, _: told.append(error))
    producer.flush(60)
    assert told, "the broker said nothing"
    return told[0]


@pytest.mark.parametrize("topic", ["training.raw", "usage.feedback"])
def test_what_only_zstd_packs_so_small_is_refused(own_bootstrap, topic: str) -> None:
    """Blocks that repeat too far apart for lz4: 40 MB in some 200 kB."""
    error = packed(own_bootstrap, topic, os.urandom(128 << 10) * 320, "zstd")
    assert error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_what_is_small_enough_when_packed_anew_is_a_dead_letter(own_bootstrap, tmp_path, codec: str) -> None:
    bench = Bench(own_bootstrap, tmp_path)
    assert packed(own_bootstrap, RAW, b" " * 40_000_000, codec) is None
    bench.submit(question(1))
    (shard,) = bench.prepared()
    assert shard.rows == 1
    (letter,) = bench.dead()
    assert letter.value == b"" and b"40000000 bytes are left out" in dict(letter.headers)["__connect.errors.exception.message"]
