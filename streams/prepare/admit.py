"""Which rows of a batch are admitted, given the rows that committed shards hold already.

In this order: a record said again in the same batch (its newest word counts), duplicates, contradictions (the newest
answer to a question holds, and the newest word of a record; the older one is dropped here, or passed over when a job
reads the shards), near duplicates, the caps per subject and per Kafka key (an application may name its user there and
not in the record, whose questions would then be a subject each). The state is a pure function of rows that were
committed: `remember` rebuilds it, then without those that were erased since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.policy import ModelPolicy
from streams.prepare.near import PERMUTATIONS, NearIndex, band_keys
from streams.prepare.runs import Runs, grown

# The columns of a shard that the state is rebuilt from.
REMEMBERED = [
    "model", "record_id", "kind", "input_hash", "content_hash", "answer_hash", "minhash", "submitted_ms", "origin",
]  # fmt: skip
HASHES, KEY_DIGITS = ("input_hash", "content_hash", "answer_hash"), 16
Row = dict[str, Any]


def _keys(hashes: Iterable[str]) -> NDArray[np.uint64]:
    """The first 64 bits of each hexadecimal hash."""
    return np.frombuffer(bytes.fromhex("".join([one[:KEY_DIGITS] for one in hashes])), dtype=">u8").astype(np.uint64)


class _Said(NamedTuple):
    """What rows say, an entry each. A fact is what a row is about: an SFT row is one answer to its question, any other
    is a fact of its own. `records` says which record of which model it is of, by other numbers in another process."""

    facts: NDArray[np.uint64]
    records: NDArray[np.uint64]
    answers: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    times: NDArray[np.int64]
    signatures: NDArray[np.uint8]  # (rows, PERMUTATIONS)


def _said(columns: Mapping[str, Sequence[Any]]) -> _Said:
    """What rows say, given as the REMEMBERED columns of their table."""
    contents = _keys(columns["content_hash"])
    sft = np.array([kind == "sft" for kind in columns["kind"]], dtype=bool)
    records = [hash(one) for one in zip(columns["model"], columns["record_id"], strict=True)]
    return _Said(
        facts=np.where(sft, _keys(columns["input_hash"]), contents),
        records=np.array(records, dtype=np.int64).view(np.uint64),
        answers=_keys(columns["answer_hash"]),
        contents=contents,
        times=np.array(columns["submitted_ms"], dtype=np.int64),
        signatures=np.frombuffer(b"".join(columns["minhash"]), dtype=np.uint8).reshape(-1, PERMUTATIONS),
    )


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
        table = table.filter(pc.not_equal(table["origin"], "augmented"))
        # Of those about one fact the last holds.
        order = np.argsort(table["submitted_ms"].to_numpy(), kind="stable")
        self._take(_said(table.take(pa.array(order)).to_pydict()))

    def admit(self, rows: Sequence[Row], policy: ModelPolicy) -> tuple[list[Row], Counter[str], int]:
        """The rows to keep, in their order; what was dropped, by reason; how many contradict an earlier row.

        The rows kept are remembered: call it once per batch, and start anew (`remember`) if the batch is aborted.
        """
        dropped: Counter[str] = Counter()
        rows = _newest_of_each_record(rows, dropped)
        said = _said({name: [row[name] for row in rows] for name in REMEMBERED})
        fresh, corrections, contradictions = self._without_known(said, dropped)
        fresh = self._without_near(fresh, said, policy.near_duplicate_similarity, dropped)
        # A correction is news however much it is like a row of before: it never falls as a near duplicate.
        kept = sorted([*fresh, *corrections], key=lambda number: rows[number]["offset"])
        kept = _capped(kept, rows, "subject_id", policy.max_rows_per_subject, "subject cap", dropped)
        kept = _capped(kept, rows, "key", policy.max_rows_per_key, "key cap", dropped)
        self._take(_Said._make(column[kept] for column in said))
        return [rows[number] for number in kept], dropped, contradictions

    def _take(self, said: _Said) -> None:
        if not len(said.times):
            return
        start, end = self._count, self._count + len(said.times)
        self._answers = grown(self._answers, end)
        self._contents = grown(self._contents, end)
        self._times = grown(self._times, end)
        self._answers[start:end] = _half(said.answers)
        self._contents[start:end] = _half(said.contents)
        self._times[start:end] = said.times
        self._count = end
        self._add(self._latest_of_record, said.records, said.times, start)
        newest = self._add(self._latest, said.facts, said.times, start)
        self._near.add(said.signatures[newest], said.answers[newest])

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

    def _without_known(self, now: _Said, dropped: Counter[str]) -> tuple[list[int], list[int], int]:
        """Which rows are news; which correct what a committed row answers or what their own record said before;
        how many of these contradict a committed answer."""
        fresh: dict[int, int] = {}
        corrections: dict[int, int] = {}
        contradictions: set[int] = set()
        committed = self._known(self._latest, now.facts, self._answers)
        own = self._known(self._latest_of_record, now.records, self._contents)
        said: dict[int, tuple[int, int]] = {}  # in this batch, as `_known` gives what was said before
        times, facts = now.times.tolist(), now.facts.tolist()
        answers, contents = _half(now.answers).tolist(), _half(now.contents).tolist()
        for number, (when, fact, answer, content, before, mine) in enumerate(
            zip(times, facts, answers, contents, committed, own, strict=True)
        ):
            here = said.get(fact)
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
                (corrections if before or moved else fresh)[fact] = number
                if before and before[0] != answer:
                    contradictions.add(fact)
        return list(fresh.values()), list(corrections.values()), len(contradictions)

    def _without_near(self, numbers: list[int], now: _Said, least: float, dropped: Counter[str]) -> list[int]:
        if not numbers:
            return numbers
        signatures, answers = now.signatures[numbers], now.answers[numbers]
        far = ~self._near.find(signatures, answers, least)
        batch = NearIndex()
        # Within the batch one row at a time, as each decides about those behind it; few share a band with another.
        alone = _without_twin(signatures, answers)
        for number in range(len(numbers)):
            if far[number] and not alone[number]:
                one = slice(number, number + 1)
                far[number] = not batch.find(signatures[one], answers[one], least)[0]
                if far[number]:
                    batch.add(signatures[one], answers[one])
        dropped["near duplicate"] += len(numbers) - int(far.sum())
        return [number for number, keep in zip(numbers, far.tolist(), strict=True) if keep]


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


def _capped(
    numbers: list[int], rows: Sequence[Row], by: str, most: int, reason: str, dropped: Counter[str]
) -> list[int]:
    said: Counter[Any] = Counter()
    kept = []
    for number in numbers:
        who = rows[number].get(by)
        said[who] += 1
        if not who or said[who] <= most:
            kept.append(number)
    dropped[reason] += len(numbers) - len(kept)
    return kept


def _half(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return hashes.astype(np.uint32)
