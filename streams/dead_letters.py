"""Dead letters: a record that breaks the contract leaves the stream with its reason, and its bytes untouched.

Bounded: a consumer whose input turns to garbage stops with an error instead of draining its topic into the
dead letters (`Budget`). What is read out of them and put back is `streams.replay`'s.
"""

from __future__ import annotations

from collections import deque

from schemas.topics import DEAD_LETTER_BYTES, MAX_REFUSED, dead_letters
from streams.kafka import Out, Record

# A letter must always have room, or its consumer never gets past what it is about.
LARGEST_BYTES, LONGEST_REASON = DEAD_LETTER_BYTES // 4 * 3, 1_000
ERRORS = "__connect.errors."
ORIGINAL = "tuneloop.original."
# Headers of these names are a letter's own. A record that comes with such (somebody copied a letter by hand) loses
# them here: nobody could tell them from ours afterwards.
RESERVED = (ERRORS, ORIGINAL)


class PoisonedError(RuntimeError):
    """Too many records in a row, or too large a share of the last ones, had to be refused."""


class Budget:
    """How much garbage is bearable: `max_run` refused records in a row (0: any number), and a share of the last ones.

    `window` (records; twice the run unless given) is how many the share is taken of.
    """

    def __init__(self, max_run: int = MAX_REFUSED, max_share: float = 0.5, window: int = 0) -> None:
        self._max_run, self._max_share = max_run or float("inf"), max_share if max_run else 1.0
        self._recent: deque[bool] = deque(maxlen=window or 2 * max_run or 1)
        self._run = self._refused = 0

    def count(self, refused: bool) -> None:
        """Count one record. Raises `PoisonedError` where a bound is passed."""
        if not refused and not self._refused:  # as a rule; this runs for every record
            self._recent.append(False)
            return
        self._run = self._run + 1 if refused else 0
        full = len(self._recent) == self._recent.maxlen
        self._refused += refused - (self._recent[0] if full else 0)  # counted, not summed
        self._recent.append(refused)
        full = len(self._recent) == self._recent.maxlen
        if self._run > self._max_run or (full and self._refused > self._max_share * len(self._recent)):
            raise PoisonedError(
                f"{self._refused} of the last {len(self._recent)} records were refused, {self._run} in a row: "
                "stopped before the whole topic becomes dead letters; mend the producer, then start with "
                "TUNELOOP_MAX_REFUSED=0 until what lies here already has gone through"
            )


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
