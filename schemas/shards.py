"""The Arrow schema of a prepared shard: one row per training record, whatever its kind."""

from __future__ import annotations

import pyarrow as pa

SHARD_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("subject_id", pa.string()),
        ("conversation_id", pa.string()),
        ("inference_id", pa.string()),
        ("model", pa.string()),
        ("kind", pa.string()),  # sft | preference | kto
        ("split", pa.string()),  # train | validation | test
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("completion", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("label", pa.bool_()),
        ("origin", pa.string()),  # import | feedback | client | synthetic | augmented
        ("input_hash", pa.string()),  # what is asked, normalised
        ("content_hash", pa.string()),  # what is asked and answered, normalised
        ("answer_hash", pa.string()),  # what is answered, normalised
        ("minhash", pa.binary()),  # of what is asked; see streams.prepare.near
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("submitted_ms", pa.int64()),
    ]
)
