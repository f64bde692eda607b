"""What a job opens: `open_1m_vs_10k`, time and memory with a million stored rows against ten thousand.

Both have the same new rows, of which every fifth asks what an old row asks, and use as many replayed and as many judging
rows. What was stored is sorted (`streams.sorted_copies`) before, as each job does with what came since the last one; how
long that took is said on stderr. Each measurement runs in a process of its own (`python -m tests.bench.opening STORE NEW
OLD`): the rows that the trainer learns from and those that the gate judges by, from the references in a job.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.cli.output import progress
from schemas.events import ShardRef, ShardSet
from schemas.shards import SHARD_SCHEMA
from streams import sorted_copies
from streams.artifacts import ArtifactStore, get_shard_set, put_shard_set
from streams.prepare.near import PERMUTATIONS
from tests.bench.measure import Measured, note
from tests.parts import ROOT

MODEL, KEY = "support", b"a key of a benchmark"
LARGE, SMALL, NEW = 1_000_000, 10_000, 2_000
SHARD_ROWS = 1_000
TEST_SHARE, KNOWN_SHARE = 0.2, 0.2
DAY_MS, DAYS = 86_400_000, 300
TIMES = 3
ASKED = "<= 1.5"


def open_1m_vs_10k() -> Iterator[Measured]:
    figures: dict[str, dict[int, list[float]]] = {name: {} for name in ("seconds", "process_mb", "opened_mb")}
    with tempfile.TemporaryDirectory(prefix="bench-opening-") as folder:
        stores = {stored: _filled(Path(folder) / str(stored), stored) for stored in (SMALL, LARGE)}
        for _ in range(TIMES):
            for stored, (store, new, old) in stores.items():
                said = _opened(store, new, old)
                for name, values in figures.items():
                    values.setdefault(stored, []).append(said[name])
    for name, values in figures.items():
        note(f"{name}: " + ", ".join(f"{stored:,} rows {median(taken):.2f}" for stored, taken in values.items()))
        yield Measured(median(values[LARGE]) / median(values[SMALL]), None if name == "opened_mb" else ASKED, part=name)


def _filled(root: Path, stored: int) -> tuple[Path, ShardSet, ShardSet]:
    store = _store(root)
    with progress(f"storing {stored:,} rows", stored // SHARD_ROWS) as advance:
        old = []
        for number in range(stored // SHARD_ROWS):
            old.append(_shard(store, f"old-{number}", range(number * SHARD_ROWS, (number + 1) * SHARD_ROWS), stored))
            advance(1)
    new = [_shard(store, f"new-{n}", range(stored + n * SHARD_ROWS, stored + (n + 1) * SHARD_ROWS), stored)
           for n in range(NEW // SHARD_ROWS)]  # fmt: skip
    began = time.monotonic()
    sorted_copies.sort(store, MODEL, old)
    note(f"{stored:,} rows are sorted in {time.monotonic() - began:.1f} s")
    return root, put_shard_set(store, MODEL, new), put_shard_set(store, MODEL, old)


def _store(root: Path) -> ArtifactStore:
    return ArtifactStore(str(root), proof_key=KEY)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shard(store: ArtifactStore, name: str, numbers: range, stored: int) -> ShardRef:
    """Rows of 50 classes by people with ten rows each; a new row asks anew, or what an old one asks."""
    dice = np.random.default_rng(numbers.start)
    rows: list[dict[str, Any]] = []
    for number in numbers:
        known = number >= stored and dice.random() < KNOWN_SHARE
        asked = int(dice.integers(stored)) if known else number
        fact = _digest(f"fact {asked}")
        rows.append({
            "record_id": f"record-{number}", "subject_id": f"person-{number // 10}", "unit": f"person-{number // 10}",
            "conversation_id": "", "model": MODEL, "kind": "sft", "origin": "feedback", "sampled": "random",
            "split": "test" if dice.random() < TEST_SHARE else "train", "completion": f"intent_{asked % 50}",
            "messages": [{"role": "user", "content": f"question number {asked} about a thing of some length, please"}],
            "judges": True, "may_correct": False, "question": fact[:16], "input_hash": fact,
            "answer_hash": _digest(f"intent_{asked % 50}"), "minhash": dice.bytes(PERMUTATIONS), "partition": 0,
            "offset": number, "submitted_ms": (number * DAYS // max(stored, 1)) * DAY_MS + number, "dated": True,
        })  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SHARD_SCHEMA), sink, compression="zstd")
    path = f"shards/{name}.parquet"
    return ShardRef(shard_id=name, path=path, digest=store.put_bytes(path, sink.getvalue()), rows=len(rows))


def _opened(root: Path, new: ShardSet, old: ShardSet) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.bench.opening", str(root), json.dumps([_plain(new), _plain(old)])]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _plain(shards: ShardSet) -> dict[str, Any]:
    return {"path": shards.path, "digest": shards.digest, "shards": shards.shards, "rows": shards.rows}


def main() -> None:
    """One measurement: seconds, the highest memory of a process that can train, and how much of that is not imports."""
    import psutil

    from schemas.policy import ModelPolicy
    from trainers import sft  # noqa: F401  as in the child that does jobs
    from trainers.opened import judged_rows, taught_rows

    store, policy = _store(Path(sys.argv[1])), ModelPolicy()
    new, old = (ShardSet(**plain) for plain in json.loads(sys.argv[2]))
    Path("/proc/self/clear_refs").write_text("5")  # the highest point so far is forgotten
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    data = taught_rows(store, MODEL, "a job", get_shard_set(store, new), get_shard_set(store, old), policy)
    tests, _ = judged_rows(store, MODEL, new, old, policy)
    seconds = time.monotonic() - began
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    note(f"{len(data.rows)} rows teach ({data.replayed} replayed), {len(tests)} judge")
    print(json.dumps({"seconds": seconds, "process_mb": peak / (1 << 20), "opened_mb": (peak - before) / (1 << 20)}))


if __name__ == "__main__":
    main()
