"""Reading: raw records become rows by the rules alone. What one record says depends on no other, so that several
worker processes may read some each (`streams.prepare.workers`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pyarrow as pa

from schemas.codec import ContractError
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams import kafka
from streams.kafka import Record
from streams.prepare.rules import Dropped, prepare

# What is decided by: the row without its words, unless it may be told again without masks.
FACTS = (
    "record_id", "subject_id", "named", "unit", "conversation_id", "inference_id", "model", "kind", "split", "question",
    "input_hash", "content_hash", "answer_hash", "minhash", "answer_masks", "open", "submitted_ms", "origin", "author",
    "offset",
)  # fmt: skip


class Reading(msgspec.Struct):
    """What records of one partition say: a row (`SHARD_SCHEMA`) and its facts each, or why there is none."""

    rows: Any  # pa.RecordBatch; between processes its bytes
    facts: list[dict[str, Any]]
    dropped: dict[str, dict[str, int]]  # model → reason → records
    masked: dict[int, dict[str, int]]  # offset → kind → how often
    refused: dict[int, str]  # offset → what is wrong with it
    records: int  # how many were read


def read(records: Iterable[Record], policies: Mapping[str, ModelPolicy], split_key: bytes) -> Reading:
    """Apply the rules to each record that is not a deletion."""
    rows: list[dict[str, Any]] = []
    dropped: dict[str, dict[str, int]] = defaultdict(Counter)
    masked: dict[int, dict[str, int]] = {}
    refused: dict[int, str] = {}
    count = 0
    for record in records:
        count += 1
        if record.value is None:  # a deletion: there is nothing to learn from it
            continue
        try:
            envelope, event = kafka.decode(record)
            made = prepare(event, envelope, _policy(event.model, policies), split_key)
        except ContractError as error:
            refused[record.offset] = str(error)
            continue
        except Exception as error:  # noqa: BLE001 - whatever a rule makes of it, it would again
            refused[record.offset] = f"a rule failed: {type(error).__name__}: {error}"
            continue
        if isinstance(made, Dropped):
            dropped[event.model][made.reason] += 1
            continue
        if made.masked:
            masked[record.offset] = made.masked
        made.row["partition"], made.row["offset"] = record.partition, record.offset
        rows.append(made.row)
    facts = [{name: row[name] for name in FACTS} for row in rows]
    return Reading(pa.RecordBatch.from_pylist(rows, schema=SHARD_SCHEMA), facts, dict(dropped), masked, refused, count)


def _policy(model: str, policies: Mapping[str, ModelPolicy]) -> ModelPolicy:
    if model not in policies:
        known = ", ".join(sorted(policies))
        raise ContractError(f"RecordSubmitted: no model {model!r} configured (known: {known}) - at `$.model`")
    return policies[model]
