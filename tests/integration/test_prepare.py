"""The preparation step on a real broker: anybody's JSON in, shards in the store and their events out."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from schemas.events import ShardWritten
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from schemas.topics import MAX_REFUSED
from streams import kafka, transact
from streams.artifacts import ArtifactError
from streams.kafka import Record
from streams.prepare.people import SHARED_AT
from streams.prepare.read import read
from streams.prepare.step import Committed, PrepareStep, read_committed
from streams.prepare.workers import WorkerPool
from tests.broker import Mark, Running, fresh, group_from, lag, landed, mark, since
from tests.ids import SPLIT_KEY
from tests.stores import store_at
from tests.unit.test_prepare_people import text

RAW, SHARDS, DEAD = "training.raw", "training.shards", "dead.prepare"
PARTITION = 2


class Bench:
    """One model's data repository: a producer without headers, a store, and a preparation that starts now."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap, self.model, self.policy = bootstrap, fresh("support"), ModelPolicy()
        self.store, self.workers = store_at(folder), None  # type: ArtifactStore, WorkerPool | None
        self.start: Mark = mark(bootstrap, RAW, SHARDS, DEAD)
        self.group = group_from(bootstrap, {place: end for place, end in self.start.items() if place[0] == RAW})

    def submit(self, *bodies: bytes | dict[str, Any], partition: int = PARTITION, key: bytes = b"", **settings: int) -> None:
        producer = Producer({**kafka.client_settings(self.bootstrap), "linger.ms": 0, **settings})
        for body in bodies:
            value = body if isinstance(body, bytes) else json.dumps({"model": self.model, **body}).encode()
            producer.produce(RAW, value, key=key or fresh("record").encode(), partition=partition)
        assert producer.flush(20) == 0

    def shards(self) -> list[ShardWritten]:
        return self.committed().shards

    def committed(self) -> Committed:
        found = read_committed(self.bootstrap)
        return Committed(*([one for one in some if one.model == self.model] for some in (found.shards, found.shared)))

    def rows(self, shard: ShardWritten) -> list[dict[str, Any]]:
        table = pq.read_table(io.BytesIO(self.store.get_bytes(shard.path, shard.digest)))
        assert table.schema.equals(SHARD_SCHEMA) and shard.rows == table.num_rows
        return list(table.to_pylist())

    def dead(self) -> list[Record]:
        return since(self.bootstrap, DEAD, self.start)

    def loop(self) -> Callable[[threading.Event], None]:
        step = PrepareStep({self.model: self.policy}, self.store, self.committed, SPLIT_KEY, workers=self.workers)
        return lambda stop: transact.run(
            self.bootstrap, self.group, [RAW], step, stop, transactional_id=self.group, linger_s=0.3
        )

    def done(self) -> bool:
        return lag(self.bootstrap, self.group, RAW) == 0

    def prepared(self) -> list[ShardWritten]:
        """The shards once a preparation of its own has taken in everything."""
        with Running(self.loop()) as running:
            running.until(self.done, what="lag 0")
        return self.shards()


@pytest.fixture
def bench(kafka_bootstrap: str, tmp_path: Path) -> Bench:
    return Bench(kafka_bootstrap, tmp_path / "artifacts")


def question(number: int) -> dict[str, str]:
    return {"prompt": f"Question {number}: where is my parcel?", "completion": "parcel_tracking"}


def test_json_without_headers_becomes_a_shard_with_its_counts(bench) -> None:
    bench.submit(
        question(1), question(2), question(1),
        {"messages": [{"role": "user", "content": "Mail me: a.b@example.org"}, {"role": "assistant", "content": "ok"}]},
        {"kind": "preference", "prompt": "Hello", "chosen": "Hi!", "rejected": "Go away."},
        {"kind": "kto", "prompt": "Hello", "completion": "Hi!", "label": True},
        {"kind": "kto", "prompt": "Hello", "completion": "Hi!"},
        {"prompt": "no answer to this"},
    )  # fmt: skip
    (shard,) = bench.prepared()
    rows = bench.rows(shard)
    assert [row["kind"] for row in rows] == ["sft", "sft", "sft", "preference", "kto"]
    assert shard.rows_by_kind == {"sft": 3, "preference": 1, "kto": 1}
    assert sum(shard.rows_by_split.values()) == 3
    assert shard.rows_by_class == {}, "what fewer than three people said is no class"
    assert shard.dropped == {"duplicate": 1, "no label": 1, "no answer": 1} and shard.masked == {"email": 1}
    first = bench.start[RAW, PARTITION]
    assert (shard.source_partition, shard.first_offset, shard.last_offset) == (PARTITION, first, first + 7)
    assert [row["offset"] for row in rows] == [first, first + 1, first + 3, first + 4, first + 5]
    assert rows[0]["record_id"] == f"{RAW}/{PARTITION}/{first}", "a record without an id has its origin's"
    assert [(turn["role"], turn["content"]) for turn in rows[2]["messages"]] == [("user", "Mail me: [email]")]
    assert rows[0]["submitted_ms"] > 1_700_000_000_000


def test_duplicates_are_dropped_across_batches_and_across_a_restart(bench) -> None:
    with Running(bench.loop()) as running:
        bench.submit(question(1), question(2))
        running.until(lambda: len(bench.shards()) == 1, what="the first shard")
        bench.submit(question(2), question(3))
        running.until(bench.done, what="lag 0")
    bench.submit(question(1), question(3), question(4))
    shards = sorted(bench.prepared(), key=lambda shard: shard.first_offset)
    assert [shard.rows for shard in shards] == [2, 1, 1]
    assert [shard.dropped for shard in shards] == [{}, {"duplicate": 1}, {"duplicate": 2}]
    assert len({row["content_hash"] for shard in shards for row in bench.rows(shard)}) == 4


def test_shards_abut_and_name_every_offset_once(bench) -> None:
    for batch in range(3):
        bench.submit(*(question(10 * batch + number) for number in range(5)))
        bench.prepared()
    shards = sorted(bench.shards(), key=lambda shard: shard.first_offset)
    assert len({shard.shard_id for shard in shards}) == 3
    for before, after in pairwise(shards):
        assert after.first_offset == before.last_offset + 1


def test_an_unknown_model_and_broken_json_become_dead_letters(bench) -> None:
    broken = b'{"model": "support", "prompt": '
    stranger = json.dumps({"model": "nobody", "prompt": "a", "completion": "b"}).encode()
    mistyped = json.dumps({"model": bench.model, "prompt": 7}).encode()
    bench.submit(broken, question(1), stranger, mistyped)
    (shard,) = bench.prepared()
    assert shard.rows == 1
    letters = {letter.value: dict(letter.headers)["__connect.errors.exception.message"] for letter in bench.dead()}
    assert letters.keys() == {broken, stranger, mistyped}
    assert b"'nobody'" in letters[stranger] and b"$.prompt" in letters[mistyped]


def test_however_much_garbage_comes_in_a_row_what_follows_it_is_prepared(bench, caplog) -> None:
    broken = [b'{"broken": %d' % number for number in range(MAX_REFUSED + 200)]
    bench.submit(*broken, question(1))
    (shard,) = bench.prepared()
    assert shard.rows == 1
    assert [letter.value for letter in bench.dead()] == broken
    assert "slowing down" in caplog.text


def test_the_largest_broken_record_that_a_broker_takes_has_room_in_the_dead_letters(bench) -> None:
    """Refused, its letter would have the batch done again for ever."""
    broken = b"{" + os.urandom(1_048_300)  # the broker takes batches of 1,048,588 bytes
    bench.submit(broken, question(1), **{"message.max.bytes": 2_000_000})
    (shard,) = bench.prepared()
    (letter,) = bench.dead()
    assert shard.rows == 1 and letter.value == broken


def test_a_subject_of_many_becomes_shared_by_an_event_and_stays_so_after_a_restart(bench) -> None:
    bench.submit(*({"prompt": text(n), "completion": "x", "subject_id": "api"} for n in range(SHARED_AT)))
    bench.prepared()
    (event,) = bench.committed().shared
    assert event.rows == SHARED_AT and "api" not in event.subject_key
    bench.submit(*({"prompt": text(n), "completion": "x", "subject_id": "api"} for n in range(900, 903)))
    rows = [row for shard in bench.prepared() for row in bench.rows(shard)]
    assert [row["unit"] == "api" for row in rows] == [True] * SHARED_AT + [False] * 3
    assert {row["subject_id"] for row in rows} == {"api"}, "forgetting goes by what was said"


def test_a_tombstone_makes_neither_row_nor_letter(bench) -> None:
    producer = Producer({**kafka.client_settings(bench.bootstrap)})
    producer.produce(RAW, None, key=b"forgotten", partition=PARTITION)
    producer.flush(10)
    assert bench.prepared() == [] and bench.dead() == []


def test_a_damaged_shard_stops_the_preparation_and_is_named(bench, tmp_path) -> None:
    bench.submit(question(1))
    (shard,) = bench.prepared()
    (tmp_path / "artifacts" / shard.path).write_bytes(b"PAR1 something else PAR1")
    bench.submit(question(2))
    with Running(bench.loop()) as running:
        error = running.ended()
    assert isinstance(error, ArtifactError) and shard.path in str(error)
    assert len(bench.shards()) == 1 and not bench.done(), "nothing was committed on top of it"


def test_the_same_offsets_make_the_same_shard(bench) -> None:
    bench.submit(question(1), question(2))
    (shard,) = bench.prepared()
    step = PrepareStep({bench.model: ModelPolicy()}, bench.store, lambda: Committed([], []), SPLIT_KEY)
    step.assigned([(RAW, PARTITION)])
    again = step.handle(since(bench.bootstrap, RAW, bench.start))
    (said,) = [kafka.decode(landed(out))[1] for out in again]
    assert said == shard


def test_workers_read_what_one_process_reads() -> None:
    """The same rows, refusals, drops and masks, in the same order; a helper that is lost is said."""
    policies = {"support": ModelPolicy()}
    texts = ["please call +49 30 901820 about my parcel", "why was my card charged twice", "", "!" * 60]
    asked = [f"{texts[n % 4]} {n}" if n % 4 < 2 else texts[n % 4] for n in range(1_500)]
    bodies = [b'{"broken": ' if n % 97 == 0 else raw_body(prompt) for n, prompt in enumerate(asked)]
    records = [Record("training.raw", 0, n, 1, b"k%d" % n, body, [("mine", b"\x00")]) for n, body in enumerate(bodies)]
    pool, alone = WorkerPool(policies, SPLIT_KEY, helpers=2), read(records, policies, SPLIT_KEY)
    pool.wait_warm()
    readings = pool.read(records)
    assert sum(reading.records for reading in readings) == len(records)
    assert pa.Table.from_batches([one.rows for one in readings]) == pa.Table.from_batches([alone.rows])
    assert [fact for one in readings for fact in one.facts] == alone.facts
    for name in ("masked", "refused"):
        assert {key: value for one in readings for key, value in getattr(one, name).items()} == getattr(alone, name) != {}
    assert sum((Counter(one.dropped["support"]) for one in readings), Counter()) == Counter(alone.dropped["support"])
    for child in multiprocessing.active_children():
        child.kill()
    again = pool.read(records)
    assert [fact for one in again for fact in one.facts] == alone.facts, "fresh ones take the place of those that died"


def raw_body(prompt: str) -> bytes:
    return msgspec.json.encode({"model": "support", "prompt": prompt, "completion": "yes"})
