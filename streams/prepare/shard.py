"""A shard as a file: Parquet under a name that carries the digest of its bytes, and the counts its event gives."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.events import ShardRef, ShardWritten
from schemas.shards import SHARD_SCHEMA
from streams.artifacts import ArtifactStore
from streams.prepare.people import MADE_UP

# Answers longer than this are texts, not classes, and so are more different answers than that. What fewer people than
# those said is a person's words and stays out of events.
LONGEST_CLASS, MOST_CLASSES, FEWEST_SUBJECTS = 64, 200, 3
# The columns with what people said.
WORDS = ("messages", "tools", "completion", "chosen", "rejected", "labels")


def put_shard(store: ArtifactStore, model: str, shard_id: str, rows: pa.Table) -> tuple[str, str, int]:
    """Store rows (`SHARD_SCHEMA`) as one Parquet file; returns (path, sha256, size in bytes)."""
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"shards/{model}/{shard_id}-{digest[:12]}.parquet"
    store.put_bytes(path, data)
    return path, digest, len(data)


def table_of(facts: Sequence[Mapping[str, Any]], rows: pa.Table) -> pa.Table:
    """The rows of `SHARD_SCHEMA` that these facts are about (`number` says which of `rows`), as admission left them.

    They have the unit, side and question that the facts say; one of kind `asked` has no words, an `opened` one those
    that it has without masks.
    """
    kept = rows.take(pa.array([fact["number"] for fact in facts], pa.int64()))
    for name in ("unit", "split", "question"):
        place = SHARD_SCHEMA.get_field_index(name)
        kept = kept.set_column(place, SHARD_SCHEMA.field(name), pa.array([fact[name] for fact in facts], pa.string()))
    other = {n: fact for n, fact in enumerate(facts) if fact["kind"] == "asked" or fact.get("opened")}
    if not other:
        return kept
    changed = []
    for number, fact in other.items():
        (row,) = kept.slice(number, 1).to_pylist()
        row |= {name: fact[name] for name in SHARD_SCHEMA.names if name in fact}
        if row["kind"] == "asked":
            row |= dict.fromkeys(WORDS)
        elif fact.get("opened"):
            row |= fact["open"]
        changed.append(row)
    left = kept.take(pa.array([n for n in range(len(facts)) if n not in other], pa.int64()))
    whole = pa.concat_tables([left, pa.Table.from_pylist(changed, schema=SHARD_SCHEMA)])
    return whole.sort_by("offset")


def ref_of(shard: ShardWritten) -> ShardRef:
    return ShardRef(shard_id=shard.shard_id, path=shard.path, digest=shard.digest, rows=shard.rows)


def counted(rows: pa.Table) -> dict[str, Any]:
    """The counts of a `ShardWritten`: rows in all, by kind, and of SFT rows that people said by split and by class."""
    kinds = rows.column("kind").to_pylist()
    said = pc.invert(pc.is_in(rows.column("origin"), pa.array(MADE_UP)))
    sft = rows.filter(pc.and_(pc.equal(rows.column("kind"), "sft"), said))
    answers = sft.filter(pc.less_equal(pc.utf8_length(sft.column("completion")), LONGEST_CLASS))
    short = list(zip(answers.column("completion").to_pylist(), answers.column("subject_id").to_pylist(), strict=True))
    whose = set(zip(sft.column("split").to_pylist(), sft.column("unit").to_pylist(), strict=True))
    subjects = Counter(answer for answer, _ in set(short))
    classes = Counter(answer for answer, _ in short if subjects[answer] >= FEWEST_SUBJECTS)
    return {
        "rows": rows.num_rows,
        "rows_by_kind": dict(Counter(kinds)),
        "asked": kinds.count("asked"),
        "rows_by_split": dict(Counter(sft.column("split").to_pylist())),
        "units_by_split": dict(Counter(split for split, _ in whose)),
        "undated_tests": sft.filter(pc.and_(pc.equal(sft["split"], "test"), pc.invert(sft["dated"]))).num_rows,
        "rows_by_class": dict(classes) if len(classes) <= MOST_CLASSES else {},
    }
