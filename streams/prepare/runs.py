"""A map from integers to row numbers in sorted runs of numpy arrays, looked up by the batch: 12 bytes an entry, or 8.

A Python dict takes 100 bytes an entry. Runs are merged as in a log-structured tree, so that there are few of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MOST = 2**31 - 1
Columns = Mapping[str, Sequence[Any]]  # of rows, by name


class Runs:
    """Keys are unsigned integers of `key_type`, values from 0 to 2^31 - 1; a key's value is the one added last."""

    def __init__(self, key_type: DTypeLike = np.uint64) -> None:
        self._key_type = key_type
        self._runs: list[tuple[NDArray[Any], NDArray[np.int32]]] = []  # oldest first

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: NDArray[Any], values: NDArray[np.int64]) -> None:
        if len(keys) == 0:
            return
        self._runs.append(_sorted(keys.astype(self._key_type), values.astype(np.int32)))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(_sorted(*(np.concatenate(both) for both in zip(older, newer, strict=True))))

    def find(self, keys: NDArray[Any]) -> NDArray[np.int32]:
        """The value of each key, -1 for a key that is not there."""
        keys, found = keys.astype(self._key_type), np.full(len(keys), -1, dtype=np.int32)
        for known, values in self._runs:
            places = np.searchsorted(known, keys)
            places[places == len(known)] = 0
            hits = known[places] == keys
            found[hits] = values[places[hits]]
        return found


class Tally:
    """A small number by key, 0 where there is none: a batch's keys are loaded at once, then changed one by one.

    Memory: 12 bytes a key. Keys are unsigned integers of 64 bits.
    """

    def __init__(self) -> None:
        self._runs = Runs()
        self._loaded: dict[int, int] = {}
        self._changed: dict[int, int] = {}

    def load(self, keys: Sequence[int]) -> None:
        """Have what is known of these keys at hand; what was changed before is kept."""
        self._settle()
        found = self._runs.find(np.array(keys, dtype=np.uint64)).tolist()
        self._loaded = {key: max(0, value) for key, value in zip(keys, found, strict=True)}

    def __getitem__(self, key: int) -> int:
        return self._loaded.get(key, 0)

    def __setitem__(self, key: int, value: int) -> None:
        self._loaded[key] = self._changed[key] = value

    def add(self, keys: NDArray[np.uint64], most: int = MOST) -> None:
        """Add one for each time that a key is there, as far as `most`; what was loaded is not at hand any more."""
        self._settle()
        unique, counts = np.unique(keys, return_counts=True)
        now = np.maximum(self._runs.find(unique), 0).astype(np.int64) + counts
        self._runs.add(unique, np.minimum(now, most))
        self._loaded = {}

    def missing(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which keys have no number."""
        self._settle()
        return np.asarray(self._runs.find(keys) <= 0)

    def _settle(self) -> None:
        if self._changed:
            keys = np.fromiter(self._changed.keys(), dtype=np.uint64, count=len(self._changed))
            self._runs.add(keys, np.fromiter(self._changed.values(), dtype=np.int64, count=len(self._changed)))
            self._changed = {}


def key_of(*parts: object) -> int:
    """64 bits for what parts name, other ones in each process."""
    return hash(parts) & 0xFFFF_FFFF_FFFF_FFFF


def keys_of(*parts: Iterable[object]) -> NDArray[np.uint64]:
    """`key_of` of each row; a part is a column."""
    return np.array([hash(row) for row in zip(*parts, strict=False)], dtype=np.int64).view(np.uint64)


def _sorted(keys: NDArray[Any], values: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Ascending by key, the last value of each key alone."""
    order = np.argsort(keys, kind="stable")  # linear where two runs are merged
    keys = keys[order]
    last = np.concatenate([keys[1:] != keys[:-1], [True]])
    return keys[last], values[order[last]]


def grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """`array`, or a larger one that begins with it and has room for `rows` rows."""
    if rows <= len(array):
        return array
    larger = np.empty((max(rows, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
