"""Every store of people's words, filled and searched after somebody in it was forgotten: by whom it is about, and by
whoever speaks in it.

Each test here is of one store; those that only a whole system fills are tested where `ELSEWHERE` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import events as e
from schemas.landing import create_table, table_name
from schemas.personal import PERSON_FIELDS, STORES
from schemas.shards import SHARD_SCHEMA
from schemas.topics import BY_NAME, TOPICS, all_topics
from streams import kafka, sorted_copies
from streams.artifacts import ArtifactStore, put_shard_set
from streams.dead_letters import dead_letter
from streams.erase import shards, tables
from streams.erase.find import owner
from streams.erase.logs import blot_out
from streams.erase.subject import Subject
from streams.join import rows
from streams.monitor import land
from streams.prepare import gathered
from streams.prepare.shard import counted, put_shard, ref_of
from tests.broker import landed
from tests.examples import example
from tests.ids import answer
from tests.stores import store_at
from tests.unit.test_dataset import row as question
from trainers.row_files import get_table, places, put_table

SOMEBODY, OTHER = "jane-doe-4711", "john-roe-0815"
PERSONAL = [topic for topic in TOPICS if topic.personal and topic.name != "subjects.erasures"]
EVENTS = [event for topic in PERSONAL for event in topic.events]
NAMING = [(event, name) for event in EVENTS for name in PERSON_FIELDS if name in event.__struct_fields__]
naming = pytest.mark.parametrize(("event", "field"), NAMING, ids=lambda value: getattr(value, "__name__", value))
ELSEWHERE = {"disk tables": "tests/integration/test_join_feedback.py"}


def record(event: type[msgspec.Struct], field: str, who: str) -> kafka.Record:
    """One event with this person in one field, as it stands in its topic; somebody else in `subject_id` where not."""
    people = {"subject_id": OTHER, field: who}
    return landed(kafka.out(example(event, "support", **people), source="test"))


def test_every_store_is_tested() -> None:
    here = {"personal topics", "topics of stream processors", "dead letters", "shards", "gathered", "sorted",
            "landing tables", "logs", "adapters", "row files of jobs and verdicts"}  # fmt: skip
    assert here | ELSEWHERE.keys() == {store.name for store in STORES}
    root = Path(__file__).parents[2]
    assert all((root / path).is_file() for path in ELSEWHERE.values())


@naming
def test_personal_topics(event: type[msgspec.Struct], field: str) -> None:
    assert Subject(SOMEBODY).owns(record(event, field, SOMEBODY))
    assert not Subject(SOMEBODY).owns(record(event, field, SOMEBODY + "2"))


def test_what_a_deletion_takes_from_topics_it_takes_from_their_tables_too() -> None:
    assert {topic.name: table_name(topic.events[0]) for topic in PERSONAL} == land.FORGETTING
    for topic in PERSONAL:
        assert {"monitor", "erase"} <= set(topic.consumers) and len(topic.events) == 1, topic.name


@pytest.mark.parametrize("event", EVENTS)
def test_a_deletion_takes_the_row_of_its_key_and_no_other_whoever_chose_the_key(event: type[msgspec.Struct]) -> None:
    said = [landed(kafka.out(example(event, "support"), source="test"), number) for number in range(3)]
    said[2] = msgspec.structs.replace(said[2], key=b"an application's own \xff")
    table = land.arrow_table(event, [(*kafka.decode(one), one) for one in said])
    for gone, left in ((0, [1, 2]), (2, [0, 1])):
        deletion = msgspec.structs.replace(said[gone], value=None, offset=9)
        rows_left = land._not_deleted(table_name(event), table, [deletion]).to_pylist()
        assert [row["_offset"] for row in rows_left] == left


@pytest.mark.parametrize("field", ["subject_id", "author"])
def test_topics_of_stream_processors(field: str) -> None:
    said = record(e.FeedbackGiven, field, SOMEBODY)
    inference = kafka.decode(said)[1].inference_id
    waiting = kafka.Record(
        "join-feedback-waiting-changelog", 0, 1, 1, rows.waiting_key(inference.encode(), said), rows.pack(rows.Waiting(1, said)), []
    )
    under_way = landed(rows.rekeyed(said, inference))
    for held in (waiting, under_way):
        assert owner(Subject(SOMEBODY), held.topic)(held) and not owner(Subject(OTHER + "2"), held.topic)(held)
    value = record(e.InferenceServed, "subject_id", SOMEBODY).value
    kept = kafka.Record("join-feedback-answers-changelog", 0, 1, 1, b"k", rows.pack(rows.Answer(1, {}, value or b"")), [])
    assert owner(Subject(SOMEBODY), kept.topic)(kept)


@naming
def test_dead_letters(event: type[msgspec.Struct], field: str) -> None:
    broken = record(event, field, SOMEBODY)
    whole, cut, other = (broken.value or b""), (broken.value or b"")[:-1], record(event, field, OTHER + "2")
    for value in (whole, cut):
        letter = landed(dead_letter("monitor", msgspec.structs.replace(broken, value=value), "no reason"))
        assert Subject(SOMEBODY).owns(letter)
    assert not Subject(SOMEBODY).owns(landed(dead_letter("monitor", other, "no reason")))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path)


def row(number: int, **fields: Any) -> dict[str, Any]:
    hashes = dict.fromkeys(("input_hash", "content_hash", "answer_hash", "question"), f"{number:064d}")
    return {"record_id": f"r{number}", "model": "m", "kind": "sft", "split": "train", "completion": f"answer {number}",
            "subject_id": OTHER, "unit": OTHER, "minhash": b"\0" * 8, "partition": 0, "offset": number,
            "submitted_ms": number, **hashes, **fields}  # fmt: skip


def filled(store: ArtifactStore, **fields: Any) -> e.ShardWritten:
    """A shard with a row about somebody, one by them, one of an answer to them, one with their unit, and somebody else's."""
    said = [
        row(0, subject_id=SOMEBODY, unit="conversation-1"), row(1, author=SOMEBODY), row(2, inference_id=answer("hers")),
        row(3, kind="asked", unit=SOMEBODY, subject_id="", completion=""), row(4, author="agent-7"),
    ]  # fmt: skip
    table = pa.Table.from_pylist([{**one, **fields} for one in said], schema=SHARD_SCHEMA)
    path, digest, size = put_shard(store, "m", "shard-1", table)
    event = example(e.ShardWritten, "m", shard_id="shard-1", erased=0, replaces="")
    return msgspec.structs.replace(event, path=path, digest=digest, size_bytes=size, **counted(table))


def held_in(folder: Path) -> Iterator[bytes]:
    """Every file's bytes, and every cell of a table."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_bytes()
            if path.suffix == ".parquet":
                yield str(pq.read_table(path).to_pylist()).encode()
            if path.name.startswith("words-"):
                yield str(pa.ipc.open_file(path).read_all().to_pylist()).encode()


def test_shards(store: ArtifactStore, tmp_path: Path) -> None:
    before = filled(store)
    assert any(SOMEBODY.encode() in data for data in held_in(tmp_path))
    (after,) = shards.rewrite(store, [before], SOMEBODY, {answer("hers")}, "erasure-1")
    assert (after.erased, after.rows) == (4, 1)
    assert not any(SOMEBODY.encode() in data or answer("hers").encode() in data for data in held_in(tmp_path))


def test_gathered(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "WORTH_GATHERING", 1)
    before = filled(store)
    gathered.gather(store, [ref_of(before)])
    assert store.files(gathered.FOLDER)
    (after,) = shards.rewrite(store, [before], SOMEBODY, {answer("hers")}, "erasure-1")
    gathered.forget(store, {after.digest})
    assert sum(table.num_rows for table in gathered.remembered(store, [ref_of(after)])) == 1
    assert not any(before.digest.encode() in store.read_proven(path) for path, _ in store.files(gathered.FOLDER))


def test_sorted(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_copies, "WORTH_SORTING", 1)
    before = filled(store)
    sorted_copies.sort(store, before.model, [ref_of(before)])
    copies = Path(store._root) / sorted_copies.FOLDER
    assert any(SOMEBODY.encode() in data for data in held_in(copies))
    (after,) = shards.rewrite(store, [before], SOMEBODY, {answer("hers")}, "erasure-1")
    sorted_copies.forget(store, {after.digest})
    assert not any(SOMEBODY.encode() in data or answer("hers").encode() in data for data in held_in(tmp_path))
    sorted_copies.sort(store, before.model, [ref_of(after)])
    assert not any(SOMEBODY.encode() in data or answer("hers").encode() in data for data in held_in(tmp_path))


class Statements:
    """Stands in for ClickHouse: takes down what it is told to delete."""

    def __init__(self) -> None:
        self.deletions: list[str] = []

    def command(self, sql: str, parameters: object = None, settings: object = None) -> None:
        self.deletions.append(sql)

    def query(self, sql: str, parameters: object = None, settings: object = None) -> Any:
        return SimpleNamespace(result_rows=[], named_results=lambda: [{"n": 0, "now": 0}])


@naming
def test_landing_tables(event: type[msgspec.Struct], field: str) -> None:
    client: Any = Statements()
    tables.delete_rows(client, SOMEBODY, {answer("hers")})
    theirs = [sql for sql in client.deletions if f".{table_name(event)} " in sql and "{subject:String}" in sql]
    assert theirs and all(f"{field} = {{subject:String}}" in sql for sql in theirs)
    assert f"`{field}` String" in create_table(event)


@pytest.mark.parametrize("field", ["subject_id", "author"])
def test_what_comes_late_is_not_landed_and_leaves_the_topic(field: str) -> None:
    class Erased:
        def refresh(self) -> None: ...

        def anybody(self) -> bool:
            return True

        def covers(self, subject_id: str, inference_id: str = "") -> bool:
            return subject_id == SOMEBODY

        def answered(self, subject_id: str, inference_id: str) -> None: ...

    told: list[kafka.Out] = []
    landing = land.ClickHouseStore(None, None, erased=Erased())  # type: ignore[arg-type]
    landing._say = told.append  # type: ignore[method-assign]
    late, other = record(e.FeedbackGiven, field, SOMEBODY), record(e.FeedbackGiven, field, OTHER)
    command = landed(kafka.out(example(e.RollbackRequested, "support", actor=SOMEBODY), source="tuneloop"))
    landed_now = landing.read([late, other, command]).tables
    assert landed_now["feedback_given"].num_rows == landed_now["rollback_requested"].num_rows == 1
    assert [(out.key, out.value) for out in told] == [(late.key, None)]


def test_logs(tmp_path: Path) -> None:
    (tmp_path / "serve.log").write_text(f"author = '{SOMEBODY}' failed\n")
    assert blot_out([tmp_path], SOMEBODY) == 1
    assert not any(SOMEBODY.encode() in data for data in held_in(tmp_path))


def test_adapters(store: ArtifactStore) -> None:
    """What a model learned stays in its weights: who learned from the rows is listed."""
    before = filled(store)
    (after,) = shards.rewrite(store, [before], SOMEBODY, set(), "erasure-1")
    learned = put_shard_set(store, "support", [ref_of(before)])
    candidate: Callable[..., Any] = lambda data: example(e.CandidateTrained, "support", new_data=data)  # noqa: E731
    other = put_shard_set(store, "support", [ref_of(msgspec.structs.replace(before, shard_id="shard-2", digest="1" * 64))])
    taught = [candidate(learned), candidate(other)]
    assert after.replaces == before.digest
    assert [one.digest for one in shards.taught(store, [], taught, "erasure-1")] == [taught[0].digest]
    assert shards.taught(store, [], taught, "erasure-2") == []


def test_whom_rows_only_judged_knows_nothing_of_them(store: ArtifactStore) -> None:
    before = filled(store, split="test")
    shards.rewrite(store, [before], SOMEBODY, set(), "erasure-1")
    judged = example(e.CandidateTrained, "support", new_data=put_shard_set(store, "support", [ref_of(before)]))
    assert shards.taught(store, [], [judged], "erasure-1") == []


def test_all_topics_with_words_are_looked_through() -> None:
    assert {topic.name for topic in all_topics() if topic.personal} >= {"usage.shadows", "usage.feedback", "training.raw"}
    assert "usage.shadows" in BY_NAME and ("shadow_answered", ["subject_id"], "inference_id") in tables.PERSONAL
    assert ("feedback_given", ["subject_id", "author"], "inference_id") in tables.PERSONAL


def test_row_files_name_nobody(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    row = question(f"I am {SOMEBODY}", unit=SOMEBODY, conversation=SOMEBODY, record_id=SOMEBODY)
    for kind in ("seen", "tests"):
        ref = put_table(store, kind, places([row]))
        assert SOMEBODY.encode() not in store.get_bytes(ref.path, ref.digest)
        assert get_table(store, ref).column_names == ["partition", "offset", "said_ms"]
