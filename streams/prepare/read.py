"""Reading: raw records become rows by the rules alone. What one record says depends on no other, so that helper
processes may read some of them: a crew shares a long batch out over the machine's cores.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import pyarrow as pa

from schemas.codec import ContractError
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams import kafka
from streams.kafka import Record
from streams.prepare.rules import Dropped, prepare

# What is decided by, besides the record's key: the row without its words.
FACTS = (
    "record_id", "subject_id", "inference_id", "model", "kind", "input_hash", "content_hash", "answer_hash", "minhash",
    "submitted_ms", "origin", "offset",
)  # fmt: skip
# Below this many records a helper's answer comes later than one's own.
WORTH_SHARING = 500


class Reading(msgspec.Struct):
    """What records of one partition say: a row (`SHARD_SCHEMA`) and its facts each, or why there is none."""

    rows: Any  # pa.RecordBatch; between processes its bytes
    facts: list[dict[str, Any]]
    dropped: dict[str, dict[str, int]]  # model → reason → records
    masked: dict[int, dict[str, int]]  # offset → kind → how often
    refused: dict[int, str]  # offset → what is wrong with it


def read(records: Sequence[Record], policies: Mapping[str, ModelPolicy], split_key: bytes) -> Reading:
    """Apply the rules to each record that is not a deletion."""
    rows: list[dict[str, Any]] = []
    keys: list[bytes | None] = []
    dropped: dict[str, dict[str, int]] = defaultdict(Counter)
    masked: dict[int, dict[str, int]] = {}
    refused: dict[int, str] = {}
    for record in records:
        if record.value is None:  # a deletion: there is nothing to learn from it
            continue
        try:
            envelope, event = kafka.decode(record)
            made = prepare(event, envelope, _policy(event.model, policies), split_key)
        except ContractError as error:
            refused[record.offset] = str(error)
            continue
        if isinstance(made, Dropped):
            dropped[event.model][made.reason] += 1
            continue
        if made.masked:
            masked[record.offset] = made.masked
        made.row["partition"], made.row["offset"] = record.partition, record.offset
        rows.append(made.row)
        keys.append(record.key)
    facts = [{"key": key, **{name: row[name] for name in FACTS}} for key, row in zip(keys, rows, strict=True)]
    return Reading(pa.RecordBatch.from_pylist(rows, schema=SHARD_SCHEMA), facts, dict(dropped), masked, refused)


def _policy(model: str, policies: Mapping[str, ModelPolicy]) -> ModelPolicy:
    if model not in policies:
        known = ", ".join(sorted(policies))
        raise ContractError(f"RecordSubmitted: no model {model!r} configured (known: {known}) - at `$.model`")
    return policies[model]


class HelperLostError(RuntimeError):
    """A helper process died: this one ends too, and the batch is read again by who is started in its place."""


class Crew:
    """This process and `helpers` more: spawned with the first batch that is worth it, asked once they are there."""

    def __init__(self, policies: Mapping[str, ModelPolicy], split_key: bytes, helpers: int = 0) -> None:
        self._policies, self._split_key, self._helpers = dict(policies), split_key, helpers
        self._started: list[Connection] = []
        self._warm: list[Connection] = []

    def read(self, records: Sequence[Record]) -> list[Reading]:
        """Readings of consecutive parts of `records`, in their order. Raises `HelperLostError`."""
        hands = min(len(self._ready(len(records))) + 1, len(records) // WORTH_SHARING)
        if hands < 2:
            return [read(records, self._policies, self._split_key)]
        cuts = [len(records) * hand // hands for hand in range(hands + 1)]
        parts = [records[start:end] for start, end in pairwise(cuts)]
        try:
            for pipe, part in zip(self._warm, parts[1:], strict=False):
                pipe.send_bytes(_ENCODER.encode(part))
            mine = read(parts[0], self._policies, self._split_key)
            return [mine, *(_received(pipe) for pipe, _ in zip(self._warm, parts[1:], strict=False))]
        except (EOFError, OSError) as error:
            raise HelperLostError("a helper process of prepare died") from error

    def wait_warm(self) -> None:
        """Start the helpers, if nothing has yet, and return once they are there."""
        self._ready(2 * WORTH_SHARING)
        for pipe in self._started:
            if pipe not in self._warm:
                pipe.poll(None)
        self._ready(2 * WORTH_SHARING)

    def _ready(self, records: int) -> list[Connection]:
        if records >= 2 * WORTH_SHARING and not self._started:
            self._started = [_helper(self._policies, self._split_key) for _ in range(self._helpers)]
        for pipe in [one for one in self._started if one not in self._warm and one.poll(0)]:
            pipe.recv_bytes()  # what it says first
            self._warm.append(pipe)
        return self._warm


# Plain values and Arrow's own format, no pickle.
_ENCODER = msgspec.msgpack.Encoder()
_READINGS = msgspec.msgpack.Decoder(Reading)
_RECORDS = msgspec.msgpack.Decoder(list[Record])


def _helper(policies: Mapping[str, ModelPolicy], split_key: bytes) -> Connection:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=help_out, args=(theirs, msgspec.msgpack.encode(policies), split_key), daemon=True).start()
    theirs.close()
    return ours


def help_out(pipe: Connection, policies: bytes, split_key: bytes) -> None:
    """A helper's life: read what it is sent until the one it helps is gone."""
    known = msgspec.msgpack.decode(policies, type=dict[str, ModelPolicy])
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        pipe.send_bytes(b"warm")
        while True:
            reading = read(_RECORDS.decode(pipe.recv_bytes()), known, split_key)
            reading.rows = reading.rows.serialize().to_pybytes()
            pipe.send_bytes(_ENCODER.encode(reading))


def _received(pipe: Connection) -> Reading:
    reading = _READINGS.decode(pipe.recv_bytes())
    reading.rows = pa.ipc.read_record_batch(pa.py_buffer(reading.rows), SHARD_SCHEMA)
    return reading
