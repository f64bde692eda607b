"""Committed shards as training files, in the forms that TRL reads.

Reads shards from the artifact store, one at a time; writes JSON Lines or Parquet, whole or not at all. Which shards, is
asked of ClickHouse. The forms are TRL's conversational ones (its guide "Dataset formats and types"): `messages`,
`prompt`/`completion`, `prompt`/`chosen`/`rejected`, and `prompt`/`completion`/`label`.
"""

from __future__ import annotations

import io
import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deploy.local.folders import private_file
from deploy.version_lineage import find_version, shards_of
from schemas.events import ShardRef
from schemas.shards import ORDER, latest
from streams.artifacts import ArtifactStore, get_shard
from streams.clickhouse import rows
from streams.prepare.people import MADE_UP
from streams.words import Word, standing

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client


class ExportError(RuntimeError):
    """The export cannot be done; nothing was left behind."""


class Kind(StrEnum):
    sft = "sft"
    preference = "preference"
    kto = "kto"


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


class FileFormat(StrEnum):
    jsonl = "jsonl"
    parquet = "parquet"


class SftForm(StrEnum):
    messages = "messages"
    prompt_completion = "prompt-completion"


@dataclass(frozen=True)
class Wanted:
    """Which rows, and in which form. `since_ms`: those submitted from then on (Unix time)."""

    kind: Kind = Kind.sft
    split: Split = Split.train
    sft_form: SftForm = SftForm.messages
    since_ms: int = 0

    def takes(self, row: dict[str, Any]) -> bool:
        in_split = self.split in (Split.all, row["split"])
        return bool(row["kind"] == self.kind and in_split and row["submitted_ms"] >= self.since_ms)


Batch = list[dict[str, Any]]
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_ANSWER = ["input_hash", "answer_hash"]
_IDENTITY = [
    "record_id", "kind", "label", "origin", "source_record", *_ANSWER, "unit", "may_correct",
]  # fmt: skip


def committed(client: Client, model: str) -> list[ShardRef]:
    """Every committed shard of a model, in the order of their commits, each as it was last said."""
    found = rows(
        client,
        "SELECT shard_id, path, digest, rows FROM tuneloop.shard_written FINAL WHERE model = {model:String} "
        "ORDER BY _offset",
        model=model,
    )
    return list({row["shard_id"]: ShardRef(**row) for row in found}.values())


@dataclass(frozen=True)
class Chosen:
    """Shards, for each the numbers of its rows that count, and the time from which on they do (Unix ms)."""

    refs: list[ShardRef]
    rows: list[np.ndarray]
    since_ms: int = 0


def choose(
    client: Client, store: ArtifactStore, model: str, version: str = "", since: str = "", corrections: str = "anyone"
) -> Chosen:
    """The data of a model: all of it, what one version was made from, or what is new since a version or a time.

    `corrections` is the model's policy.

    Raises `ExportError`, `LineageError` for an unknown version, `ArtifactError`.
    """
    every = committed(client, model)
    if version:  # without the corrections that came later, but also without whom a shard was rewritten to forget
        ids = {ref.shard_id for ref in _made_from(client, store, model, version)}
        refs = [ref for ref in every if ref.shard_id in ids]
        return Chosen(refs, survivors(store, refs, corrections))
    if not every:
        raise ExportError(f"no shard of {model!r} is committed yet; `tuneloop data ls` shows what there is")
    since_ms = 0 if "@" in since or not since else moment(since)
    used = {ref.shard_id for ref in _made_from(client, store, model, since)} if "@" in since else set()
    kept = survivors(store, every, corrections)
    pairs = [pair for pair in zip(every, kept, strict=True) if pair[0].shard_id not in used]
    return Chosen([ref for ref, _ in pairs], [numbers for _, numbers in pairs], since_ms)


def _made_from(client: Client, store: ArtifactStore, model: str, version: str) -> list[ShardRef]:
    if version.partition("@")[0] != model:
        raise ExportError(f"{version!r} is no version of {model}: give {model}@N (`tuneloop models ls`)")
    return [ref for refs in shards_of(store, find_version(client, version)).values() for ref in refs]


def moment(text: str) -> int:
    """A date, or a time of one (UTC where it names no zone), in Unix ms. Raises `ExportError`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ExportError(f"--since {text!r}: expected MODEL@N, a date or a time such as 2026-11-21T08:00") from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def survivors(store: ArtifactStore, refs: Sequence[ShardRef], corrections: str = "anyone") -> list[np.ndarray]:
    """For each shard the numbers of its rows that count: no later row is of the same record and, in SFT, the answer
    stands (`streams.words`) and no later row says it; what was augmented counts with what it was made from.

    Later = (time, partition, offset), as in `trainers.rows`. Reads no texts. Raises `ArtifactError`.
    """
    if not refs:
        return []
    table = pa.concat_tables([_identities(store, ref, number) for number, ref in enumerate(refs)])
    augmented = pc.equal(table.column("origin"), "augmented")
    newest = latest(table.filter(pc.invert(augmented)), "record_id")
    synthetic = pc.is_in(newest.column("origin"), pa.array(MADE_UP))
    people, made = newest.filter(pc.invert(synthetic)), newest.filter(synthetic)
    right = pc.and_(pc.equal(people.column("kind"), Kind.kto.value), pc.fill_null(people.column("label"), False))
    said = people.filter(pc.or_(pc.is_in(people.column("kind"), pa.array([Kind.sft.value, "asked"])), right))
    stands = _standing(said, corrections)
    examples = latest(_of_kind(stands, Kind.sft), *_ANSWER)
    opinions = people.filter(pc.invert(pc.is_in(people.column("kind"), pa.array([Kind.sft.value, "asked"]))))
    kept = pa.concat_tables([opinions, examples, _sound(made, said, stands)])
    places = kept.select(["shard", "offset"])
    variants = table.filter(augmented).join(places, ["shard", "offset"], join_type="left semi")
    both = pa.concat_tables([part.select(["shard", "row"]) for part in (kept, variants)])
    shard, row = both.column("shard").to_numpy(), both.column("row").to_numpy()
    order = np.lexsort((row, shard))
    return np.split(row[order], np.searchsorted(shard[order], np.arange(1, len(refs))))


def _of_kind(table: pa.Table, kind: Kind) -> pa.Table:
    return table.filter(pc.equal(table.column("kind"), kind.value))


def _sound(made: pa.Table, said: pa.Table, stands: pa.Table) -> pa.Table:
    """Of made-up rows those whose source stands, and to which nobody said anything else."""
    sources = _of_kind(stands, Kind.sft).column("record_id")
    named = pc.fill_null(made.column("source_record"), "")
    sound = pc.or_(pc.equal(named, ""), pc.is_in(named, sources.unique()))
    asked = pc.is_in(made.column("input_hash"), said.column("input_hash").unique())
    standing_now = set(_answers(stands))
    agrees = pa.array([answer in standing_now for answer in _answers(made)], pa.bool_())
    return made.filter(pc.and_(sound, pc.or_(pc.invert(asked), agrees)))


def _answers(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(*(table[name].to_pylist() for name in _ANSWER), strict=True))


def _standing(said: pa.Table, corrections: str) -> pa.Table:
    """The rows whose answer stands, of all that were said to the same."""
    several = said.group_by("input_hash").aggregate([("answer_hash", "count_distinct")])
    several = several.filter(pc.greater(several["answer_hash_count_distinct"], 1))["input_hash"]
    contested = pc.is_in(said["input_hash"], several)
    words: dict[str, list[Word]] = defaultdict(list)
    names = [*_ANSWER, "unit", "may_correct", *ORDER]
    rows_of_them = said.filter(contested).select(names).to_pylist()
    for row in rows_of_them:
        order = row["submitted_ms"], row["partition"], row["offset"]
        words[row["input_hash"]].append(Word(row["answer_hash"], row["unit"], order, bool(row["may_correct"])))
    stands = {asked: standing(some, corrections) for asked, some in words.items()}
    keeps = np.ones(said.num_rows, dtype=bool)
    keeps[contested.to_numpy()] = [row["answer_hash"] in stands[row["input_hash"]] for row in rows_of_them]
    return said.filter(pa.array(keeps))


def _read(store: ArtifactStore, ref: ShardRef, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(get_shard(store, ref)[1]), columns=columns)


def _identities(store: ArtifactStore, ref: ShardRef, number: int) -> pa.Table:
    table = _read(store, ref, [*_IDENTITY, *ORDER])
    table = table.append_column("shard", pa.array(np.full(len(table), number)))
    return table.append_column("row", pa.array(np.arange(len(table))))


def examples(
    store: ArtifactStore, refs: Sequence[ShardRef], kept: Sequence[np.ndarray], wanted: Wanted
) -> Iterator[Batch]:
    """For each shard its wanted rows of those `kept`, in TRL's form. Raises `ArtifactError`."""
    for ref, numbers in zip(refs, kept, strict=True):
        found = _read(store, ref).take(pa.array(numbers)).to_pylist() if len(numbers) else []
        yield [example(row, wanted.sft_form) for row in found if wanted.takes(row)]


def example(row: dict[str, Any], sft_form: SftForm = SftForm.messages) -> dict[str, Any]:
    """One row of a shard in the form that TRL's trainer for its kind reads."""
    prompt = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
    if row["kind"] == Kind.preference:
        return {"prompt": prompt, "chosen": _answer(row["chosen"]), "rejected": _answer(row["rejected"])}
    answer = _answer(row["completion"])
    if row["kind"] == Kind.kto:
        return {"prompt": prompt, "completion": answer, "label": row["label"]}
    if sft_form is SftForm.messages:
        return {"messages": [*prompt, *answer]}
    return {"prompt": prompt, "completion": answer}


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def schema_of(wanted: Wanted) -> pa.Schema:
    """The Arrow schema of the rows that `wanted` makes."""
    if wanted.kind is Kind.preference:
        names = ["prompt", "chosen", "rejected"]
    elif wanted.kind is Kind.sft and wanted.sft_form is SftForm.messages:
        names = ["messages"]
    else:
        names = ["prompt", "completion"]
    label = [("label", pa.bool_())] if wanted.kind is Kind.kto else []
    return pa.schema([*((name, _TURNS) for name in names), *label])


def write(
    target: BinaryIO, batches: Iterator[Batch], wanted: Wanted, format: FileFormat,
    on_batch: Callable[[int], None] = lambda number: None,
) -> int:
    """Write batch after batch; returns how many rows. `on_batch` is told how many batches are done."""
    if format is FileFormat.jsonl:
        encoder = msgspec.json.Encoder()
        return _pour(batches, lambda batch: target.write(encoder.encode_lines(batch)), on_batch)
    schema = schema_of(wanted)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        return _pour(batches, lambda batch: writer.write_table(pa.Table.from_pylist(batch, schema=schema)), on_batch)


def _pour(batches: Iterator[Batch], take: Callable[[Batch], Any], on_batch: Callable[[int], None]) -> int:
    count = 0
    for number, batch in enumerate(batches, 1):
        if batch:
            take(batch)
        count += len(batch)
        on_batch(number)
    return count


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file for its owner alone that appears at `path` once it is complete, and never otherwise.

    A link at `path` is replaced, never followed. Raises `ExportError`.
    """
    if path.is_dir() or not path.parent.is_dir():
        why = "that is a folder" if path.is_dir() else "there is no such folder"
        raise ExportError(f"no file can be written at {path}: {why}; name another with --out")
    temporary = path.with_name(f".tuneloop-{secrets.token_hex(8)}.tmp")  # a name that nobody can put a link under
    try:
        with os.fdopen(private_file(temporary), "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
