"""The Arrow schema of a prepared shard: one row per training record, whatever its kind.

Evolution: a new column goes to the end and may be empty (`read_table` fills it in for shards of before); none is
renamed, retyped or dropped. Rows of kind `asked` hold no words: one more unit asked a common question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_calls", pa.string()),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
        ("weight", pa.float64()),
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("subject_id", pa.string()),  # whose words these are: what forgetting goes by
        ("unit", pa.string()),  # what splits, caps and clusters: the subject, else conversation, else question
        ("conversation_id", pa.string()),
        ("inference_id", pa.string()),
        ("model", pa.string()),
        ("kind", pa.string()),  # sft | preference | kto | document | asked
        ("split", pa.string()),  # of the unit: train | validation | test
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),  # a JSON array
        ("completion", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("label", pa.bool_()),  # kto: good or bad; sft: whether the answer that was corrected was right
        ("task", pa.string()),
        ("labels", pa.string()),  # a JSON object
        ("origin", pa.string()),  # import | feedback | client | synthetic | augmented
        ("sampled", pa.string()),  # random | all | bad | unrated | import | synthetic | augmented
        ("author", pa.string()),
        ("may_correct", pa.bool_()),  # said by a source whose word overrules others'
        ("import_id", pa.string()),
        ("source_record", pa.string()),  # what a made-up row was made from
        ("judges", pa.bool_()),  # whether it may stand in a hold-out, if its unit does
        ("question", pa.string()),  # the last user turn, normalised, with its near copies
        ("input_hash", pa.string()),  # the conversation that is answered, without its system turns
        ("content_hash", pa.string()),  # what is asked and answered, normalised
        ("answer_hash", pa.string()),  # what is answered, normalised
        ("minhash", pa.binary()),  # of the last user turn; see streams.prepare.near
        ("answer_masks", pa.list_(pa.string())),  # keyed hashes of what is masked in the answer
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("submitted_ms", pa.int64()),
        ("dated", pa.bool_()),  # whether submitted_ms is when it was said; an import without times is old
    ]
)


# Which of two rows was said later.
ORDER = ["submitted_ms", "partition", "offset"]
HASH_DIGITS = 16  # of a hash where rows are only compared: 64 bits tell as many apart as can be stored


def short_hashes(table: pa.Table, names: Iterable[str]) -> pa.Table:
    """The same with HASH_DIGITS of the hashes in these columns."""
    for name in names:
        place = table.schema.get_field_index(name)
        short = pc.utf8_slice_codeunits(table[name], 0, HASH_DIGITS)
        table = table.set_column(place, table.schema.field(place), short)
    return table


def latest(table: pa.Table, *names: str) -> pa.Table:
    """Of all rows with the same values in these columns the one said last, and of rows said at once the last one."""
    table = table.sort_by([(column, "ascending") for column in [*names, *ORDER]])  # a stable sort
    last = np.ones(table.num_rows, dtype=bool)
    if table.num_rows:
        columns = (table[name].combine_chunks() for name in names)
        changes = [pc.fill_null(pc.not_equal(values[:-1], values[1:]), True) for values in columns]
        last[:-1] = np.any([change.to_numpy(zero_copy_only=False) for change in changes], axis=0)
    return table.filter(pa.array(last))


def no_rows(schema: pa.Schema) -> pa.Table:
    """A table of this schema without rows. Arrow's own imports pandas, where there is one, in a third of a second."""
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def read_table(source: Any, columns: list[str] | None = None) -> pa.Table:
    """A shard's rows in the order of `SHARD_SCHEMA` (or these columns of it); what it does not have is empty.

    Raises ValueError for a column of another type, `pa.ArrowInvalid` for what is no Parquet file.
    """
    wanted = pa.schema([SHARD_SCHEMA.field(name) for name in columns]) if columns else SHARD_SCHEMA
    file = pq.ParquetFile(source)
    held = file.schema_arrow
    for field in wanted:
        if field.name in held.names and held.field(field.name).type != field.type:
            raise ValueError(f"shard column {field.name}: expected {field.type}, got {held.field(field.name).type}")
    table = file.read(columns=[name for name in wanted.names if name in held.names], use_threads=False)
    arrays = [
        table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)
