"""A map from 64-bit keys to 64-bit values in sorted runs of numpy arrays: 16 bytes an entry, looked up by the batch.

A Python dict takes 100 bytes an entry. Runs are merged as in a log-structured tree, so that there are few of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Runs:
    """Values are not negative; of several values of one key, `find` gives the largest."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: NDArray[np.uint64], values: NDArray[np.int64]) -> None:
        if len(keys) == 0:
            return
        self._runs.append(_sorted(keys, values))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            (keys_a, values_a), (keys_b, values_b) = self._runs.pop(), self._runs.pop()
            self._runs.append(_sorted(np.concatenate([keys_a, keys_b]), np.concatenate([values_a, values_b])))

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The largest value of each key, -1 for a key that is not there."""
        found = np.full(len(keys), -1, dtype=np.int64)
        for known, values in self._runs:
            places = np.searchsorted(known, keys)
            places[places == len(known)] = 0
            hits = known[places] == keys
            found[hits] = np.maximum(found[hits], values[places[hits]])
        return found


def _sorted(keys: NDArray[np.uint64], values: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ascending by key, the largest value of each key alone."""
    order = np.lexsort((-values, keys))
    keys, values = keys[order], values[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    return keys[first], values[first]
