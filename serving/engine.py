"""The generation engine: one base model, many adapters, continuous batching over slots.

Any thread submits requests and reads tickets; the thread of `serving.step_loop` alone touches the model.
A request's life: `submit` renders and checks the prompt → it waits in the queue → it takes a row → each
step packs the newest token of all rows and the prompts of new ones into one forward → a token is chosen,
turned into text and delivered → the row is free again. Reads model and adapter files; writes nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError

from serving.adapters import read_adapter
from serving.base import choose_threads, load_base
from serving.detokenize import TextStream
from serving.errors import PromptError
from serving.holders import Holders
from serving.lora import AdapterBank
from serving.prompts import ControlTokenError, encode_prompt
from serving.rows import Row
from serving.slots import SlotCache, Turn, pack
from serving.step_loop import EngineClosed, StepLoop
from serving.ticket import Generated, Request, RequestCancelled, Ticket

__all__ = ["Engine", "EngineClosed", "Generated", "Request", "RequestCancelled", "Ticket"]
FINGERPRINT_LOGITS = 32
# A token has four characters of English or so. What has more than this for each token that fits is never tokenised.
CHARACTERS_PER_TOKEN = 16


class Engine:
    """Serve one base and its adapters. `max_length` bounds prompt and answer together, in tokens."""

    def __init__(self, base_dir: Path, *, slots: int = 32, max_length: int = 1024, threads: int | None = None) -> None:
        """Load the base in `base_dir` and start the loop; EngineError where it cannot be served.

        `threads` is for the CPU: None takes one for a small model and torch's own choice for others.
        """
        self._base = load_base(Path(base_dir))
        self.max_length = min(max_length, self._base.context)
        # One slot more than rows: fingerprints are taken there, beside running requests.
        self._cache = SlotCache(slots + 1, self.max_length, self._base.device, self._base.dtype)
        self._spare_slot = slots
        self._bank = AdapterBank(self._base.model)
        self._fit = self._bank.fit(self._base.tokenizer.get_vocab())
        self._holders = Holders()
        self._encoding = threading.Lock()  # a fast tokenizer may not encode on two threads at once
        threads = choose_threads(self._base, threads)
        self._loop = StepLoop(self._base, self._bank, self._cache, slots, threads, self._release)

    def load(self, name: str, adapter_dir: Path) -> None:
        """Load the adapter in `adapter_dir` beside the others, while requests run.

        Raises ValueError for a name that was used before (a failed load does not use one up) and
        AdapterError for an adapter that is missing, damaged, not safetensors, or for another base.
        """
        self._holders.reserve(name)
        try:
            adapter = read_adapter(Path(adapter_dir), self._fit)
            self._loop.run(lambda: self._bank.add(name, adapter)).result()
        except BaseException:
            self._holders.give_up(name)
            raise
        self._holders.admit(name)

    def unload(self, name: str) -> None:
        """Take no new request for `name`; its memory is freed when the last request that holds it is done.

        Returns at once; requests already submitted finish through it. AdapterError if it is not loaded.
        """
        if self._holders.leave(name):
            self._loop.run(lambda: self._bank.drop(name))

    def adapters(self) -> list[str]:
        """Names that requests may use, in the order they were loaded."""
        return self._holders.loaded()

    @property
    def dtype(self) -> str:
        """The number type that it computes in, such as `float32`."""
        return str(self._base.dtype).removeprefix("torch.")

    def fingerprint(self, name: str | None) -> list[float]:
        """Logits of 32 evenly spaced tokens after a fixed prompt, through adapter `name` or the base."""
        self._holders.hold(name)
        try:
            return self._loop.run(lambda: self._probe(name)).result()
        finally:
            if self._holders.release(name) and name is not None:
                self._loop.run(lambda: self._bank.drop(name))

    def submit(
        self,
        request: Request,
        on_delta: Callable[[str], None] | None = None,
        on_done: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Queue a request and return its ticket at once. Thread-safe; for the callbacks see `Ticket`.

        An answer ends with "length" at `max_new_tokens` or where prompt and answer fill `max_length`.
        Raises PromptError (empty, too long, a parameter out of range), AdapterError (not loaded) and
        EngineClosed; then nothing was queued.
        """
        prompt = self._encode(request)
        ticket = Ticket(request, self._loop.cancel, on_delta, on_done)
        ticket.input_tokens = len(prompt)
        rng = random.Random(request.seed) if request.temperature > 0 else None
        limit = min(self.max_length, len(prompt) + request.max_new_tokens)
        row = Row(ticket, len(prompt), prompt, limit, rng, TextStream(self._base.decode, request.stop))
        self._holders.hold(request.adapter)
        try:
            self._loop.join(row)
        except EngineClosed:
            self._holders.release(request.adapter)
            raise
        return ticket

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Answer all `requests`, in order. The first failure cancels the others and is raised."""
        tickets: list[Ticket] = []
        try:
            tickets.extend(self.submit(request) for request in requests)
            return [ticket.result() for ticket in tickets]
        except BaseException:
            for ticket in tickets:
                ticket.cancel()
            raise

    def pending(self) -> int:
        """Requests queued or running, for whoever decides when to turn new ones away."""
        return self._loop.pending()

    def close(self) -> None:
        """Stop; requests that are not done fail with EngineClosed. May be called twice."""
        self._loop.close()

    def check(self, request: Request) -> None:
        """Raises PromptError for a prompt that `submit` would refuse; queues nothing."""
        self._encode(request)

    def _encode(self, request: Request) -> list[int]:
        """The prompt's tokens; PromptError says what is wrong with the request."""
        _check(request)
        _check_size(request, self.max_length)
        try:
            with self._encoding:
                prompt = encode_prompt(self._base.tokenizer, request.messages)
        except ControlTokenError as error:
            raise PromptError(str(error)) from error
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise PromptError(f"the messages do not fit the model's chat template: {error}") from error
        if not prompt:
            raise PromptError("the prompt is empty: the messages give no tokens")
        if len(prompt) >= self.max_length:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens; with at least one token to answer, the limit is "
                f"{self.max_length} together: shorten the messages"
            )
        return prompt

    def _probe(self, name: str | None) -> list[float]:
        step = pack([Turn(self._base.probe[: self.max_length], 0)], self._cache, self._spare_slot)
        self._bank.select([name], step.order)
        logits = self._base.logits(step)[0]
        if not torch.isfinite(logits).all():
            self._cache.clear(self._spare_slot)
        evenly = [index * len(logits) // FINGERPRINT_LOGITS for index in range(FINGERPRINT_LOGITS)]
        return logits[evenly].tolist()

    def _release(self, name: str | None) -> None:
        """On the loop's thread: a request no longer holds `name`."""
        if self._holders.release(name) and name is not None:
            self._bank.drop(name)


def _check_size(request: Request, max_length: int) -> None:
    """PromptError for messages that are too long for `max_length` tokens, whatever their tokens are."""
    characters = sum(len(message["content"]) + len(message["role"]) for message in request.messages)
    if characters > CHARACTERS_PER_TOKEN * max_length or len(request.messages) > max_length:
        raise PromptError(
            f"the prompt has {len(request.messages)} messages of {characters} characters; the limit is {max_length} "
            "tokens for prompt and answer together: shorten the messages"
        )


def _check(request: Request) -> None:
    """PromptError for what can be told without a tokenizer."""
    if not request.messages:
        raise PromptError("the prompt is empty: messages must hold at least one message")
    for index, message in enumerate(request.messages):
        # A template prints a missing field as nothing, so it has to be found here.
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise PromptError(f"messages[{index}] must have a role and a content, both text")
    if request.max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {request.max_new_tokens}; it must be at least 1")
    if not 0 <= request.temperature < float("inf"):
        raise PromptError(f"temperature is {request.temperature}; it must be 0 (greedy) or more, and finite")
    if not 0 < request.top_p <= 1:
        raise PromptError(f"top_p is {request.top_p}; it must be above 0 and at most 1")
