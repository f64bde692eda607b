"""A shard as a file: Parquet under a name that carries the digest of its bytes, and the counts its event gives."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.events import ShardRef, ShardWritten
from streams.artifacts import ArtifactStore

# Answers longer than this are texts, not classes, and so are more different answers than that. What fewer people than
# those said is a person's words and stays out of events.
LONGEST_CLASS, MOST_CLASSES, FEWEST_SUBJECTS = 64, 200, 3


def put_shard(store: ArtifactStore, model: str, shard_id: str, rows: pa.Table) -> tuple[str, str, int]:
    """Store rows (`SHARD_SCHEMA`) as one Parquet file; returns (path, sha256, size in bytes)."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"shards/{model}/{shard_id}-{digest[:12]}.parquet"
    store.put_bytes(path, data)
    return path, digest, len(data)


def ref_of(shard: ShardWritten) -> ShardRef:
    return ShardRef(shard_id=shard.shard_id, path=shard.path, digest=shard.digest, rows=shard.rows)


def counted(rows: pa.Table) -> dict[str, Any]:
    """The counts of a `ShardWritten`: rows in all, by kind, and of SFT rows by split and by class."""
    kinds = rows.column("kind").to_pylist()
    sft = rows.filter(pc.equal(rows.column("kind"), "sft"))
    answers = sft.filter(pc.less_equal(pc.utf8_length(sft.column("completion")), LONGEST_CLASS))
    short = list(zip(answers.column("completion").to_pylist(), answers.column("subject_id").to_pylist(), strict=True))
    subjects = Counter(answer for answer, _ in set(short))
    classes = Counter(answer for answer, _ in short if subjects[answer] >= FEWEST_SUBJECTS)
    return {
        "rows": rows.num_rows,
        "rows_by_kind": dict(Counter(kinds)),
        "rows_by_split": dict(Counter(sft.column("split").to_pylist())),
        "rows_by_class": dict(classes) if len(classes) <= MOST_CLASSES else {},
    }
