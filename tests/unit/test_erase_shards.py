"""Shards without a person's rows: what is said of them, and of those that were rewritten more than once."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.events import ShardWritten
from streams.artifacts import ArtifactStore, get_shard
from streams.erase.shards import outdated, rewrite
from streams.prepare.shard import counted, put_shard, ref_of
from tests.examples import example
from tests.stores import store_at


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path)


@pytest.fixture
def said(store: ArtifactStore) -> ShardWritten:
    """A shard with a row each of Ann, Bob and Eve, as `prepare` said it."""
    persons = ["ann", "bob", "eve"]
    table = pa.table({
        "subject_id": persons, "inference_id": [""] * 3, "split": ["train"] * 3, "kind": ["sft"] * 3,
        "completion": persons, "origin": ["import"] * 3, "author": [""] * 3, "unit": persons, "dated": [True] * 3,
    })  # fmt: skip
    event = example(ShardWritten, "m", shard_id="shard-1", erased=0, replaces="")
    path, digest, size = put_shard(store, "m", "shard-1", table)
    return msgspec.structs.replace(event, path=path, digest=digest, size_bytes=size, **counted(table))


def persons_in(store: ArtifactStore, shard: ShardWritten) -> list[str]:
    return pq.read_table(io.BytesIO(get_shard(store, ref_of(shard))[1]))["subject_id"].to_pylist()


def test_a_shard_that_holds_nothing_of_theirs_stays_as_it_is(store, said) -> None:
    assert rewrite(store, [said], "somebody", set(), "erasure-1") == []
    assert outdated(store, [said]) == []


def test_it_says_what_it_replaces_and_what_is_left(store, said, tmp_path: Path) -> None:
    (after,) = rewrite(store, [said], "ann", set(), "erasure-1")
    assert (after.replaces, after.erased, after.rows) == (said.digest, 1, 2)
    assert persons_in(store, said) == persons_in(store, after) == ["bob", "eve"]
    assert not (tmp_path / said.path).exists()


def test_a_shard_that_lost_its_last_row_stands_in_nobodys_way(store, said) -> None:
    for person in ("ann", "bob", "eve"):
        (after,) = rewrite(store, [said], person, set(), "erasure-1")
    assert (after.erased, after.rows, persons_in(store, after)) == (3, 0, [])
    assert rewrite(store, [after], "somebody else", set(), "erasure-1") == []


def test_what_was_rewritten_and_not_said_is_said_by_the_next(store, said) -> None:
    """The first erasure died before it could say so; the second says both, and nothing is left to the first."""
    rewrite(store, [said], "ann", set(), "erasure-1")
    (after,) = rewrite(store, [said], "bob", set(), "erasure-1")
    assert (after.replaces, after.erased, persons_in(store, after)) == (said.digest, 2, ["eve"])
    assert outdated(store, [after]) == []
    assert outdated(store, [said]) == [after]
