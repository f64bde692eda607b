"""Rows: the requests that run now, and where each stands in its answer.

Live rows always fill places 0, 1, 2, ... without a hole, so that attention reads them as one view; a
joining request takes a hole first, and only what is left is closed by moving the last rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.detokenize import TextStream
from serving.sampling import Draw
from serving.slots import Turn
from serving.ticket import Generated, Ticket


@dataclass(eq=False)
class Row:
    """One request under way: `tokens` is prompt and answer so far, `cached` of them are in the slot."""

    ticket: Ticket
    prompt_tokens: int
    tokens: list[int]
    limit: int  # tokens at which the answer ends with "length"
    rng: random.Random | None  # None = greedy
    stream: TextStream
    cached: int = 0

    def turn(self) -> Turn:
        """What the next step has to process for this row."""
        return Turn(self.tokens[self.cached :], self.cached)

    def draw(self) -> Draw | None:
        """How the next token is sampled; each call uses up one random number."""
        if self.rng is None:
            return None
        request = self.ticket.request
        return Draw(request.temperature, request.top_p, self.rng.random())

    def take(self, token: int, end_tokens: frozenset[int]) -> Generated | None:
        """Add the chosen token, deliver its text; return the answer if this ends it."""
        self.cached = len(self.tokens)
        if token in end_tokens:
            return self._finish("stop")
        self.tokens.append(token)
        self.ticket.deliver(self.stream.feed(token))
        if self.stream.stopped:
            return self._finish("stop")
        return self._finish("length") if len(self.tokens) >= self.limit else None

    def _finish(self, reason: str) -> Generated:
        self.ticket.deliver(self.stream.finish())
        if self.stream.stopped:
            reason = "stop"
        answer = tuple(self.tokens[self.prompt_tokens :])
        return Generated(self.stream.text, answer, self.prompt_tokens, len(answer), reason)


@dataclass(eq=False)
class Rows:
    """At most `limit` rows; `move(source, target, length)` copies a row's cache."""

    limit: int
    move: Callable[[int, int, int], None]
    places: list[Row | None] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(row is not None for row in self.places)

    def live(self) -> list[Row]:
        """The running rows, in order of place."""
        return [row for row in self.places if row is not None]

    def free(self) -> int:
        """How many more requests can join."""
        return self.limit - len(self)

    def seat(self, row: Row) -> None:
        """Give `row` the first hole, or the next place."""
        if None in self.places:
            self.places[self.places.index(None)] = row
        else:
            self.places.append(row)

    def leave(self, row: Row) -> None:
        """Free the place of `row`."""
        self.places[self.places.index(row)] = None

    def close_holes(self) -> list[Row]:
        """Move last rows into holes; afterwards place and index of the returned rows are the same."""
        while None in self.places:
            last = self.places.pop()
            if last is not None:
                hole = self.places.index(None)
                self.move(len(self.places), hole, last.cached)
                self.places[hole] = last
        return self.live()
