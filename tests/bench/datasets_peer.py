"""The `datasets` pipeline of `prepare_vs_datasets`: `python -m tests.bench.datasets_peer RULES RAW.parquet TARGET.parquet`.

RAW has the columns `value` (a record's JSON body) and `offset`. The pipeline prepares in batches of 1,000 in two
processes, admits rows one batch after the other (what they say depends on all before), writes TARGET and prints one
JSON line {"seconds"}. The clock starts with the bodies in memory, everything imported, and stops when the file is
written. RULES is `our` (our very code) or `plain`: the same rules as one writes them down with the same libraries,
without our cheap looks that spare most texts a repair, a pattern or the search for phone numbers.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from typing import Any

import datasets
import ftfy
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import codec
from schemas.shards import SHARD_SCHEMA
from streams.prepare import pii, rules
from streams.prepare.admit import Admission
from streams.prepare.rules import Dropped, prepare
from streams.prepare.shard import table_of
from tests.bench import load
from tests.ids import SPLIT_KEY

PROCESSES, BATCH, ADMITTED = 2, 1_000, 5_000
# A shard's columns with what admission needs besides.
PREPARED_SCHEMA = SHARD_SCHEMA.append(pa.field("named", pa.bool_())).append(pa.field("open", pa.string()))


def prepared(batch: dict[str, list[Any]]) -> pa.Table:
    """Rows of the records of a batch that make one."""
    rows = []
    for value, offset in zip(batch["value"], batch["offset"], strict=True):
        envelope, event = codec.decode("training.raw", value, None, partition=0, offset=offset, timestamp_ms=0)
        result = prepare(event, envelope, load.POLICY, SPLIT_KEY)
        if not isinstance(result, Dropped):
            opened = json.dumps(result.row["open"])
            rows.append({**result.row, "partition": 0, "offset": offset, "open": opened})
    return pa.Table.from_pylist(rows, schema=PREPARED_SCHEMA)


def plainly_prepared(batch: dict[str, list[Any]]) -> pa.Table:
    """The same rows, with every text given to the libraries and to every pattern; in a process of its own."""
    anything = re.compile("")
    rules.repair = _repaired
    pii._suspicious, pii._SEVEN_DIGITS = anything.search, anything
    pii._MASKS = tuple((kind, anything.search, *rest) for kind, _, *rest in pii._MASKS)
    return prepared(batch)


def _repaired(text: str) -> str:
    while (mended := ftfy.fix_text(text, normalization="NFC").strip()) != text:
        text = mended
    return text


PREPARED = {"our": prepared, "plain": plainly_prepared}


def admitted(batch: pa.Table, state: Admission) -> pa.Table:
    """The rows of a batch that say what no earlier row said, exactly or nearly."""
    facts = [
        {**row, "number": number, "open": json.loads(row["open"])} for number, row in enumerate(batch.to_pylist())
    ]
    batch = batch.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA)
    return table_of(state.admit(facts, load.POLICY).rows, batch)


def main() -> None:
    kind, source, target = sys.argv[1:]
    datasets.disable_progress_bars()
    state, features = Admission(SPLIT_KEY), datasets.Features.from_arrow_schema(SHARD_SCHEMA)
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        table = pq.read_table(source)
        begun = time.perf_counter()
        raw = datasets.Dataset(table)
        rows = raw.map(
            PREPARED[kind], batched=True, batch_size=BATCH, num_proc=PROCESSES, remove_columns=raw.column_names,
            features=datasets.Features.from_arrow_schema(PREPARED_SCHEMA),
        )  # fmt: skip
        kept = rows.with_format("arrow").map(
            admitted, batched=True, batch_size=ADMITTED, features=features, remove_columns=["named", "open"], fn_kwargs={"state": state},
            new_fingerprint="admitted",  # the state is not to be hashed: it changes with every batch
        )  # fmt: skip
        kept.to_parquet(target)
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)


if __name__ == "__main__":
    from tests.bench import datasets_peer  # what is in __main__ would be pickled with all that it refers to

    datasets_peer.main()
