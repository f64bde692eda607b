"""Landing tables: the ClickHouse table and the Arrow schema of each event, derived from its struct.

Scalars become columns of their own type, everything nested becomes one String column holding JSON. Every
table carries where its row came from (`_topic`, `_partition`, `_offset`; `_key`), which is also its identity: a
replayed insert collapses in the ReplacingMergeTree and views read FINAL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
from msgspec.structs import astuple

from schemas.codec import Envelope
from schemas.topics import TOPICS, Topic

DATABASE = "tuneloop"
_TIME = pa.timestamp("ms", tz="UTC")


@dataclass(frozen=True)
class Column:
    """One column: ClickHouse type, Arrow type, and whether the value is written as JSON text."""

    name: str
    clickhouse: str
    arrow: pa.DataType
    as_json: bool = False
    nullable: bool = False


# One record to land: its envelope, its event, and the record (or what has its place). A plain tuple:
# one with names takes five times as long to make, and these are made per record.
Landed = tuple[Envelope, Any, Any]


META: tuple[Column, ...] = (
    Column("ts", "DateTime64(3, 'UTC')", _TIME),
    Column("ce_id", "String", pa.string()),
    Column("ce_source", "LowCardinality(String)", pa.string()),
    Column("ce_subject", "String", pa.string()),
    Column("correlation_id", "String", pa.string()),
    Column("causation_id", "String", pa.string()),
    Column("_topic", "LowCardinality(String)", pa.string()),
    Column("_partition", "Int32", pa.int32()),
    Column("_offset", "Int64", pa.int64()),
    # As it came: by it a deletion finds what it deletes.
    Column("_key", "String", pa.binary()),
    # Set by the server when the row is inserted, so it says when the row could be asked for.
    Column("_landed_at", "DateTime64(3, 'UTC') DEFAULT now64(3)", _TIME),
)
_SENT = META[:-1]
_ENVELOPE_FIELDS = ("time_ms", "id", "source", "subject", "correlation_id", "causation_id")  # META's first six
_SCALARS: dict[str, tuple[str, pa.DataType]] = {
    "StrType": ("String", pa.string()),
    "IntType": ("Int64", pa.int64()),
    "FloatType": ("Float64", pa.float64()),
    "BoolType": ("Bool", pa.bool_()),
}


def table_name(event: type[msgspec.Struct]) -> str:
    """`InferenceServed` lands in `inference_served`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()


def columns(event: type[msgspec.Struct]) -> list[Column]:
    """The event's own columns, in declaration order, then the META columns."""
    info = msgspec.inspect.type_info(event)
    return [_column(field.encode_name, field.type) for field in info.fields] + list(META)  # type: ignore[attr-defined]


def _column(name: str, kind: Any) -> Column:
    nullable = False
    if isinstance(kind, msgspec.inspect.UnionType):
        members = [member for member in kind.types if not isinstance(member, msgspec.inspect.NoneType)]
        nullable = len(members) < len(kind.types)
        kind = members[0] if len(members) == 1 else None
    scalar = _SCALARS.get(type(kind).__name__)
    if scalar is None:
        return Column(name, "String", pa.string(), as_json=True)
    clickhouse, arrow = scalar
    if name == "model":
        clickhouse = "LowCardinality(String)"
    return Column(name, f"Nullable({clickhouse})" if nullable else clickhouse, arrow, nullable=nullable)


def create_table(event: type[msgspec.Struct]) -> str:
    """The CREATE TABLE statement of one event's landing table."""
    fields = columns(event)
    lines = ",\n".join(f"    `{column.name}` {column.clickhouse}" for column in fields)
    order = "model, ts" if any(column.name == "model" for column in fields) else "ts"
    return (
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.{table_name(event)}\n(\n{lines}\n)\n"
        f"ENGINE = ReplacingMergeTree\nORDER BY ({order}, _partition, _offset)\n"
        # Rows that were deleted leave the disk with the part that held them, and with what asked for it.
        "SETTINGS old_parts_lifetime = 1, cleanup_delay_period = 1, cleanup_delay_period_random_add = 1, "
        "max_cleanup_delay_period = 5, finished_mutations_to_keep = 1"
    )


def landing_sql() -> str:
    """Every landing table, as the first migration holds it."""
    statements = [f"CREATE DATABASE IF NOT EXISTS {DATABASE}"]
    statements += [create_table(event) for topic in TOPICS for event in topic.events]
    return ";\n\n".join(statements) + ";\n"


def tables_of(topic: Topic) -> list[str]:
    return [table_name(event) for event in topic.events]


_json = msgspec.json.Encoder()
_columns_cache: dict[type[msgspec.Struct], tuple[list[Column], pa.Schema]] = {}


def _shape(event: type[msgspec.Struct]) -> tuple[list[Column], pa.Schema]:
    if event not in _columns_cache:
        fields = columns(event)
        own = fields[: -len(META)]
        _columns_cache[event] = own, pa.schema([(column.name, column.arrow) for column in [*own, *_SENT]])
    return _columns_cache[event]


def _field(structs: Sequence[Any], name: str) -> list[Any]:
    return list(map(attrgetter(name), structs))  # a loop in C: this runs for every field of every record


def arrow_table(event: type[msgspec.Struct], rows: Sequence[Landed]) -> pa.Table:
    """Rows of one event as an Arrow table in the landing table's column order (without `_landed_at`)."""
    own, schema = _shape(event)
    envelopes, events, places = zip(*rows, strict=True)
    data: list[Any] = list(zip(*map(astuple, events), strict=True))
    for number, column in enumerate(own):
        if column.as_json:
            data[number] = [_json.encode(value).decode() for value in data[number]]
    data += [_field(envelopes, name) for name in _ENVELOPE_FIELDS]
    data += [_field(places, name) for name in ("topic", "partition", "offset")]
    data.append([key or b"" for key in _field(places, "key")])
    arrays = [_array(values, field.type) for values, field in zip(data, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except OverflowError:  # JSON has integers up to 2^64: one that is larger than a column's must not hold the rest up
        most = 2 ** (kind.bit_width - 1) - 1
        return pa.array([min(value, most) for value in values], type=kind)
