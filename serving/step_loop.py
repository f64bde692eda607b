"""The step loop: one thread that alone touches the model, and sleeps when there is nothing to do.

Each turn runs waiting errands (load an adapter, take a fingerprint), drops cancelled requests, lets queued
ones join, and makes one packed forward for all rows. A request that fails, fails alone; a step that fails,
fails the requests in it; the loop goes on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from serving.base import Base
from serving.errors import EngineError
from serving.lora import AdapterBank
from serving.rows import Row, Rows
from serving.sampling import choose
from serving.slots import SlotCache, pack
from serving.ticket import Generated, RequestCancelled, Ticket

log = logging.getLogger(__name__)
T = TypeVar("T")
PROMPT_TOKENS_PER_STEP = 4096  # more joining prompts wait a step, so that running answers are not held up


class EngineClosed(EngineError):
    """The engine was closed before or while the request ran."""


class StepLoop:
    """Rows, queue and the thread. `released(adapter)` is called on it when a request no longer runs."""

    def __init__(
        self,
        base: Base,
        bank: AdapterBank,
        cache: SlotCache,
        rows: int,
        threads: int,
        released: Callable[[str | None], None],
    ) -> None:
        self._base, self._bank, self._cache = base, bank, cache
        self._rows = Rows(rows, cache.move)
        self._threads = threads
        self._released = released
        self._wake = threading.Condition()  # guards the four below; the loop sleeps on it
        self._queue: deque[Row] = deque()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._cancelling = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def join(self, row: Row) -> None:
        """Queue a request; EngineClosed if the loop has ended."""
        with self._wake:
            self._check_open()
            self._queue.append(row)
            self._wake.notify()

    def run(self, errand: Callable[[], T]) -> Future[T]:
        """Run `errand` between two steps; EngineClosed if the loop has ended."""
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._errands.append((errand, future))
            self._wake.notify()
        return future

    def cancel(self, ticket: Ticket) -> None:
        """Drop the request of `ticket` before the next step."""
        with self._wake:
            ticket.cancelled = self._cancelling = True
            self._wake.notify()

    def pending(self) -> int:
        """Requests queued or running."""
        with self._wake:
            return len(self._queue) + len(self._rows)

    def close(self) -> None:
        """End the thread; all that is not done fails with EngineClosed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise EngineClosed("the engine is closed")

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # here: OpenMP counts its threads per calling thread
        with torch.inference_mode():
            while self._turn():
                pass
        closed = EngineClosed("the engine was closed")
        for row in [*self._rows.live(), *self._queue]:
            self._settle(row, closed)
        for _, future in self._errands:
            future.set_exception(closed)

    def _turn(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._errands or self._queue or len(self._rows))
            if self._closing:
                return False
            errands, self._errands = self._errands, deque()
            dropped = self._take_cancelled() if self._cancelling else []
            for row in self._take_joining():
                self._rows.seat(row)
        for errand, future in errands:
            _fulfil(future, errand)
        for row in dropped:
            self._settle(row, RequestCancelled("the request was cancelled"))
        if len(self._rows):
            self._guarded_step()
        return True

    def _take_cancelled(self) -> list[Row]:
        self._cancelling = False
        dropped = [row for row in (*self._queue, *self._rows.live()) if row.ticket.cancelled]
        self._queue = deque(row for row in self._queue if not row.ticket.cancelled)
        for row in dropped:
            if row in self._rows.places:
                self._rows.leave(row)
        return dropped

    def _take_joining(self) -> list[Row]:
        """Queued requests that join now: as many as there are places and prompt tokens for a step."""
        joining: list[Row] = []
        tokens = 0
        while self._queue and len(joining) < self._rows.free():
            tokens += self._queue[0].prompt_tokens
            if joining and tokens > PROMPT_TOKENS_PER_STEP:
                break
            joining.append(self._queue.popleft())
        return joining

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception as error:
            log.exception("a generation step failed; its %d requests fail with it", len(self._rows))
            for row in self._rows.live():
                self._rows.leave(row)
                self._settle(row, EngineError(f"a generation step failed: {error}"))

    def _step(self) -> None:
        rows = self._rows.close_holes()
        step = pack([row.turn() for row in rows], self._cache)
        self._bank.select([row.ticket.request.adapter for row in rows], step.order)
        chosen = choose(self._base.logits(step), [row.draw() for row in rows])
        for place, (row, token) in enumerate(zip(rows, chosen.tokens, strict=True)):
            if chosen.sound[place]:
                outcome = self._take(row, token)
            else:
                self._cache.clear(place)
                outcome = EngineError(f"adapter {row.ticket.request.adapter!r} gives NaN or infinite logits")
            if outcome is not None:
                self._rows.leave(row)
                self._settle(row, outcome)

    def _take(self, row: Row, token: int) -> Generated | Exception | None:
        try:
            return row.take(token, self._base.end_tokens)
        except Exception as error:
            log.exception("a request failed while its text was delivered")
            return error

    def _settle(self, row: Row, outcome: Generated | Exception) -> None:
        """End a request. Its adapter is released first: who sees it done may rely on that."""
        self._released(row.ticket.request.adapter)
        try:
            row.ticket.settle(outcome)
        except Exception:
            log.exception("the callback for a finished request failed")


def _fulfil(future: Future[T], errand: Callable[[], T]) -> None:
    try:
        result = errand()
    except Exception as error:
        log.debug("an errand failed; its caller is told", exc_info=error)
        future.set_exception(error)
    else:
        future.set_result(result)
