"""From shards to examples: the newest row wins, a hold-out is never trained on, replay has its share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import ShardRef
from schemas.shards import SHARD_SCHEMA
from streams.artifacts import ArtifactError, ArtifactStore
from trainers.dataset import Row, holdout, read_rows, training_set


def stored(prompt: str, completion: str, *, at: int = 0, **fields: Any) -> dict[str, Any]:
    row = {
        "record_id": f"{prompt}/{at}", "kind": "sft", "split": "train", "completion": completion, "submitted_ms": at,
        "messages": [{"role": "user", "content": prompt}], "partition": 0, "offset": at,
    }  # fmt: skip
    return {**row, **fields}


def shard(store: ArtifactStore, name: str, *rows: dict[str, Any]) -> ShardRef:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SHARD_SCHEMA), sink)
    path = f"shards/{name}.parquet"
    return ShardRef(shard_id=name, path=path, digest=store.put_bytes(path, sink.getvalue()), rows=len(rows))


def row(prompt: str, split: str = "train", at: int = 0) -> Row:
    return Row(({"role": "user", "content": prompt},), "answer", split, f"{prompt}/{at}", (at, 0, at))


def rows(prefix: str, count: int, split: str = "train") -> list[Row]:
    return [row(f"{prefix}{number}", split) for number in range(count)]


def prompts(chosen: Any) -> set[str]:
    return {entry.messages[0]["content"] for entry in chosen}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


def test_the_newest_row_wins_in_whatever_order_shards_come(store: ArtifactStore) -> None:
    early = shard(store, "a", stored("where?", "old", at=1), stored("who?", "me", at=2))
    late = shard(store, "b", stored(" WHERE? ", "new", at=3))
    for shards in ([early, late], [late, early]):
        assert [(entry.completion, entry.split) for entry in read_rows(store, shards)] == [("me", "train"), ("new", "train")]


def test_a_correction_replaces_its_record_even_with_another_prompt(store: ArtifactStore) -> None:
    first = shard(store, "a", stored("where?", "old", at=1, record_id="r"))
    second = shard(store, "b", stored("where is it?", "new", at=2, record_id="r"))
    assert [entry.completion for entry in read_rows(store, [second, first])] == ["new"]


def test_an_augmented_row_falls_with_the_answer_that_it_repeats(store: ArtifactStore) -> None:
    said, made = stored("where?", "old", at=1), stored("wheer?", "old", at=1, record_id="where?/1/swapped", origin="augmented")
    early, late = shard(store, "a", said, made), shard(store, "b", stored("where?", "new", at=2))
    assert [entry.completion for entry in read_rows(store, [early])] == ["old", "old"]
    assert [entry.completion for entry in read_rows(store, [early, late])] == ["new"]
    mixed = training_set(read_rows(store, [late]), read_rows(store, [early]), replay_share=0.5, max_replay=9, seed=1)
    assert [entry.completion for entry in mixed.rows] == ["new"], "also where the new answer came with another job"


def test_rows_of_one_moment_are_ordered_by_where_they_stood(store: ArtifactStore) -> None:
    both = [stored("a", answer, at=5, record_id=answer, partition=p, offset=o) for answer, p, o in
            (("second", 1, 2), ("first", 1, 1), ("zeroth", 0, 9))]  # fmt: skip
    assert [entry.completion for entry in read_rows(store, [shard(store, "a", *both)])] == ["second"]


def test_only_supervised_rows_are_read_and_only_from_whole_shards(store: ArtifactStore) -> None:
    mixed = shard(store, "a", stored("a", "b"), stored("c", "d", kind="kto", label=True), stored("e", "", kind="preference"))
    assert [entry.completion for entry in read_rows(store, [mixed])] == ["b"]
    with pytest.raises(ArtifactError):
        read_rows(store, [ShardRef(shard_id="a", path=mixed.path, digest="0" * 64, rows=3)])


def test_no_prompt_of_a_holdout_is_trained_on() -> None:
    new = [row("A"), row("b"), row("c", "test"), row("d", "validation")]
    replay = [row("a ", "test"), row("C"), row("D"), row("e"), row("b")]
    chosen = training_set(new, replay, replay_share=1.0, max_replay=100, seed=1)
    assert prompts(chosen.rows) == {"b", "e"} and (chosen.new, chosen.replayed) == (1, 1)


@given(st.data())
def test_no_prompt_of_a_holdout_is_trained_on_whatever_the_data(data: st.DataObject) -> None:
    some = st.lists(st.builds(row, st.sampled_from("abcdef"), st.sampled_from(["train", "test", "validation"])))
    new, replay = data.draw(some), data.draw(some)
    chosen = training_set(new, replay, replay_share=data.draw(st.sampled_from([0.0, 0.5, 1.0])), max_replay=9, seed=0)
    held = {entry.prompt_key for entry in [*new, *replay] if entry.split != "train"}
    assert not held & {entry.prompt_key for entry in chosen.rows}
    assert chosen.new + chosen.replayed == len(chosen.rows) and chosen.replayed <= 9


@pytest.mark.parametrize(
    ("new", "old", "share", "most", "replayed"),
    [
        (100, 500, 0.5, 1_000, 100),
        (100, 500, 0.2, 1_000, 25),
        (100, 500, 0.75, 1_000, 300),
        (100, 500, 0.0, 1_000, 0),
        (100, 40, 0.5, 1_000, 40),
        (100, 500, 0.5, 30, 30),
        (100, 500, 1.0, 1_000, 500),
        (100, 500, 1.0, 30, 30),
        (0, 500, 0.5, 1_000, 0),
        (100, 0, 0.5, 1_000, 0),
    ],
)
def test_replay_makes_up_its_share(new: int, old: int, share: float, most: int, replayed: int) -> None:
    chosen = training_set(rows("n", new), rows("o", old), replay_share=share, max_replay=most, seed=3)
    assert (chosen.new, chosen.replayed, len(chosen.rows)) == (new, replayed, new + replayed)
    assert sum(entry.messages[0]["content"].startswith("o") for entry in chosen.rows) == replayed


def test_a_seed_decides_the_order_and_the_choice() -> None:
    def drawn(seed: int) -> list[str]:
        chosen = training_set(rows("n", 50), rows("o", 200), replay_share=0.5, max_replay=1_000, seed=seed)
        return [entry.record_id for entry in chosen.rows]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != sorted(drawn(1)), "new and replayed rows are mixed"


def test_a_holdout_is_bounded_and_mostly_stays_as_data_grows() -> None:
    mixed = rows("t", 300, "test") + rows("x", 50)
    assert prompts(holdout(mixed)) == prompts(rows("t", 300))
    small, grown = holdout(mixed, 100), holdout(mixed + rows("u", 30, "test"), 100)
    assert len(small) == len(grown) == 100
    assert len(prompts(small) & prompts(grown)) >= 80
    assert prompts(holdout(list(reversed(mixed)), 100)) == prompts(small)
