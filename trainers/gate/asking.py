"""Having versions answer test rows, each on its own base: by the serving engine, with the same prompt rendering and the
same adapter files, fingerprint checked.

An answer is right when it equals the expected one exactly (surrounding white space aside). A row that any of the
engines refuses is left out for all, counted and named.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from schemas.events import CandidateTrained, Version
from schemas.policy import ModelPolicy
from serving.engine import Engine, Request, Ticket
from serving.errors import PromptError
from serving.fingerprint import same_fingerprint, tolerance
from streams.artifacts import ArtifactStore
from trainers.gate.parts import Part
from trainers.rows import JudgingRow

BATCH = 32
SAID_EACH = 100  # rows
log = logging.getLogger(__name__)
Say = Callable[[int, int], None]


class RefusedError(RuntimeError):
    """The candidate cannot even be compared; the message is the verdict's reason."""


@dataclass(frozen=True)
class Player:
    """Whoever answers: an adapter (`digest`; "" = the base itself) on a base; it must reproduce its `fingerprint`."""

    base_digest: str
    digest: str = ""
    fingerprint: tuple[float, ...] = field(default=(), compare=False)
    dtype: str = field(default="", compare=False)


def player(entry: Version | CandidateTrained, *, checked: bool = False) -> Player:
    """A version or candidate; `checked`: only if its logits are those that it was published with."""
    return Player(entry.base_digest, entry.digest, tuple(entry.fingerprint) if checked else (), entry.dtype)


class Answers:
    """Engines with their players loaded; see the module."""

    def __init__(self, engines: dict[str, Engine], policy: ModelPolicy) -> None:
        self._engines, self._policy = engines, policy

    def askable(self, parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
        """The parts without rows that an engine refuses, and how many those were, in words but not in theirs."""
        left, refused = [], 0
        for part in parts:
            asked = [one for one in part.rows if self._takes(one)]
            refused += len(part.rows) - len(asked)
            left.append(replace(part, rows=tuple(asked)))
        total = sum(len(part.rows) for part in parts)
        why = "too long, or not in the form that the model's chat template takes; the gate's log says which it was"
        return left, [f"{refused} of {total} test rows cannot be asked ({why})"] if refused else []

    def _takes(self, one: JudgingRow) -> bool:
        try:
            for engine in self._engines.values():
                engine.check(Request(one.row.messages, max_new_tokens=self._policy.max_tokens))
        except PromptError as error:
            log.warning("a row of the hold-out is left out: %s", error)
            return False
        return True

    def right(
        self, players: Sequence[Player], rows: Sequence[JudgingRow], say: Say = lambda done, of: None
    ) -> list[NDArray[np.float64]]:
        """Which answers equal the expected ones: 1 or 0 per row, for each player; the same one is asked once."""
        scores: dict[Player, NDArray[np.float64]] = {}
        different = list(dict.fromkeys(players))
        for number, one in enumerate(different):

            def told(done: int, asked: int = number * len(rows)) -> None:
                say(asked + done, len(different) * len(rows))

            engine, most = self._engines[one.base_digest], self._policy.max_tokens
            scores[one] = right(engine, one.digest or None, rows, most, told)
        return [scores[one] for one in players]


@contextmanager
def answering(players: Sequence[Player], policy: ModelPolicy, store: ArtifactStore) -> Iterator[Answers]:
    """Engines of all bases that these need, with their adapters. Raises `RefusedError`, what store and engine raise."""
    engines: dict[str, Engine] = {}
    with ExitStack() as stack:
        loaded = set[Player]()
        for one in players:
            if one.base_digest not in engines:
                folder = store.get_folder(f"bases/{one.base_digest}", one.base_digest)
                longest = policy.max_prompt_tokens + policy.max_tokens
                engines[one.base_digest] = Engine(folder, slots=BATCH, max_length=longest, threads=2)
                stack.callback(engines[one.base_digest].close)
            engine = engines[one.base_digest]
            if one.digest and one not in loaded:
                engine.load(one.digest, store.get_folder(f"adapters/{one.digest}", one.digest))
                loaded.add(one)
            if one.fingerprint and not _reproduces(engine, one):
                raise RefusedError("the stored adapter does not reproduce the logits it was published with")
        yield Answers(engines, policy)


def _reproduces(engine: Engine, one: Player) -> bool:
    return same_fingerprint(engine.fingerprint(one.digest), one.fingerprint, tolerance(one.dtype, engine.dtype))


def right(
    engine: Engine, adapter: str | None, rows: Sequence[JudgingRow], max_tokens: int, say: Callable[[int], None]
) -> NDArray[np.float64]:
    """Which answers equal the expected one: 1 or 0, one per row. `say` is told now and then how many are answered."""
    asked = [_ask(engine, Request(one.row.messages, adapter=adapter, max_new_tokens=max_tokens)) for one in rows]
    scores = np.zeros(len(rows))
    for number, (ticket, one) in enumerate(zip(asked, rows, strict=True)):
        scores[number] = ticket is not None and ticket.result().text.strip() == one.row.completion.strip()
        if number % SAID_EACH == 0 or number == len(rows) - 1:
            say(number + 1)
    return scores


def _ask(engine: Engine, request: Request) -> Ticket | None:
    """None for a prompt that the engine refuses: it is wrong for all alike, and one row decides no verdict."""
    try:
        return engine.submit(request)
    except PromptError as error:
        log.warning("a row of the hold-out is not answered: %s", error)
        return None
