"""The newest thing that was said about each of many keys, looked up by the batch. Memory: 24 bytes a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streams.prepare.runs import Runs, grown


class Word(NamedTuple):
    """What was said last, as the first 32 bits of its hash, and when (Unix ms)."""

    digest: int
    time_ms: int

    def says(self, content_hash: str) -> bool:
        """Whether this is what was said; chance meets one of 4 billion, and is compared under one key alone."""
        return self.digest == _short(content_hash)


class Said:
    """See the module. Of two words under a key the later holds, and of two at once the one said last."""

    def __init__(self) -> None:
        self._places = Runs()
        self._digests = np.empty(0, dtype=np.uint32)
        self._times = np.empty(0, dtype=np.int64)
        self._count = 0
        self._loaded: dict[int, Word] = {}
        self._fresh: dict[int, Word] = {}

    def load(self, keys: Sequence[int]) -> None:
        """Have what is known of these keys at hand."""
        self._settle()
        places = self._places.find(np.array(keys, dtype=np.uint64))
        self._loaded = {
            key: Word(int(self._digests[place]), int(self._times[place]))
            for key, place in zip(keys, places.tolist(), strict=True)
            if place >= 0
        }

    def of(self, key: int) -> Word | None:
        return self._loaded.get(key)

    def say(self, key: int, content_hash: str, time_ms: int) -> None:
        known = self._loaded.get(key)
        if known is None or known.time_ms <= time_ms:
            self._loaded[key] = self._fresh[key] = Word(_short(content_hash), time_ms)

    def say_all(self, keys: NDArray[np.uint64], content_hashes: Sequence[str], times_ms: NDArray[np.int64]) -> None:
        """`say` for many at once, the oldest first; what was loaded before is not at hand any more."""
        self._settle()
        last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
        digests = np.array([_short(content_hashes[place]) for place in last.tolist()], dtype=np.uint32)
        self._put(keys[last], digests, times_ms[last])
        self._loaded = {}

    def _settle(self) -> None:
        if not self._fresh:
            return
        words, count = self._fresh.values(), len(self._fresh)
        self._put(
            np.fromiter(self._fresh.keys(), np.uint64, count),
            np.fromiter((word.digest for word in words), np.uint32, count),
            np.fromiter((word.time_ms for word in words), np.int64, count),
        )
        self._fresh = {}

    def _put(self, keys: NDArray[np.uint64], digests: NDArray[np.uint32], times_ms: NDArray[np.int64]) -> None:
        """Note words under keys that differ, but where a later one is known."""
        places = self._places.find(keys).astype(np.int64)
        new = places < 0
        end = self._count + int(new.sum())
        self._digests, self._times = grown(self._digests, end), grown(self._times, end)
        places[new] = np.arange(self._count, end)
        self._times[places[new]] = times_ms[new]
        holds = self._times[places] <= times_ms
        self._digests[places[holds]], self._times[places[holds]] = digests[holds], times_ms[holds]
        self._places.add(keys[new], places[new])
        self._count = end


def _short(content_hash: str) -> int:
    return int(content_hash[:8], 16)
