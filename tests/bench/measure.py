"""How figures are measured and said: ours and the peer in turns on the same work, medians, one JSON line each.

Rates and times come from the work's own clock (`Timed.seconds`), so that what a peer needs to start is not held
against it. `checksum` says what came out; both sides must agree on it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Parts:
    """The real parts of a run, and how much work to do: `quick` is for trying the machinery."""

    bootstrap: str
    clickhouse: str
    folder: Path
    quick: bool

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3


@dataclass(frozen=True)
class Timed:
    """One repetition: how much was done, in what time, and what came of it."""

    items: int
    seconds: float
    checksum: Any = None

    @property
    def per_s(self) -> float:
        return self.items / self.seconds


@dataclass(frozen=True)
class Figure:
    """One line of the report. `ours` and `peer` are in the unit of `of`; `peer` is null where there is none."""

    figure: str
    value: float
    unit: str
    ours: float
    peer: float | None
    of: str
    part: str = ""

    def line(self) -> str:
        said: dict[str, Any] = {
            "figure": self.figure, "value": rounded(self.value), "unit": self.unit, "ours": rounded(self.ours),
            "peer": None if self.peer is None else rounded(self.peer), "of": self.of,
        }  # fmt: skip
        return json.dumps(said | ({"part": self.part} if self.part else {}))


class Measured(NamedTuple):
    """A value without a peer, and what it must keep to: None where it only informs."""

    value: float
    asked: str | None
    part: str = ""


class DifferentOutputError(RuntimeError):
    """Ours and the peer did not make the same of the same input: their times say nothing."""


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def note(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@contextmanager
def clock() -> Iterator[list[float]]:
    """A list that holds the seconds the block took once it is over."""
    took: list[float] = []
    begun = time.perf_counter()
    yield took
    took.append(time.perf_counter() - begun)


def ratio(name: str, parts: Parts, ours: Callable[[], Timed], peer: Callable[[], Timed], of: str, part: str = "") -> Figure:
    """Ours over the peer in items per second: medians over rounds, each side first in turn."""
    done: dict[str, list[Timed]] = {"ours": [], "peer": []}
    sides = {"ours": ours, "peer": peer}
    for number in range(parts.rounds):
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            timed = sides[side]()
            done[side].append(timed)
            note(f"  {name} {part} {side}: {timed.per_s:,.0f} {of}, {timed.seconds:.2f} s")
    same_output(name, done["ours"] + done["peer"])
    mine, theirs = (statistics.median(one.per_s for one in done[side]) for side in ("ours", "peer"))
    return Figure(name, mine / theirs, "ratio", mine, theirs, of, part)


def same_output(name: str, repetitions: list[Timed]) -> None:
    """Raises `DifferentOutputError`. Checksums are compared where sides did the same number of items."""
    by_items: dict[int, set[Any]] = {}
    for one in repetitions:
        if one.checksum is not None:
            by_items.setdefault(one.items, set()).add(one.checksum)
    for items, sums in by_items.items():
        if len(sums) > 1:
            raise DifferentOutputError(f"{name}: of the same {items} items came {sums}")
