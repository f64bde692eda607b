"""What committed shards say of their rows, gathered into few files: a process that starts need not open every shard.

A cache in the artifact store, under `gathered/`: Arrow files with the columns that `admit` remembers (hashes, no words)
and the digests of the shards that they stand for. A shard that was rewritten to forget somebody has another digest: a
file with its old rows is stale and deleted. New files take up smaller ones, as in a log-structured tree, so that their
number grows with the logarithm of the rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.events import ShardRef
from schemas.shards import SHARD_SCHEMA
from streams import metrics
from streams.artifacts import ArtifactError, ArtifactStore, get_shard
from streams.prepare.admit import REMEMBERED

log = logging.getLogger(__name__)
FOLDER, SHARDS = "gathered", b"shards"
# Fewer shards than this are opened one by one: 0.5 ms each.
WORTH_GATHERING = 256
PIECE_ROWS = 20_000
_SCHEMA = pa.schema([SHARD_SCHEMA.field(name) for name in REMEMBERED])


class _File(NamedTuple):
    path: str
    table: pa.Table
    digests: set[str]


def remembered(store: ArtifactStore, shards: Sequence[ShardRef]) -> Iterator[pa.Table]:
    """The REMEMBERED columns of every row of these shards, each row once; gathers what was not yet.

    `shards` are all that are committed. Raises `ArtifactError` for a shard that is missing or damaged.
    """
    files, covered = _usable(store, {ref.digest for ref in shards})
    for file in files:
        yield from _pieces(file.table)
    alone = [ref for ref in shards if ref.digest not in covered]
    digests, tables = [], []
    for ref in alone:
        metrics.heartbeat()  # thousands of files may take longer than a loop may be silent
        now, data = get_shard(store, ref)
        # Three times as fast as read_table on files this small.
        tables.append(pq.ParquetFile(pa.BufferReader(data)).read(columns=REMEMBERED, use_threads=False))
        digests.append(now.digest)
    if not tables:
        return
    rest = pa.concat_tables(tables)
    yield from _pieces(rest)
    if len(alone) >= WORTH_GATHERING:
        _gather(store, files, rest.replace_schema_metadata(None), set(digests))


def gather(store: ArtifactStore, shards: Sequence[ShardRef]) -> None:
    """Gather what was not yet, so that a start has little left to open. Raises as `remembered`."""
    for _ in remembered(store, shards):
        pass


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """As much at a time as one may well hold as Python's rows, and be silent over."""
    for start in range(0, table.num_rows, PIECE_ROWS):
        metrics.heartbeat()
        yield table.slice(start, PIECE_ROWS)


def _usable(store: ArtifactStore, committed: set[str]) -> tuple[list[_File], set[str]]:
    """The files that stand for committed shards alone, none of them twice; others are deleted."""
    files: list[_File] = []
    covered: set[str] = set()
    found = [_opened(store, path) for path, _ in store.files(FOLDER)]
    for file in sorted(found, key=lambda one: -len(one.digests)):
        if not file.digests or file.digests - committed or file.digests & covered:
            store.delete(file.path)
        else:
            files.append(file)
            covered |= file.digests
    return files, covered


def _opened(store: ArtifactStore, path: str) -> _File:
    """A file; one that is damaged, of other columns, or was just deleted by somebody else, stands for nothing."""
    try:
        data = store.read_bytes(path)
    except ArtifactError:
        data = b""
    if _path_of(data) != path:
        return _File(path, pa.table({}), set())
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    digests = msgspec.json.decode(table.schema.metadata[SHARDS], type=set[str])
    table = table.replace_schema_metadata(None)
    return _File(path, table, digests if table.schema.equals(_SCHEMA) else set())


def _gather(store: ArtifactStore, files: list[_File], table: pa.Table, digests: set[str]) -> None:
    """Store these rows with those of the files that are not much larger, then delete these."""
    taken = []
    for file in reversed(files):  # the smallest first
        if file.table.num_rows >= 2 * table.num_rows:
            break
        table, digests = pa.concat_tables([file.table, table]), digests | file.digests
        taken.append(file)
    said = table.replace_schema_metadata({SHARDS: msgspec.json.encode(sorted(digests))}).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, said.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(said)
    data = sink.getvalue().to_pybytes()
    store.put_bytes(_path_of(data), data)
    log.info("%d shards are gathered in one file", len(digests))
    for file in taken:
        store.delete(file.path)


def _path_of(data: bytes) -> str:
    return f"{FOLDER}/{hashlib.sha256(data).hexdigest()}.arrow"


def forget(store: ArtifactStore, standing: set[str]) -> None:
    """Delete the files that stand for any shard but these, by digest: their rows may be what they no longer are."""
    for path, _ in store.files(FOLDER):
        if _opened(store, path).digests - standing:
            store.delete(path)
