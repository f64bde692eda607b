"""Which question a row asks: that of the row most like it, else its own. And how many people ask it.

A question is the last user turn with its near copies, whatever stands before it. It is common once FEW different units
have asked it: then people will ask it again, and what is trained on it and judged by it need not be kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.prepare.near import PERMUTATIONS, NearIndex, band_keys
from streams.prepare.people import MADE_UP
from streams.prepare.runs import Columns, Tally, key_of, keys_of

FEW = 5
# Of a common question so many rows of a side keep their words in each period.
WORDED, PERIOD_MS = 5, 30 * 86_400_000
Row = dict[str, Any]


def is_known(question: str) -> bool:
    """Whether a row asks a question at all; a document does not."""
    return question != ""


class Questions:
    """What committed rows ask."""

    def __init__(self) -> None:
        self._near = NearIndex()
        self._askers = Tally()  # (model, question) → units, as far as FEW
        self._asked_by = Tally()  # (model, question, unit) → 1
        self._worded = Tally()  # (model, question, kind, split, period) → rows

    def assign(self, rows: Sequence[Row], least: float) -> None:
        """Give each row that is nearly like a known one its question; what is new is known from now on."""
        asking = [row for row in rows if is_known(row["question"])]
        if not asking or least >= 1:
            return
        columns = ([row[name] for row in asking] for name in ("minhash", "model", "question"))
        signatures, salts, names = _arrays(*columns)
        found, known = self._near.find(signatures, salts, least)
        alone = _without_twin(signatures, salts)
        batch = NearIndex()
        fresh = []
        for number, row in enumerate(asking):
            one = slice(number, number + 1)
            if not found[number] and not alone[number]:  # few share a band with another of the batch
                found[number : number + 1], known[one] = batch.find(signatures[one], salts[one], least)
                if not found[number]:
                    batch.add(signatures[one], salts[one], names[one])
            if found[number]:
                row["question"] = f"{int(known[number]):016x}"
            else:
                fresh.append(number)
        self._near.add(signatures[fresh], salts[fresh], names[fresh])

    def load(self, rows: Sequence[Row]) -> None:
        """Have what is known of these rows' questions at hand."""
        self._askers.load([_question(row) for row in rows])
        self._asked_by.load([_asker(row) for row in rows])
        self._worded.load([_place(row) for row in rows])

    def ask(self, row: Row) -> bool:
        """Count a row; whether it may keep its words. `load` comes before."""
        question, asker, place = _question(row), _asker(row), _place(row)
        if not self._asked_by[asker]:
            self._asked_by[asker] = 1
            self._askers[question] = min(FEW, self._askers[question] + 1)
        if self._askers[question] >= FEW and self._worded[place] >= WORDED:
            return False
        self._worded[place] += 1
        return True

    def remember(self, model: str, columns: Columns) -> None:
        """Take in committed rows of one model that ask something, those without words too."""
        questions, units, kinds, origins = (columns[name] for name in ("question", "unit", "kind", "origin"))
        keys = keys_of(repeat(model), questions)
        unique, first = np.unique(keys, return_index=True)
        first = np.sort(first[self._askers.missing(unique)])
        said = np.array([origin not in MADE_UP for origin in origins], dtype=bool)
        askers = keys_of(repeat(model), questions, units)
        once = np.unique(askers[said], return_index=True)[1]
        new = once[self._asked_by.missing(askers[said][once])]
        self._asked_by.add(askers[said][new], 1)
        self._askers.add(keys[said][new], FEW)
        periods = [at_ms // PERIOD_MS for at_ms in columns["submitted_ms"]]
        places = keys_of(repeat(model), questions, kinds, columns["split"], periods)
        self._worded.add(places[said & np.array([kind != "asked" for kind in kinds], dtype=bool)])
        if len(first):
            hashes, names = ([columns[name][row] for row in first.tolist()] for name in ("minhash", "question"))
            self._near.add(*_arrays(hashes, [model] * len(first), names))

def _question(row: Row) -> int:
    return key_of(row["model"], row["question"])


def _asker(row: Row) -> int:
    return key_of(row["model"], row["question"], row["unit"])


def _place(row: Row) -> int:
    return key_of(row["model"], row["question"], row["kind"], row["split"], row["submitted_ms"] // PERIOD_MS)


def _arrays(
    minhashes: Sequence[bytes], models: Sequence[str], questions: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint64]]:
    """Signatures, models as salts, questions as names."""
    signatures = np.frombuffer(b"".join(minhashes), dtype=np.uint8).reshape(-1, PERMUTATIONS)
    return signatures, keys_of(models), np.array([int(question, 16) for question in questions], dtype=np.uint64)


def _without_twin(signatures: NDArray[np.uint8], salts: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows share no band with any other row of the batch."""
    keys = band_keys(signatures, salts)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray((counts[inverse.reshape(keys.shape)] == 1).all(axis=1))
