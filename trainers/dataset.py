"""From committed shards to the examples of one job: training rows, replayed rows, hold-outs.

Pure but for reading the artifact store. A later row replaces an earlier one with the same record id or with
the same prompt (a correction, or a contradiction: the newest wins). No prompt of a hold-out is ever trained on.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq

from schemas.events import ShardRef
from schemas.identity import content_hash, normalise
from streams.artifacts import ArtifactStore, get_shard

TRAINED_KINDS = ("sft",)
_COLUMNS = ["record_id", "kind", "split", "messages", "completion", "submitted_ms", "partition", "offset", "origin"]


@dataclass(frozen=True)
class Row:
    """One SFT example with what decides about it. `messages` is OpenAI's form; `made_from` is the prompt key of the row
    that this one was augmented from."""

    messages: tuple[dict[str, str], ...]
    completion: str
    split: str
    record_id: str
    order: tuple[int, int, int]
    made_from: str = ""

    @property
    def prompt_key(self) -> str:
        return content_hash([normalise(turn["content"]) for turn in self.messages])

    @property
    def prompts(self) -> set[str]:
        """The keys of its own prompt and of the one that it was made from: another answer to either overrules it."""
        return {self.prompt_key, self.made_from or self.prompt_key}


@dataclass(frozen=True)
class TrainingSet:
    """What a job trains on: new rows and replayed ones, in a fixed shuffled order."""

    rows: tuple[Row, ...]
    new: int
    replayed: int


def read_rows(store: ArtifactStore, shards: Iterable[ShardRef]) -> list[Row]:
    """The SFT rows of these shards, newest per record and per prompt, augmented ones with what they were made from.

    Raises `ArtifactError`.
    """
    said: list[Row] = []
    made: list[Row] = []
    for ref in shards:
        table = pq.read_table(io.BytesIO(get_shard(store, ref)[1]), columns=_COLUMNS)
        for values in table.to_pylist():
            if values["kind"] in TRAINED_KINDS:
                (made if values["origin"] == "augmented" else said).append(_row(values))
    said.sort(key=lambda row: row.order)
    by_record = {row.record_id: row for row in said}
    by_prompt = {row.prompt_key: row for row in sorted(by_record.values(), key=lambda row: row.order)}
    sources = {row.order: row.prompt_key for row in by_prompt.values()}
    standing = [replace(row, made_from=sources[row.order]) for row in made if row.order in sources]
    return sorted(({row.prompt_key: row for row in standing} | by_prompt).values(), key=lambda row: row.order)


def _row(values: dict[str, Any]) -> Row:
    return Row(
        messages=tuple(values["messages"]),
        completion=values["completion"],
        split=values["split"],
        record_id=values["record_id"],
        order=(values["submitted_ms"], values["partition"], values["offset"]),
    )


def holdout(rows: Sequence[Row], most: int = 2_000) -> list[Row]:
    """The test rows, at most `most` of them, chosen by hash so that the choice stays the same as data grows."""
    tests = [row for row in rows if row.split == "test"]
    if len(tests) > most:
        tests = sorted(tests, key=lambda row: row.prompt_key)[:most]
    return tests


def training_set(
    new: Sequence[Row], replay: Sequence[Row], *, replay_share: float, max_replay: int, seed: int
) -> TrainingSet:
    """Training rows of `new`, mixed with replayed rows so that these make up `replay_share` of the whole.

    All replay rows are taken where there are fewer. Rows whose prompt stands in a hold-out are left out.
    """
    held = {row.prompt_key for row in [*new, *replay] if row.split != "train"}
    fresh = [row for row in new if row.split == "train" and not held & row.prompts]
    known = held | {row.prompt_key for row in fresh}
    old = [row for row in replay if row.split == "train" and not known & row.prompts]
    wanted = min(len(old), max_replay)
    if replay_share < 1:
        wanted = min(wanted, round(len(fresh) * replay_share / (1 - replay_share)))
    chooser = random.Random(seed)
    mixed = fresh + chooser.sample(old, wanted)
    chooser.shuffle(mixed)
    return TrainingSet(tuple(mixed), len(fresh), wanted)
