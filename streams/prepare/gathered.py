"""What committed shards say of their rows, gathered into few files: a process that starts need not open every shard.

A cache in the artifact store, under `gathered/`: Arrow files with the columns that `admit` remembers (hashes, no words)
and the shards that they stand for. A shard that was rewritten to forget somebody has another digest: a file that holds
its old rows is stored again without them. A file without a proof (`ArtifactStore.put_proven`) could make anybody's rows
duplicates: it is deleted unread. New files take up smaller ones, as in a log-structured tree, so that their
number grows with the logarithm of the rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.events import ShardRef
from schemas.shards import SHARD_SCHEMA, no_rows, short_hashes
from streams import metrics
from streams.artifacts import ArtifactError, ArtifactStore, get_shard
from streams.prepare.admit import HASHES, REMEMBERED

log = logging.getLogger(__name__)
FOLDER, SHARDS = "gathered", b"shards"
# Fewer shards than this are opened one by one: 0.5 ms each.
WORTH_GATHERING = 256
PIECE_ROWS = 20_000
SHARD = "shard"  # the column that says which of the file's shards a row is of
_SCHEMA = pa.schema([*(SHARD_SCHEMA.field(name) for name in REMEMBERED), pa.field(SHARD, pa.int32())])


class _Gathered(NamedTuple):
    """Rows, and the digests of their shards in the order that column SHARD counts in; a shard may have no rows."""

    table: pa.Table
    digests: list[str]

    def without(self, stale: set[str]) -> _Gathered:
        """The same without the rows of these shards."""
        kept = [digest for digest in self.digests if digest not in stale]
        renumbered = {digest: number for number, digest in enumerate(kept)}
        numbers = np.array([renumbered.get(digest, -1) for digest in self.digests], dtype=np.int32)
        now = numbers[self.table[SHARD].to_numpy()]
        table = self.table.set_column(len(REMEMBERED), _SCHEMA.field(SHARD), pa.array(now))
        return _Gathered(table.filter(pa.array(now >= 0)), kept)

    def with_more(self, other: _Gathered) -> _Gathered:
        moved = other.table[SHARD].to_numpy() + np.int32(len(self.digests))
        table = other.table.set_column(len(REMEMBERED), _SCHEMA.field(SHARD), pa.array(moved))
        return _Gathered(pa.concat_tables([self.table, table]), [*self.digests, *other.digests])


class _File(NamedTuple):
    path: str  # "" for none
    held: _Gathered


_NOTHING = _File("", _Gathered(no_rows(_SCHEMA), []))


def remembered(store: ArtifactStore, shards: Sequence[ShardRef]) -> Iterator[pa.Table]:
    """The REMEMBERED columns of every row of these shards, each row once; gathers what was not yet.

    `shards` are all that are committed. Raises `ArtifactError` for a shard that is missing or damaged.
    """
    files, covered = _usable(store, {ref.digest for ref in shards})
    for file in files:
        yield from _pieces(file.held.table)
    alone = [ref for ref in shards if ref.rows and ref.digest not in covered]
    digests: list[str] = []
    tables: list[pa.Table] = []
    for ref in alone:
        metrics.heartbeat()  # thousands of files may take longer than a loop may be silent
        now, data = get_shard(store, ref)
        # Three times as fast as read_table on files this small.
        table = pq.ParquetFile(pa.BufferReader(data)).read(columns=REMEMBERED, use_threads=False)
        numbers = np.full(table.num_rows, len(digests), dtype=np.int32)
        tables.append(table.append_column(_SCHEMA.field(SHARD), pa.array(numbers)).replace_schema_metadata(None))
        digests.append(now.digest)
    if not tables:
        return
    rest = _Gathered(short_hashes(pa.concat_tables(tables), HASHES), digests)
    yield from _pieces(rest.table)
    if len(alone) >= WORTH_GATHERING and store.proves:
        _gather(store, files, rest)


def gather(store: ArtifactStore, shards: Sequence[ShardRef]) -> None:
    """Gather what was not yet, so that a start has little left to open. Raises as `remembered`."""
    for _ in remembered(store, shards):
        pass


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """As much at a time as one may well hold as Python's rows, and be silent over."""
    for start in range(0, table.num_rows, PIECE_ROWS):
        metrics.heartbeat()
        yield table.slice(start, PIECE_ROWS).drop_columns(SHARD)


def _usable(store: ArtifactStore, committed: set[str]) -> tuple[list[_File], set[str]]:
    """The files, which stand for committed shards alone from now on, none of them twice."""
    files: list[_File] = []
    covered: set[str] = set()
    for file in sorted(_standing(store, committed), key=lambda one: -len(one.held.digests)):
        if covered.isdisjoint(file.held.digests):
            files.append(file)
            covered.update(file.held.digests)
        else:
            store.delete(file.path)
    return files, covered


def _standing(store: ArtifactStore, committed: set[str]) -> Iterator[_File]:
    """Every file, stored again where it held rows of other shards than these; one that holds nothing else is gone."""
    if not store.proves:  # nothing here could be believed, and others may
        return
    seen: set[str] = set()  # what a crash left beside the file that was to replace it comes to the same file
    for path, _ in store.files(FOLDER):
        file = _opened(store, path)
        stale = set(file.held.digests) - committed
        if stale:
            file = _stored_again(store, file.held.without(stale))
        if file.path != path:
            store.delete(path)
        if file.path and file.path not in seen:
            seen.add(file.path)
            yield file


def _stored_again(store: ArtifactStore, held: _Gathered) -> _File:
    if held.digests:
        try:
            return _File(_put(store, held), held)
        except OSError as error:  # a full disk; what must go goes none the less, for this is but a cache
            log.warning("%d gathered shards are to be opened one by one: %s", len(held.digests), error)
    return _NOTHING


def _opened(store: ArtifactStore, path: str) -> _File:
    """A file; one without proof, of other columns, or just deleted by somebody else, holds nothing."""
    try:
        data = store.read_proven(path)
    except ArtifactError:
        data = b""
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all() if _path_of(data) == path else no_rows(_SCHEMA)
    digests = msgspec.json.decode((table.schema.metadata or {}).get(SHARDS, b"[]"), type=list[str])
    table = table.replace_schema_metadata(None)
    if table.schema.equals(_SCHEMA) and digests:
        return _File(path, _Gathered(table, digests))
    return _NOTHING


def _gather(store: ArtifactStore, files: list[_File], fresh: _Gathered) -> None:
    """Store these rows with those of the files that are not much larger, then delete these."""
    taken = []
    for file in reversed(files):  # the smallest first
        if file.held.table.num_rows >= 2 * fresh.table.num_rows:
            break
        fresh = file.held.with_more(fresh)
        taken.append(file)
    _put(store, fresh)
    log.info("%d shards are gathered in one file", len(fresh.digests))
    for file in taken:
        store.delete(file.path)


def _put(store: ArtifactStore, held: _Gathered) -> str:
    said = held.table.replace_schema_metadata({SHARDS: msgspec.json.encode(held.digests)}).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, said.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(said)
    data = sink.getvalue().to_pybytes()
    path = _path_of(data)
    store.put_proven(path, data)
    return path


def _path_of(data: bytes) -> str:
    return f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.arrow"


def forget(store: ArtifactStore, standing: set[str]) -> None:
    """Take out of all files the rows of any shard but these, by digest: they may be what they no longer are."""
    for _ in _standing(store, standing):
        pass
