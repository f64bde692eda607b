"""Near duplicates: MinHash signatures of character shingles, and an index of bands over the newest rows.

A signature keeps the low byte of 64 permutations (b-bit minwise hashing, Li and König 2010), so that each of its 8
bands of 8 bytes is one 64-bit key. Two texts share a band with probability 1 - (1 - s^8)^8 at similarity s; every
shared band is checked against the whole signature before it counts.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from streams.prepare.runs import Runs, grown

PERMUTATIONS, BANDS = 64, 8
SHINGLE = 5
SEED = 42
# How many rows are remembered: the newest this many, and up to as many before them.
GENERATION = 100_000
_DIGEST = f"<{PERMUTATIONS}I"
# Odd, so that multiplying by it loses nothing (Knuth's golden ratio of 2^64).
_MIX = np.uint64(0x9E3779B97F4A7C15)


def signature(text: str) -> bytes:
    """The MinHash of a text's shingles of 5 characters: 64 bytes."""
    shingles = [text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))]
    sketch = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    sketch.update(shingles)
    return struct.pack(_DIGEST, *sketch.digest())[::4]  # the low byte of each


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The Jaccard similarity that two signatures estimate; one byte in 256 agrees by chance."""
    agreeing = float(np.mean(one == other))
    return max(0.0, (agreeing - 1 / 256) / (1 - 1 / 256))


def similarities(some: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`similarity` of each of n signatures with its counterpart: (n,)."""
    agreeing = (some == others).mean(axis=1)
    return np.asarray(np.maximum(0.0, (agreeing - 1 / 256) / (1 - 1 / 256)))


def band_keys(signatures: NDArray[np.uint8], row_salts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(rows, 8) keys: equal where a band and the row's salt are."""
    bands = np.ascontiguousarray(signatures).view("<u8")
    salts = np.arange(1, BANDS + 1, dtype=np.uint64) * _MIX
    return (bands ^ salts) + (row_salts * _MIX)[:, None]


class NearIndex:
    """The signatures of the newest rows, by their bands, each with a name. Memory: 136 bytes a row, bounded."""

    def __init__(self, generation: int = GENERATION) -> None:
        self._generation = generation
        self._tables = [_Table(), _Table()]  # newest first

    def add(self, signatures: NDArray[np.uint8], salts: NDArray[np.uint64], names: NDArray[np.uint64]) -> None:
        """(rows, 64) signatures; a row is found under its own salt alone, by its name."""
        if self._tables[0].rows >= self._generation:
            self._tables = [_Table(), self._tables[0]]
        self._tables[0].add(signatures, band_keys(signatures, salts), names)

    def find(
        self, signatures: NDArray[np.uint8], salts: NDArray[np.uint64], least: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """Which of these rows are at least `least` similar to a known one, and the name of the most similar."""
        keys = band_keys(signatures, salts)
        best = np.zeros(len(signatures))
        names = np.zeros(len(signatures), dtype=np.uint64)
        for table in self._tables:
            for row, places in table.candidates(keys):
                for place in places:
                    alike = similarity(signatures[row], table.signatures[place])
                    if alike >= least and alike > best[row]:
                        best[row], names[row] = alike, table.names[place]
        return best > 0, names


class _Table:
    def __init__(self) -> None:
        self.rows = 0
        self._bands = Runs(np.uint32)
        self.signatures = np.empty((0, PERMUTATIONS), dtype=np.uint8)
        self.names = np.empty(0, dtype=np.uint64)

    def add(self, signatures: NDArray[np.uint8], keys: NDArray[np.uint64], names: NDArray[np.uint64]) -> None:
        end = self.rows + len(signatures)
        self.signatures, self.names = grown(self.signatures, end), grown(self.names, end)
        self.signatures[self.rows : end], self.names[self.rows : end] = signatures, names
        self._bands.add(_half(keys), np.repeat(np.arange(self.rows, end, dtype=np.int64), BANDS))
        self.rows = end

    def candidates(self, keys: NDArray[np.uint64]) -> Sequence[tuple[int, NDArray[np.int32]]]:
        """(row asked for, places of rows that share a band with it), where there are any."""
        if self.rows == 0:
            return []
        places = self._bands.find(_half(keys)).reshape(keys.shape)
        hits = np.flatnonzero((places >= 0).any(axis=1))
        return [(int(row), np.unique(places[row][places[row] >= 0])) for row in hits]


def _half(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """32 bits of each key: every find is checked against its signature, so that a chance meeting costs only that."""
    return (keys.ravel() * _MIX) >> np.uint64(32)
