"""What shards lost since they were read: by erasure, by kind, through any number of rewritings."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.events import ShardRef
from streams.artifacts import ArtifactStore
from streams.losses import MOST_VOID, Loss, is_void, losses, note_loss, reason
from tests.stores import store_at


def ref(digest: str) -> ShardRef:
    return ShardRef(shard_id="shard-1", path=f"shards/m/{digest}", digest=digest, rows=9)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path)


def lose(store: ArtifactStore, before: str, after: str, erasure: str, **trained: int) -> None:
    note_loss(store, ref(before), Loss(erasure_id=erasure, trained=trained, after=after))


def test_every_rewriting_since_it_was_read_counts(store: ArtifactStore) -> None:
    lose(store, "a", "b", "ann", sft=2)
    lose(store, "b", "c", "bob", sft=1, preference=4)
    assert losses(store, [ref("a")], ["sft"]) == {"ann": 2, "bob": 1}
    assert losses(store, [ref("b")], ["sft"]) == {"bob": 1} and losses(store, [ref("c")], ["sft"]) == {}
    assert losses(store, [ref("a"), ref("a2")], ["preference"]) == {"bob": 4}


def test_what_nobody_trains_on_is_no_loss(store: ArtifactStore) -> None:
    lose(store, "a", "b", "ann", preference=4)
    lose(store, "b", "c", "bob")
    assert losses(store, [ref("a")], ["sft"]) == {}


def test_an_attempt_that_was_done_again_has_the_last_word(store: ArtifactStore) -> None:
    lose(store, "a", "b", "ann", sft=1)
    lose(store, "a", "c", "ann", sft=2)
    assert losses(store, [ref("a")], ["sft"]) == {"ann": 2}


def test_a_circle_has_an_end(store: ArtifactStore) -> None:
    lose(store, "a", "b", "ann", sft=1)
    lose(store, "b", "a", "ann", sft=1)
    assert losses(store, [ref("a")], ["sft"]) == {"ann": 2}


def test_void_once_and_then_judged() -> None:
    assert is_void({"ann": 1}, 0) and not is_void({"ann": 1}, MOST_VOID) and not is_void({}, 0)
    assert reason({"erasure-b": 2, "erasure-a": 1}) == "3 rows that it was trained on were erased meanwhile (erasure-a, erasure-b)"
