"""Which rows a job or a verdict rests on, as files in the artifact store: places and numbers, no words or ids.

A row is named by its (partition, offset) in `training.raw`, which tells nothing once the row is erased.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.events import FileRef
from streams.artifacts import ArtifactStore
from trainers.rows import Row


def put_table(store: ArtifactStore, kind: str, columns: Mapping[str, Sequence[Any]]) -> FileRef:
    """Store columns of equal length as one Parquet file under `kind`."""
    table = pa.table(dict(columns))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = f"{kind}/{hashlib.sha256(data).hexdigest()}.parquet"
    return FileRef(path=path, digest=store.put_bytes(path, data), rows=table.num_rows)


def get_table(store: ArtifactStore, ref: FileRef) -> pa.Table:
    """The columns that were stored. Raises `ArtifactError`."""
    return pq.read_table(io.BytesIO(store.get_bytes(ref.path, ref.digest)))


def places(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Where rows stand in `training.raw` and when they were said (Unix ms), in their order."""
    return {
        "partition": [row.order[1] for row in rows], "offset": [row.order[2] for row in rows],
        "said_ms": [row.said_ms for row in rows],
    }  # fmt: skip
