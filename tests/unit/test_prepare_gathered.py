"""Gathering what shards say: the state that it gives, what it opens, and what becomes of files that are stale."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from schemas.events import ShardRef
from schemas.shards import SHARD_SCHEMA
from streams import failpoints
from streams.artifacts import ArtifactError, ArtifactStore
from streams.prepare import gathered
from streams.prepare.admit import Admission
from streams.prepare.shard import put_shard
from tests.ids import SPLIT_KEY
from tests.stores import store_at
from tests.unit.test_prepare_admit import POLICY, admitted, row


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "WORTH_GATHERING", 4)


def shard(store: ArtifactStore, number: int, *rows: dict[str, object]) -> ShardRef:
    for one in rows:
        Admission(SPLIT_KEY).admit([one], POLICY)  # which says whose it is
    table = pa.Table.from_pylist(list(rows), schema=SHARD_SCHEMA)
    path, digest, _ = put_shard(store, "m", f"shard-{number}", table)
    return ShardRef(shard_id=f"shard-{number}", path=path, digest=digest, rows=len(rows))


def asked(number: int) -> str:
    return f"question {number} about order {number * 7919}"


def shards(store: ArtifactStore, numbers: range) -> list[ShardRef]:
    return [shard(store, number, row(asked(number), at=number)) for number in numbers]


def state(store: ArtifactStore, refs: list[ShardRef]) -> Admission:
    made = Admission(SPLIT_KEY)
    for table in gathered.remembered(store, refs):
        made.remember(table, {})
    return made


def rows_in(store: ArtifactStore, refs: list[ShardRef]) -> int:
    return sum(table.num_rows for table in gathered.remembered(store, refs))


def files(store: ArtifactStore) -> list[str]:
    return sorted(path for path, _ in store.files(gathered.FOLDER))


def test_a_second_start_knows_the_same_and_opens_no_shard(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = shards(store, range(5))
    again = [row(asked(number), at=100 + number) for number in range(7)]
    expected = ([105, 106], {"duplicate": 5}, 0)
    assert admitted(state(store, refs), *again) == expected and len(files(store)) == 1
    for ref in refs:
        store.delete(ref.path)
    assert admitted(state(store, refs), *again) == expected


def test_few_shards_are_not_worth_a_file_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = shards(store, range(3))
    assert rows_in(store, refs) == 3 and files(store) == []
    store.delete(refs[1].path)
    with pytest.raises(ArtifactError, match="missing"):
        rows_in(store, refs)


def test_the_newest_answer_holds_however_the_shards_are_gathered(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    newest, older = shard(store, 1, row(asked(1), "new", at=9)), shard(store, 2, row(asked(1), "old", at=5))
    refs = [newest, older, *shards(store, range(3, 6))]
    for _ in range(2):
        assert admitted(state(store, refs), row(asked(1), "new", at=20)) == ([], {"duplicate": 1}, 0)


def test_files_are_merged_and_there_are_few(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs: list[ShardRef] = []
    most = 0
    for start in range(0, 64, 4):
        refs += shards(store, range(start, start + 4))
        assert rows_in(store, refs) == len(refs)
        most = max(most, len(files(store)))
    assert most <= 4
    assert rows_in(store, refs) == 64


def test_a_file_loses_the_rows_of_a_shard_that_was_rewritten(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = [*shards(store, range(4)), shard(store, 4, row(asked(4), at=4), row(asked(5), at=5))]
    assert rows_in(store, refs) == 6
    before = files(store)
    after = shard(store, 4, row(asked(5), at=5))
    standing = [after, *refs[:4]]
    gathered.forget(store, {ref.digest for ref in standing})
    (less,) = files(store)
    assert less not in before
    for ref in refs[:4]:  # of which nothing is opened again
        store.delete(ref.path)
    again = [row(asked(number), at=100 + number) for number in range(6)]
    assert admitted(state(store, standing), *again) == ([104], {"duplicate": 5}, 0)
    gathered.forget(store, {ref.digest for ref in standing})
    assert files(store) == [less], "it stands for what stands"
    gathered.forget(store, {after.digest})
    assert files(store) == []


def test_a_start_takes_out_what_an_erasure_did_not_come_to(tmp_path: Path) -> None:
    """An erasure that was killed after its shards were rewritten, or another process gathered what it had read before."""
    store = store_at(tmp_path)
    refs = shards(store, range(8))
    assert rows_in(store, refs) == 8
    before = files(store)
    refs = [shard(store, 3), *refs[:3], *refs[4:]]
    assert rows_in(store, refs) == 7 and len(files(store)) == 1 and files(store) != before
    more = [*refs, *shards(store, range(8, 16))]
    assert rows_in(store, more) == 15 and len(files(store)) == 1
    more[8:10] = [shard(store, 8), shard(store, 9)]
    assert rows_in(store, more) == 13, "rows keep their shards in a file that took up another"
    again = [row(asked(number), at=100 + number) for number in range(16)]
    assert admitted(state(store, more), *again) == ([103, 108, 109], {"duplicate": 13}, 0)


def test_what_a_crash_leaves_of_rows_taken_out_is_no_loss(tmp_path: Path) -> None:
    """Killed between the file without them and the end of the one with them."""
    store = store_at(tmp_path)
    refs = shards(store, range(5))
    assert rows_in(store, refs) == 5
    (old,) = files(store)
    kept = store.read_bytes(old)
    refs[0] = shard(store, 0)
    assert rows_in(store, refs) == 4
    (new,) = files(store)
    store.put_bytes(old, kept)
    assert rows_in(store, refs) == 4 and files(store) == [new]


def test_a_full_disk_keeps_no_rows_that_must_go(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = shards(store, range(5))
    assert rows_in(store, refs) == 5
    after = shard(store, 0)
    failpoints.arm("artifact.written=diskfull")
    try:
        gathered.forget(store, {after.digest, *(ref.digest for ref in refs[1:])})
    finally:
        failpoints.arm("")
    assert files(store) == []
    assert rows_in(store, [after, *refs[1:]]) == 4


def test_rows_come_in_pieces_and_other_columns_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "PIECE_ROWS", 3)
    store = store_at(tmp_path)
    refs = shards(store, range(5))
    for _ in range(2):
        assert [table.num_rows for table in gathered.remembered(store, refs)] == [3, 2]
    monkeypatch.setattr(gathered, "_SCHEMA", gathered._SCHEMA.remove(0))
    for ref in refs:
        store.delete(ref.path)
    with pytest.raises(ArtifactError, match="missing"):
        rows_in(store, refs)


def test_what_a_crash_leaves_between_a_merge_and_its_end_counts_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = shards(store, range(4))
    assert rows_in(store, refs) == 4
    (small,) = files(store)
    kept = store.read_bytes(small)
    refs += shards(store, range(4, 8))
    assert rows_in(store, refs) == 8 and small not in files(store)
    store.put_bytes(small, kept)
    assert rows_in(store, refs) == 8 and small not in files(store)


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    refs = shards(store, range(4))
    assert rows_in(store, refs) == 4
    (path,) = files(store)
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-7])
    assert rows_in(store, refs) == 4 and files(store) == [path], "the same bytes under the same name"
