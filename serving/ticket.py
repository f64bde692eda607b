"""What goes into the engine and what comes out: a request, its ticket, the finished answer.

A ticket is filled by the engine's thread and read by any other: as text deltas, as one result, or through
callbacks. It reads and writes nothing else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from serving.errors import EngineError


class RequestCancelled(EngineError):
    """The request was cancelled before its answer was complete."""


@dataclass(frozen=True)
class Request:
    """One conversation to answer; `adapter` names a loaded adapter, None means the base itself."""

    messages: Sequence[dict[str, str]]
    adapter: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0  # 0 = greedy
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """A finished answer. `tokens` are without the end token; `finish_reason` is "stop" or "length"."""

    text: str
    tokens: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    finish_reason: str


class Ticket:
    """A submitted request.

    `on_delta(text)` and `on_done(ticket)` are called on the engine's thread, so they must be quick; an
    asyncio caller passes `lambda text: loop.call_soon_threadsafe(...)`. In `on_done`, `result()` no longer
    blocks. An error raised by `on_delta` fails this request alone.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[[Ticket], None],
        on_delta: Callable[[str], None] | None = None,
        on_done: Callable[[Ticket], None] | None = None,
    ) -> None:
        self.request = request
        self.cancelled = False
        self.input_tokens = self.output_tokens = 0  # of the prompt; of the answer so far
        self._cancel = cancel
        self._on_delta = on_delta
        self._on_done = on_done
        self._changed = threading.Condition()
        self._deltas: deque[str] = deque()
        self._generated: Generated | None = None
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is complete or has failed."""
        return self._generated is not None or self._error is not None

    def __iter__(self) -> Iterator[str]:
        """Yield text deltas as they come (each once, in all iterators together); raise what failed it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._deltas or self.done)
                if not self._deltas:
                    break
                delta = self._deltas.popleft()
            yield delta
        if self._error is not None:
            raise self._error

    def result(self, timeout_s: float | None = None) -> Generated:
        """Wait for the answer. Raises TimeoutError, RequestCancelled, or what failed the request."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout_s):
                raise TimeoutError(f"no complete answer within {timeout_s} s; it is still running")
        if self._error is not None:
            raise self._error
        assert self._generated is not None
        return self._generated

    def cancel(self) -> None:
        """Ask the engine to drop the request; does nothing when it is done."""
        self._cancel(self)

    def deliver(self, delta: str) -> None:
        """For the engine: hand over the next text delta."""
        self.output_tokens += 1
        if not delta:
            return
        with self._changed:
            self._deltas.append(delta)
            self._changed.notify_all()
        if self._on_delta is not None:
            self._on_delta(delta)

    def settle(self, outcome: Generated | Exception) -> None:
        """For the engine: end the request with its answer or its error, once."""
        with self._changed:
            if isinstance(outcome, Generated):
                self._generated = outcome
            else:
                self._error = outcome
            self._changed.notify_all()
        if self._on_done is not None:
            self._on_done(self)
