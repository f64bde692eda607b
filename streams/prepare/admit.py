"""Which rows of a batch are admitted, given the rows that committed shards hold already.

In this order: a record said again in the same batch (its newest word counts), duplicates, contradictions (the newest
answer to a question holds, and the newest word of a record; the older one is dropped here, or passed over when a job
reads the shards), near duplicates, the caps per subject and per Kafka key (an application may name its user there and
not in the record, whose questions would then be a subject each). The state is a pure function of rows that were
committed: `remember` rebuilds it, then without those that were erased since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.policy import ModelPolicy
from streams.prepare.near import PERMUTATIONS, NearIndex, band_keys
from streams.prepare.runs import Runs, grown

# The columns of a shard that the state is rebuilt from.
REMEMBERED = [
    "model", "record_id", "kind", "input_hash", "content_hash", "answer_hash", "minhash", "submitted_ms", "origin",
]  # fmt: skip
Row = dict[str, Any]


def _keys(hashes: Iterable[str]) -> NDArray[np.uint64]:
    """The first 64 bits of each hexadecimal hash."""
    return np.frombuffer(bytes.fromhex("".join([one[:16] for one in hashes])), dtype=">u8").astype(np.uint64)


def _facts(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """What each row is about: an SFT row is one answer to its question, any other is a fact of its own."""
    return _keys(row["input_hash"] if row["kind"] == "sft" else row["content_hash"] for row in rows)


def _signatures(rows: Sequence[Row]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(row["minhash"] for row in rows), dtype=np.uint8).reshape(-1, PERMUTATIONS)


def _answers(rows: Sequence[Row]) -> NDArray[np.uint64]:
    return _keys(row["answer_hash"] for row in rows)


def _contents(rows: Sequence[Row]) -> NDArray[np.uint64]:
    return _keys(row["content_hash"] for row in rows)


def _records(rows: Sequence[Row]) -> NDArray[np.uint64]:
    """Which record of which model each row is of; other numbers in another process."""
    return np.array([hash((row["model"], row["record_id"])) for row in rows], dtype=np.int64).view(np.uint64)


class Admission:
    """What committed rows say; see the module. Memory: 44 bytes a row, and the bounded index of near duplicates."""

    def __init__(self) -> None:
        self._latest = Runs()  # a fact → where its newest answer stands in the three arrays
        self._latest_of_record = Runs()
        self._near = NearIndex()
        # The low halves of hashes: they are compared for one fact or record alone.
        self._answers = np.empty(0, dtype=np.uint32)
        self._contents = np.empty(0, dtype=np.uint32)
        self._times = np.empty(0, dtype=np.int64)
        self._count = 0

    def remember(self, table: pa.Table) -> None:
        """Take in the rows of committed shards (columns REMEMBERED), which may come in any order."""
        rows = [row for row in table.to_pylist() if row["origin"] != "augmented"]
        rows.sort(key=lambda row: row["submitted_ms"])  # of those about one fact the last holds
        self._take(rows)

    def admit(self, rows: Sequence[Row], policy: ModelPolicy) -> tuple[list[Row], Counter[str], int]:
        """The rows to keep, in their order; what was dropped, by reason; how many contradict an earlier row.

        The rows kept are remembered: call it once per batch, and start anew (`remember`) if the batch is aborted.
        """
        dropped: Counter[str] = Counter()
        rows = _newest_of_each_record(rows, dropped)
        fresh, corrections, contradictions = self._without_known(rows, dropped)
        fresh = self._without_near(fresh, policy.near_duplicate_similarity, dropped)
        # A correction is news however much it is like a row of before: it never falls as a near duplicate.
        rows = sorted([*fresh, *corrections], key=lambda row: row["offset"])
        rows = _capped(rows, "subject_id", policy.max_rows_per_subject, "subject cap", dropped)
        rows = _capped(rows, "key", policy.max_rows_per_key, "key cap", dropped)
        self._take(rows)
        return rows, dropped, contradictions

    def _take(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        start, end = self._count, self._count + len(rows)
        answers, times = _answers(rows), np.array([row["submitted_ms"] for row in rows], dtype=np.int64)
        self._answers = grown(self._answers, end)
        self._contents = grown(self._contents, end)
        self._times = grown(self._times, end)
        self._answers[start:end] = _half(answers)
        self._contents[start:end] = _half(_contents(rows))
        self._times[start:end] = times
        self._count = end
        self._add(self._latest_of_record, _records(rows), times, start)
        newest = self._add(self._latest, _facts(rows), times, start)
        self._near.add(_signatures(rows)[newest], answers[newest])

    def _add(
        self, latest: Runs, keys: NDArray[np.uint64], times: NDArray[np.int64], start: int
    ) -> NDArray[np.int64]:
        """Note under these keys the entries from `start` on, where none is newer; returns which of them."""
        known = latest.find(keys)
        newest = np.flatnonzero((known < 0) | (self._times[known] <= times))
        latest.add(keys[newest], newest + start)
        return newest

    def _known(
        self, latest: Runs, keys: NDArray[np.uint64], said: NDArray[np.uint32]
    ) -> list[tuple[int, int] | None]:
        """(what it says, when) of the newest committed row about each fact, or of each record."""
        return [
            (int(said[entry]), int(self._times[entry])) if entry >= 0 else None for entry in latest.find(keys).tolist()
        ]

    def _without_known(self, rows: Sequence[Row], dropped: Counter[str]) -> tuple[list[Row], list[Row], int]:
        """Rows that are news; rows that correct what a committed row answers or what their own record said before;
        how many of these contradict a committed answer."""
        fresh: dict[int, Row] = {}
        corrections: dict[int, Row] = {}
        contradictions: set[int] = set()
        facts, answers, contents = _facts(rows), _half(_answers(rows)).tolist(), _half(_contents(rows)).tolist()
        committed = self._known(self._latest, facts, self._answers)
        own = self._known(self._latest_of_record, _records(rows), self._contents)
        said: dict[int, tuple[int, int]] = {}  # in this batch, as `_known` gives what was said before
        for row, fact, answer, content, before, mine in zip(
            rows, facts.tolist(), answers, contents, committed, own, strict=True
        ):
            here, when = said.get(fact), row["submitted_ms"]
            known = here or before
            moved = mine is not None and mine[0] != content  # the record said something else since
            if mine is not None and moved and mine[1] > when:
                dropped["superseded"] += 1
            elif known and known[0] == answer and not moved:
                dropped["duplicate"] += 1
            elif known and known[1] > when:
                dropped["contradicted"] += 1
            else:
                dropped["contradicted"] += here is not None
                said[fact] = answer, when
                fresh.pop(fact, None)
                corrections.pop(fact, None)
                (corrections if before or moved else fresh)[fact] = row
                if before and before[0] != answer:
                    contradictions.add(fact)
        return list(fresh.values()), list(corrections.values()), len(contradictions)

    def _without_near(self, rows: list[Row], least: float, dropped: Counter[str]) -> list[Row]:
        if not rows:
            return rows
        signatures, answers = _signatures(rows), _answers(rows)
        far = ~self._near.find(signatures, answers, least)
        batch = NearIndex()
        kept = []
        # Within the batch one row at a time, as each decides about those behind it; few share a band with another.
        alone = _without_twin(signatures, answers)
        for number, row in enumerate(rows):
            if far[number] and not alone[number]:
                one = slice(number, number + 1)
                far[number] = not batch.find(signatures[one], answers[one], least)[0]
                if far[number]:
                    batch.add(signatures[one], answers[one])
            if far[number]:
                kept.append(row)
        dropped["near duplicate"] += len(rows) - len(kept)
        return kept


def _without_twin(signatures: NDArray[np.uint8], answers: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows share no band with any other row of the batch."""
    keys = band_keys(signatures, answers)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray((counts[inverse.reshape(keys.shape)] == 1).all(axis=1))


def _newest_of_each_record(rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    newest: dict[str, Row] = {}
    for row in rows:
        before = newest.get(row["record_id"])
        if before is None or row["submitted_ms"] >= before["submitted_ms"]:
            newest.pop(row["record_id"], None)
            newest[row["record_id"]] = row
    dropped["superseded"] += len(rows) - len(newest)
    return list(newest.values())


def _capped(rows: Sequence[Row], by: str, most: int, reason: str, dropped: Counter[str]) -> list[Row]:
    said: Counter[Any] = Counter()
    kept = []
    for row in rows:
        who = row.get(by)
        said[who] += 1
        if not who or said[who] <= most:
            kept.append(row)
    dropped[reason] += len(rows) - len(kept)
    return kept


def _half(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return hashes.astype(np.uint32)
