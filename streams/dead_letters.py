"""Dead letters: a record that breaks the contract leaves the stream with its reason, and its bytes untouched.

A consumer whose input turns to garbage slows down (`Budget`). What is read out of them and put back is
`streams.replay`'s.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from schemas.codec import ContractError, Envelope
from schemas.topics import DEAD_LETTER_BYTES, MAX_REFUSED, dead_letters
from streams import metrics
from streams.artifact_paths import ArtifactError
from streams.kafka import Out, Record, decode

log = logging.getLogger(__name__)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
# A letter must always have room, or its consumer never gets past what it is about.
LARGEST_BYTES, LONGEST_REASON = DEAD_LETTER_BYTES // 4 * 3, 1_000
ERRORS = "__connect.errors."
ORIGINAL = "tuneloop.original."
# Headers of these names are a letter's own. A record that comes with such (somebody copied a letter by hand) loses
# them here: nobody could tell them from ours afterwards.
RESERVED = (ERRORS, ORIGINAL)


class Budget:
    """How much garbage is borne at full speed: `max_run` refused records in a row (0: any number), and a share of the
    last ones. A consumer beyond it goes on, so that no producer can stop it, but slows down: it waits a little after
    every `max_run` records more, longer each time up to `LONGEST_WAIT_S`. That raises an alarm, and leaves time to mend
    the producer before the whole topic is dead letters.

    `window` (records; twice the run unless given) is how many the share is taken of.
    """

    def __init__(self, max_run: int = MAX_REFUSED, max_share: float = 0.5, window: int = 0) -> None:
        self._max_run, self._max_share = max_run or float("inf"), max_share if max_run else 1.0
        self._recent: deque[bool] = deque(maxlen=window or 2 * max_run or 1)
        self._run = self._refused = 0
        self._beyond = self._waits = 0  # records counted since the bound was passed, waits since then
        self._due_s = 0.0

    def count(self, refused: bool) -> None:
        """Count one record."""
        if not refused and not self._refused:  # as a rule; this runs for every record
            self._recent.append(False)
            return
        self._run = self._run + 1 if refused else 0
        full = len(self._recent) == self._recent.maxlen
        self._refused += refused - (self._recent[0] if full else 0)  # counted, not summed
        self._recent.append(refused)
        full = len(self._recent) == self._recent.maxlen
        if self._run > self._max_run or (full and self._refused > self._max_share * len(self._recent)):
            self._count_beyond()
        elif self._beyond:
            log.warning("records are taken again: back to full speed")
            self._beyond = self._waits = 0

    def _count_beyond(self) -> None:
        if self._beyond == 0:
            log.error(
                "%d of the last %d records were refused, %d in a row: slowing down, so that somebody may look before "
                "the whole topic is dead letters; `tuneloop dlq ls` says why, mend the producer",
                self._refused, len(self._recent), self._run,
            )  # fmt: skip
        if self._beyond % self._max_run == 0:
            self._due_s = min(FIRST_WAIT_S * 2**self._waits, LONGEST_WAIT_S)
            self._waits = min(self._waits + 1, 10)
        self._beyond += 1

    def wait_s(self) -> float:
        """How long to wait now, as a rule 0; said once."""
        due_s, self._due_s = self._due_s, 0.0
        if due_s:
            metrics.SLOWED.inc(due_s)
        return due_s

    def slow_down(self) -> None:
        """Wait as long as that: to be called once a batch."""
        if wait_s := self.wait_s():
            time.sleep(wait_s)


def events_of(
    batch: Iterable[Record], group: str, budget: Budget, letters: list[Out],
    check: Callable[[Any], None] = lambda event: None,
) -> Iterator[tuple[Envelope, Any]]:  # fmt: skip
    """The events of a batch, in order. A record that breaks the contract, or that `check` refuses with `ArtifactError`,
    becomes one of the `letters`; after the last record it waits as long as the budget says."""
    for record in batch:
        if record.value is None:
            continue
        try:
            envelope, event = decode(record)
            check(event)
        except (ContractError, ArtifactError) as error:
            budget.count(refused=True)
            letters.append(dead_letter(group, record, str(error)))
            continue
        budget.count(refused=False)
        yield envelope, event
    budget.slow_down()


def dead_letter(group: str, record: Record, reason: str, exception: str = "ContractError") -> Out:
    """The dead letter of one record: keyed by its origin, so that a replayed refusal writes the same letter.

    `tuneloop.original.key` (raw bytes; left out where the record had no key) and `tuneloop.original.timestamp` (Unix
    time in ms) keep what the letter's own key and time have displaced; `tuneloop.original.left_out` (bytes) says that
    the body was too large for a letter.
    """
    value, size = record.value, len(record.value or b"")
    if size > LARGEST_BYTES:  # tens of megabytes that had been squeezed into one
        value, reason = b"", f"its {size} bytes are left out here and stand at its origin: {reason}"
    headers = [(name, said) for name, said in record.headers if not name.startswith(RESERVED)]
    headers += [
        (ERRORS + "topic", record.topic.encode()),
        (ERRORS + "partition", str(record.partition).encode()),
        (ERRORS + "offset", str(record.offset).encode()),
        (ERRORS + "connector.name", group.encode()),
        (ERRORS + "stage", b"VALUE_CONVERTER"),
        (ERRORS + "exception.class.name", exception.encode()),
        (ERRORS + "exception.message", reason[:LONGEST_REASON].encode()),
        (ORIGINAL + "timestamp", str(record.timestamp_ms).encode()),
    ]
    if record.key is not None:
        headers.append((ORIGINAL + "key", record.key))
    if size > LARGEST_BYTES:
        headers.append((ORIGINAL + "left_out", str(size).encode()))
    return Out(dead_letters(group).name, record.origin.encode(), value, headers)
