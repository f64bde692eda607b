"""Sorted copies: a job that opens a part of what is stored sees of that part what one that opens everything sees."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.events import JobRequested, ShardRef
from schemas.policy import ModelPolicy
from streams import sorted_copies
from streams.artifacts import ArtifactStore, replace_shard
from streams.prepare.people import MADE_UP
from streams.sorted_copies import FOLDER, Sample
from tests.examples import example
from tests.unit.test_dataset import shard, stored
from trainers.dataset import training_set
from trainers.opened import job_data
from trainers.rows import Row, Rows, read_rows

pytestmark = pytest.mark.slow

MODEL = "support"
ALL = Sample(MODEL, train=10**6, held=10**6)
MONTH_MS = 31 * 86_400_000


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setattr(sorted_copies, "WORTH_SORTING", 2)
    monkeypatch.setattr(sorted_copies, "CHUNK_ROWS", 4)
    return ArtifactStore(str(tmp_path / "artifacts"), proof_key=b"k")


def some_rows(dice: random.Random, count: int, at: int, questions: int) -> list[dict[str, Any]]:
    """Rows on few questions by few people, so that they contradict, repeat and correct each other."""
    found = []
    for number in range(count):
        question, who = f"question {dice.randrange(questions)}", dice.randrange(12)
        unit, side = f"unit {who}", "test" if who < 4 else "train"
        kind = dice.choice(["sft"] * 6 + ["asked", "kto"])
        found.append(stored(
            question, dice.choice(["a", "b", "c"]), at=(at + number) * MONTH_MS // 40, unit=unit, kind=kind,
            record_id=f"record {at + number if dice.random() < 0.9 else dice.randrange(at + 1)}", offset=at + number,
            label=dice.choice([True, True, False]) if kind == "kto" else None,
            split=side, may_correct=dice.random() < 0.05,
        ))  # fmt: skip
        if dice.random() < 0.2 and kind == "sft":
            source = found[-1]
            made = stored(f"made of {question}", source["completion"], at=source["submitted_ms"], origin="augmented",
                          record_id=f"{source['record_id']}/made", source_record=source["record_id"], unit=unit,
                          offset=at + number, split=side)  # fmt: skip
            found.append(made)
    return found


def filled(store: ArtifactStore, seed: int, shards: int = 12, questions: int = 40) -> tuple[list[ShardRef], list[ShardRef]]:
    """(new, old) shards."""
    dice = random.Random(seed)
    refs = [shard(store, f"s{n}", *some_rows(dice, 10, 10 * n, questions)) for n in range(shards)]
    return refs[-2:], refs[:-2]


def told(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.order, row.record_id))


def named(rows: Iterable[Row]) -> set[tuple[str, tuple[int, int, int], str]]:
    return {(row.record_id, row.order, row.answer) for row in rows}


def runs(store: ArtifactStore) -> list[sorted_copies.Run]:
    return [run for _, run in sorted_copies._runs(store, MODEL)]


def same(one: Rows, other: Rows) -> None:
    for name in ("said", "confirmed", "made"):
        assert told(getattr(one, name)) == told(getattr(other, name)), name
    # Later askers have no text, so that they are words alone: those that ask what some row asks.
    questions = {row.question for row in (*one.said, *one.confirmed)}
    askers, others = ([row for row in rows.asked if row.question in questions] for rows in (one, other))
    assert named(askers) == named(others)
    assert one.contested == other.contested


@pytest.mark.parametrize("corrections", ["anyone", "trusted"])
@pytest.mark.parametrize("seed", range(6))
def test_whoever_wants_all_gets_all(store: ArtifactStore, seed: int, corrections: str) -> None:
    new, old = filled(store, seed)
    plain = read_rows(store, new, old, corrections)
    same(read_rows(store, new, old, corrections, ALL), plain)
    sorted_copies.sort(store, MODEL, old[:6])
    assert len(runs(store)) == 1
    same(read_rows(store, new, old, corrections, ALL), plain)
    sorted_copies.sort(store, MODEL, old)
    assert {digest for run in runs(store) for digest in run.shards} == {ref.digest for ref in old}
    same(read_rows(store, new, old, corrections, ALL), plain)


@pytest.mark.parametrize("corrections", ["anyone", "trusted"])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_part_is_what_it_is_in_the_whole(store: ArtifactStore, seed: int, corrections: str, is_sorted: bool) -> None:
    new, old = filled(store, seed)
    plain = read_rows(store, new, old, corrections)
    if is_sorted:
        sorted_copies.sort(store, MODEL, old)
    few = Sample(MODEL, train=20, held=10, start=seed / 8)
    part = read_rows(store, new, old, corrections, few)
    for name in ("said", "confirmed"):
        mine, all_of_them = getattr(part, name), getattr(plain, name)
        assert named(mine) <= named(all_of_them), name
        # Of the new rows all, and of the old ones of a side those of a part of the questions.
        assert [row for row in told(mine) if row.new] == [row for row in told(all_of_them) if row.new], name
    assert 0 < len([row for row in part.said if not row.new]) < len([row for row in plain.said if not row.new])
    facts = {row.fact for row in (*part.said, *part.confirmed)}
    assert part.contested & facts == plain.contested & facts
    assert named(part.made) <= named(plain.made)
    assert named(m for m in plain.made if m.new) <= named(part.made)
    asked = {row.question for row in (*part.said, *part.confirmed)}
    assert part.common(1.0) & asked == plain.common(1.0) & asked


def test_a_part_is_as_large_as_was_asked_for(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_copies, "CHUNK_ROWS", 50)
    refs = [shard(store, f"s{n}", *[stored(f"{n}/{i}", "a", at=n, unit=f"{i}", offset=100 * n + i,
                                           split="test" if i % 5 == 0 else "train") for i in range(100)]) for n in range(20)]  # fmt: skip
    sorted_copies.sort(store, MODEL, refs)
    for start in (0.0, 0.5, 0.99):
        found = read_rows(store, [], refs, "anyone", Sample(MODEL, 200, 100, start)).said
        taught, held = ([row for row in found if (row.split == "test") == side] for side in (False, True))
        assert 150 < len(taught) < 250
        # The first of all, and those that ask what is between the rows that teach.
        assert 70 < len(held) < 220
    first, second = ({row.fact for row in read_rows(store, [], refs, "anyone", Sample(MODEL, 200, 0, start)).said
                      if row.split == "train"} for start in (0.2, 0.6))  # fmt: skip
    assert first.isdisjoint(second)


def test_what_is_new_again_is_read_as_new_alone(store: ArtifactStore) -> None:
    """After a rollback the shards of the version that was left are new; the run that holds them stays."""
    new, old = filled(store, 3)
    sorted_copies.sort(store, MODEL, old)
    again, left = [*new, *old[5:]], old[:5]
    same(read_rows(store, again, left, "trusted", ALL), read_rows(store, again, left, "trusted"))


def test_few_runs_however_many_shards_and_none_in_two(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorted_copies, "RUN_ROWS", 200)
    dice, refs, counts = random.Random(1), [], []
    for number in range(30):
        refs.append(shard(store, f"s{number}", *some_rows(dice, 10, 10 * number, 50)))
        sorted_copies.sort(store, MODEL, refs)
        sorted_once = [digest for run in runs(store) for digest in run.shards]
        assert len(sorted_once) == len(set(sorted_once)) >= number
        counts.append(len(runs(store)))
    assert max(counts) <= 8
    named = {path for run in runs(store) for path in run.files}
    assert {path for path, _ in store.files(FOLDER) if not path.endswith(".json")} == named


def test_a_file_that_is_gone_or_changed_costs_its_run_alone(store: ArtifactStore) -> None:
    new, old = filled(store, 5)
    plain = read_rows(store, new, old, "trusted")
    for spoil in (store.delete, lambda path: store.put_bytes(path, b"PAR1")):
        sorted_copies.sort(store, MODEL, old)
        spoil(runs(store)[0].chunks[0].path)
        same(read_rows(store, new, old, "trusted", ALL), plain)
        assert runs(store) == []


def test_a_run_that_somebody_else_wrote_is_not_believed(store: ArtifactStore) -> None:
    new, old = filled(store, 7)
    stranger = ArtifactStore(str(store._root), proof_key=b"another")
    sorted_copies.sort(stranger, MODEL, old[:6])
    assert runs(store) == []
    same(read_rows(store, new, old, "anyone", ALL), read_rows(store, new, old, "anyone"))


def rewritten(store: ArtifactStore, ref: ShardRef) -> ShardRef:
    after = replace_with(store, ref)
    replace_shard(store, ref, after)
    return after


def replace_with(store: ArtifactStore, ref: ShardRef) -> ShardRef:
    name = f"{ref.shard_id}-less"
    less = shard(store, name, stored("left", "a", unit="somebody else"))
    return ShardRef(shard_id=ref.shard_id, path=less.path, digest=less.digest, rows=less.rows)


def test_whoever_is_forgotten_is_in_no_copy(store: ArtifactStore) -> None:
    _, old = filled(store, 8)
    sorted_copies.sort(store, MODEL, old)
    store.put_bytes(f"{FOLDER}/{MODEL}/2026-01/train-{'0' * 64}.parquet", b"what a crash left")
    now = [rewritten(store, old[0]), *old[1:]]
    sorted_copies.forget(store, {ref.digest for ref in now})
    assert store.files(FOLDER) == []
    sorted_copies.sort(store, MODEL, now)
    before = store.files(FOLDER)
    sorted_copies.forget(store, {ref.digest for ref in now})
    assert {path for path, _ in store.files(FOLDER)} == {path for path, _ in before}, "what stands, stays"


@pytest.mark.parametrize("meanwhile", ["rewritten", "deleted"])
def test_an_erasure_while_it_sorts_leaves_no_copy(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    _, old = filled(store, 9)
    put = store.put_proven

    def late(path: str, data: bytes) -> None:
        if path.startswith(FOLDER):
            if meanwhile == "rewritten":
                rewritten(store, old[2])
            else:  # it has looked already, and found files of no run
                sorted_copies.forget(store, {ref.digest for ref in old})
        put(path, data)

    monkeypatch.setattr(store, "put_proven", late)
    sorted_copies.sort(store, MODEL, old)
    assert store.files(FOLDER) == []


def test_without_the_secret_nothing_is_sorted(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    new, old = filled(store, 1, shards=100)
    sorted_copies.sort(store, MODEL, old)
    assert store.files(FOLDER) == []
    same(read_rows(store, new, old, "anyone", ALL), read_rows(store, new, old, "anyone"))


def test_no_text_is_in_the_words(store: ArtifactStore) -> None:
    row = stored("a zebra?", "a horse", unit="somebody")
    refs = [shard(store, f"s{n}", replace_offset(row, n)) for n in range(2)]
    sorted_copies.sort(store, MODEL, refs)
    (run,) = runs(store)
    words = store.read_bytes(run.words.path)
    assert b"zebra" not in words and run.words.rows == 2


def replace_offset(row: dict[str, Any], number: int) -> dict[str, Any]:
    return {**row, "offset": number, "record_id": f"record {number}"}


def test_made_up_rows_know_their_source_wherever_it_lies(store: ArtifactStore) -> None:
    source = stored("where is it?", "parcel", at=1, unit="ann", record_id="source")
    made = stored("where is it then?", "parcel", at=2, unit="ann", record_id="made", origin=MADE_UP[0],
                  source_record="source", offset=1)  # fmt: skip
    correction = stored("where is it?", "refund", at=3, unit="bob", record_id="better", offset=2)
    other = [shard(store, f"o{n}", stored(f"other {n}", "x", at=n, offset=10 + n)) for n in range(30)]
    one, two, three = shard(store, "a", source), shard(store, "b", made), shard(store, "c", correction)
    sorted_copies.sort(store, MODEL, [one, two, three, *other])
    place = int(made["question"][:16], 16) / 2**64
    sample = Sample(MODEL, 1, 0, start=max(0.0, place - 0.01))
    standing = read_rows(store, [], [one, two, *other], "anyone", sample)
    assert [row.completion for row in standing.made] == ["parcel"]
    overruled = read_rows(store, [], [one, two, three, *other], "anyone", sample)
    assert overruled.made == [], "what it was made from was corrected, in a row that was not opened"
    assert all(replace(row, mute=False) == row or row.messages == () for row in overruled.mute)


def test_those_who_only_asked_crowd_out_nobody(store: ArtifactStore) -> None:
    """A sample is of rows that can judge, or teach: of common questions there may be twenty askers to each of these."""
    said = [stored(f"q{n}", "a", at=n, unit=f"u{n}", offset=n, split="test" if n % 2 else "train") for n in range(400)]
    asked = [
        stored("often", "a", at=n, unit=f"v{n}", kind="asked", offset=1_000 + n, split="test" if n % 2 else "train")
        for n in range(2_000)
    ]  # fmt: skip
    refs = [shard(store, f"s{n}", *said[40 * n : 40 * n + 40], *asked[200 * n : 200 * n + 200]) for n in range(10)]
    for _ in range(2):
        found = read_rows(store, [], refs, "anyone", Sample(MODEL, 100, 100)).said
        assert 70 < sum(row.split == "test" and row.judges for row in found) <= 200
        assert 70 < sum(row.split == "train" for row in found) < 130
        half = read_rows(store, [], refs[:5], "anyone", Sample(MODEL, 0, 100)).said
        assert sum(row.split == "test" for row in half) == 100, "what is not wanted is not counted"
        sorted_copies.sort(store, MODEL, refs)


def test_what_a_hold_out_asks_is_not_trained_on_though_it_was_not_opened(store: ArtifactStore) -> None:
    old = [shard(store, f"s{n}", *[stored(f"{n}/{i}", "a", at=i, unit=f"u{n}/{i}", split="test", offset=100 * n + i)
                                   for i in range(20)]) for n in range(10)]  # fmt: skip
    new = shard(store, "new", *[stored(f"{n}/{i}", "b", at=900 + i, unit="me", offset=9_000 + 20 * n + i)
                                for n in range(10) for i in range(20)])  # fmt: skip
    for _ in range(2):
        rows = read_rows(store, [new], old, "trusted", Sample(MODEL, 0, 20))
        assert 0 < sum(row.split == "test" for row in rows.said) < 60
        assert training_set(rows, ModelPolicy(), seed=0).rows == ()
        sorted_copies.sort(store, MODEL, old)


def test_an_answer_whose_thumb_was_taken_back_does_not_judge(store: ArtifactStore) -> None:
    up = stored("where?", "parcel", at=1, unit="ann", kind="kto", label=True, split="test", record_id="thumb", offset=1)
    down = {**up, "label": False, "submitted_ms": 2, "offset": 2}
    refs = [shard(store, "a", up), shard(store, "b", down)]
    assert read_rows(store, refs[:1]).confirmed and not read_rows(store, refs).confirmed
    sorted_copies.sort(store, MODEL, refs)
    assert not read_rows(store, [], refs, "anyone", ALL).confirmed


@pytest.mark.parametrize("at_ms", [-(10**15), 10**15, -1])
def test_a_time_that_no_calendar_has_is_sorted_too(store: ArtifactStore, at_ms: int) -> None:
    refs = [shard(store, f"s{n}", stored(f"q{n}", "a", at=at_ms, offset=n)) for n in range(3)]
    sorted_copies.sort(store, MODEL, refs)
    assert len(runs(store)) == 1 and len(read_rows(store, [], refs, "anyone", ALL).said) == 3


def test_a_broken_run_does_not_keep_others_from_being_sorted(store: ArtifactStore) -> None:
    _, old = filled(store, 4)
    sorted_copies.sort(store, MODEL, old[:5])
    store.delete(runs(store)[0].chunks[0].path)
    sorted_copies.sort(store, MODEL, old)
    assert {digest for run in runs(store) for digest in run.shards} == {ref.digest for ref in old}


def test_a_run_that_an_erasure_deleted_comes_back_in_no_other(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody in a sorted shard is forgotten while the run is merged: its rows are in hand, the shard is not."""
    _, old = filled(store, 6)
    sorted_copies.sort(store, MODEL, old[:3])
    (before,) = runs(store)
    put = store.put_proven

    def late(path: str, data: bytes) -> None:
        if path.startswith(FOLDER):
            now = [rewritten(store, old[0]), *old[1:]]
            sorted_copies.forget(store, {ref.digest for ref in now})
        put(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_proven", late)
        sorted_copies.sort(store, MODEL, old)
    assert not any(old[0].digest in run.shards for run in runs(store)) and before.shards
    assert store.files(FOLDER) == []


@pytest.mark.parametrize("room", [True, False])
def test_a_job_sorts_at_the_products_own_defaults_and_goes_on_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: bool
) -> None:
    """64 shards of before are worth it. A full disk costs the copies, not the job, nor what it learns."""
    store = ArtifactStore(str(tmp_path), proof_key=b"k")
    old = [shard(store, f"s{n}", *[stored(f"{n}/{i}", "a", at=i, unit=f"u{n}/{i}", offset=10 * n + i,
                                          split="test" if i == 0 else "train") for i in range(5)]) for n in range(64)]  # fmt: skip
    new = [shard(store, "new", *[stored(f"new {i}", "b", at=900 + i, unit=f"v{i}", offset=9_000 + i) for i in range(50)])]
    job = example(JobRequested, MODEL, job_id="job-1")
    unsorted = job_data(job, ModelPolicy(), store, new, old[:63])
    assert store.files(FOLDER) == [] and unsorted.replayed > 10
    put = store.put_bytes

    def full(path: str, data: bytes) -> str:
        if path.startswith(FOLDER):
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(path, data)

    if not room:
        monkeypatch.setattr(store, "put_bytes", full)
    data = job_data(job, ModelPolicy(), store, new, old)
    assert data.new == 50 and data.replayed > 10
    assert bool(store.files(FOLDER)) is room and ("old rows are not sorted" in caplog.text) is not room
