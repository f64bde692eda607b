"""Adapter names and who holds them: a name is used once, and an adapter leaves when no request holds it.

Plain bookkeeping, safe to call from any thread; the weights themselves are in `serving.lora`.
"""

from __future__ import annotations

import threading
from collections import Counter

from serving.errors import AdapterError

LOADING, LOADED, LEAVING, GONE = "loading", "loaded", "leaving", "gone"


class Holders:
    """The state of every name ever used, and the number of requests that hold it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._states: dict[str, str] = {}
        self._held: Counter[str] = Counter()

    def loaded(self) -> list[str]:
        """Names that requests may use, in the order they were loaded."""
        with self._guard:
            return self._loaded()

    def reserve(self, name: str) -> None:
        """Begin to load `name`; ValueError if it was ever used."""
        with self._guard:
            if name in self._states:
                raise ValueError(f"adapter name {name!r} was used before; load it under a new name")
            self._states[name] = LOADING

    def give_up(self, name: str) -> None:
        """Loading failed: the name may be tried again."""
        with self._guard:
            del self._states[name]

    def admit(self, name: str) -> None:
        """Loading is done: requests may use `name`."""
        with self._guard:
            self._states[name] = LOADED

    def hold(self, name: str | None) -> None:
        """Count one more holder; AdapterError if `name` is not loaded. None, the base, is never counted."""
        if name is None:
            return
        with self._guard:
            self._check(name)
            self._held[name] += 1

    def release(self, name: str | None) -> bool:
        """Count one holder less; True if the adapter is to be dropped now."""
        if name is None:
            return False
        with self._guard:
            self._held[name] -= 1
            return self._is_last(name)

    def leave(self, name: str) -> bool:
        """Take no new holder; True if the adapter is to be dropped now. AdapterError if not loaded."""
        with self._guard:
            self._check(name)
            self._states[name] = LEAVING
            return self._is_last(name)

    def _is_last(self, name: str) -> bool:
        if self._states[name] != LEAVING or self._held[name] > 0:
            return False
        self._states[name] = GONE
        return True

    def _check(self, name: str) -> None:
        if self._states.get(name) != LOADED:
            loaded = ", ".join(self._loaded()) or "none"
            raise AdapterError(f"adapter {name!r} is not loaded; loaded now: {loaded}")

    def _loaded(self) -> list[str]:
        return [name for name, state in self._states.items() if state == LOADED]
