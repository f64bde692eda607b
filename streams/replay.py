"""Dead letters, read and settled: put back where they came from, or dropped.

Reads `dead.GROUP`; writes the topics that the letters came from, and tombstones to `dead.GROUP`. Who asks and what is
shown is the command line's (`deploy.cli.dlq`).

Exactly once, and why: a record and the tombstones of its letters go into one transaction. There is one transactional
id for all, taken before the letters are read: whoever held it can commit no more, and what it did commit is read. So
nobody puts back a letter that somebody else has put back, whatever is killed or runs at the same time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.topics import BY_NAME, CONSUMER_GROUPS, dead_letters
from streams import failpoints, kafka
from streams.dead_letters import ERRORS, ORIGINAL, RESERVED
from streams.kafka import Out, Record

TRANSACTIONAL_ID = "tuneloop-dlq"
BATCH_LETTERS = 500
REQUEST_TIMEOUT_S = 10.0
SETTLED_TIMEOUT_S = 30.0
# Being fenced is said once, by the error; the client would add lines of its own.
_unheard = logging.getLogger(f"{__name__}.client")
_unheard.addHandler(logging.NullHandler())
_FENCED = (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED)


class ReplayError(RuntimeError):
    """Letters cannot be settled as asked; the message says what stands and what to do."""


@dataclass(frozen=True)
class Letter:
    """One open dead letter. `original` is the record as it was, but for a body that was `left_out`; None where the
    letter does not say where it belongs."""

    group: str
    origin: str
    reason: str
    refused_ms: int
    original: Out | None
    tombstone: Out
    left_out: bool = False


@dataclass(frozen=True)
class Move:
    """What settles one origin: the records that must go out together, or not at all."""

    origin: str
    letters: tuple[Letter, ...]
    outs: tuple[Out, ...]


@dataclass(frozen=True)
class Selection:
    """Which letters: these origins, those with `reason` in their reason, or all. Raises `ReplayError` for no choice."""

    origins: frozenset[str] = frozenset()
    reason: str = ""
    everything: bool = False

    def __post_init__(self) -> None:
        narrowed = bool(self.origins or self.reason)
        if narrowed == self.everything:
            said = "takes every letter: leave it out, or the rest" if narrowed else "or origins, or --reason TEXT"
            raise ReplayError(f"which letters? --all {said} (`tuneloop dlq ls` shows what there is)")

    def of(self, letters: Iterable[Letter]) -> list[Letter]:
        wanted = self.reason.casefold()
        named = [letter for letter in letters if not self.origins or letter.origin in self.origins]
        return [letter for letter in named if wanted in letter.reason.casefold()]


def open_letters(group: str, records: Iterable[Record]) -> list[Letter]:
    """The letters that stand: the latest of each key, none where that is a tombstone. `records` in offset order."""
    latest: dict[tuple[int, bytes | None], Record] = {}
    for record in records:
        place = record.partition, record.key
        latest.pop(place, None)
        if record.value is not None:
            latest[place] = record
    return [letter_of(group, record) for record in latest.values()]


def letter_of(group: str, record: Record) -> Letter:
    own = {name: value for name, value in record.headers if name.startswith(RESERVED)}
    origin = (record.key or b"").decode(errors="replace")
    return Letter(
        group=group, origin=origin, reason=(own.get(ERRORS + "exception.message") or b"").decode(errors="replace"),
        refused_ms=record.timestamp_ms, original=_original(origin, record, own),
        tombstone=Out(record.topic, record.key, None, [], record.partition), left_out=ORIGINAL + "left_out" in own,
    )


def parse_origin(origin: str) -> tuple[str, int, int] | None:
    """(topic, partition, offset) of `topic/partition/offset`; None for anything else."""
    parts = origin.split("/")
    if len(parts) != 3 or not parts[0] or not all(part.isascii() and part.isdigit() for part in parts[1:]):
        return None
    return parts[0], int(parts[1]), int(parts[2])


def _original(origin: str, record: Record, own: dict[str, Any]) -> Out | None:
    place = parse_origin(origin)
    if place is None:
        return None
    topic, partition, _ = place
    headers = [(name, value) for name, value in record.headers if not name.startswith(RESERVED)]
    stamp = own.get(ORIGINAL + "timestamp") or b""
    # Its own time: a record put back today must not pass for newer than a correction that was said yesterday.
    timestamp_ms = int(stamp) if stamp.isdigit() else None
    return Out(topic, own.get(ORIGINAL + "key"), record.value, headers, partition, timestamp_ms)


def moves_back(chosen: Sequence[Letter], letters: Sequence[Letter]) -> list[Move]:
    """Each chosen origin's record, once, and the end of every group's letter on it; in the order of the origins.

    A record that several groups refused is read by all of them again, so none of their letters may stand.
    Raises `ReplayError` for a letter that cannot be put back.
    """
    wanted = {letter.origin for letter in chosen}
    by_origin: dict[str, list[Letter]] = {}
    for letter in letters:
        if letter.origin in wanted:
            by_origin.setdefault(letter.origin, []).append(letter)
    return [
        Move(origin, tuple(same), (_restorable(same[0]), *(one.tombstone for one in same)))
        for origin, same in sorted(by_origin.items(), key=lambda item: parse_origin(item[0]) or ("", 0, 0))
    ]


def moves_away(chosen: Sequence[Letter]) -> list[Move]:
    """The end of the chosen letters, and of nothing else."""
    return [Move(letter.origin, (letter,), (letter.tombstone,)) for letter in chosen]


def _restorable(letter: Letter) -> Out:
    record = letter.original
    if record is None:
        raise ReplayError(f"letter {letter.origin!r} of {letter.group} does not say where it belongs: drop it")
    if letter.left_out:  # put back without its body, it would take the original's place
        raise ReplayError(f"letter {letter.origin} of {letter.group} has no body (too large): drop it, or send it anew")
    row = BY_NAME.get(record.topic)
    if record.key is None and row is not None and "compact" in row.cleanup:
        raise ReplayError(f"letter {letter.origin} has no original key, and {record.topic} takes none without: drop it")
    return record


def read(bootstrap: str, groups: Sequence[str] = CONSUMER_GROUPS) -> list[Letter]:
    """The open letters of these groups, as committed."""

    def of(group: str) -> list[Letter]:
        return open_letters(group, kafka.read_to_end(bootstrap, dead_letters(group).name))

    with ThreadPoolExecutor(len(groups)) as pool:
        return [letter for letters in pool.map(of, groups) for letter in letters]


def settle(
    bootstrap: str, choose: Callable[[list[Letter]], list[Move]], on_done: Callable[[int, int], None],
    batch_letters: int = BATCH_LETTERS,
) -> list[Move]:
    """Carry out what `choose` makes of every group's open letters; returns it.

    `on_done(done, all)` is told after each transaction. Raises `ReplayError` and `KafkaException`.
    """
    writer = kafka.producer(bootstrap, transactional_id=TRANSACTIONAL_ID, logger=_unheard)
    writer.init_transactions(REQUEST_TIMEOUT_S * 3)
    wait_settled(bootstrap, [dead_letters(group).name for group in CONSUMER_GROUPS])
    moves = choose(read(bootstrap))
    _check_places(bootstrap, moves)
    done = 0
    for batch in batches(moves, batch_letters):
        try:
            commit(writer, batch)
        except ReplayError as error:
            raise ReplayError(f"{error} ({done} of {len(moves)} were settled before)") from error
        done += len(batch)
        on_done(done, len(moves))
    return moves


def batches(moves: Sequence[Move], size: int) -> Iterator[Sequence[Move]]:
    return (moves[start : start + size] for start in range(0, len(moves), size))


def commit(writer: Producer, moves: Sequence[Move]) -> None:
    """One transaction with all of `moves`. Raises `ReplayError`; running everything again is always safe."""
    try:
        with kafka.at_most(kafka.TRANSACTION_LIMIT_S, "a transaction of dead letters"):
            writer.begin_transaction()
            for move in moves:
                for record in move.outs:  # no delivery callback: beside a fatal error it becomes a SystemError
                    kafka.produce(writer, record)
            writer.flush(REQUEST_TIMEOUT_S)
            failpoints.hit("dlq.produced")
            writer.commit_transaction(REQUEST_TIMEOUT_S)
            failpoints.hit("dlq.committed")
    except KafkaException as error:
        raise _refused(writer, error.args[0]) from error


def _refused(writer: Producer, reason: KafkaError) -> ReplayError:
    if reason.fatal() or reason.code() in _FENCED:
        return ReplayError("another `tuneloop dlq replay` or `drop` took over: once it is done, see what is left")
    what = f"Kafka refused a transaction: {reason.str()}"
    try:
        writer.abort_transaction(REQUEST_TIMEOUT_S)
    except KafkaException:
        return ReplayError(f"{what}; whether it stands is not known: run it again, nothing goes twice")
    return ReplayError(f"{what}; nothing of it stands: mend that or choose other letters, then run it again")


def _check_places(bootstrap: str, moves: Sequence[Move]) -> None:
    """Raises `ReplayError` where a record's topic or partition is gone: Kafka would not say which record it was."""
    topics = kafka.admin(bootstrap).list_topics(timeout=REQUEST_TIMEOUT_S).topics
    for move in moves:
        for record in move.outs:
            if record.topic not in topics or record.partition not in topics[record.topic].partitions:
                where = f"{record.topic}/{record.partition}"
                raise ReplayError(f"letter {move.origin} belongs to {where}, which is not there (any more): drop it")


def wait_settled(bootstrap: str, topics: Sequence[str]) -> None:
    """Wait until no transaction hides what was committed behind it: until what these topics hold can all be read."""
    admin = kafka.admin(bootstrap)
    known = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    places = [TopicPartition(topic, number) for topic in topics if topic in known for number in known[topic].partitions]
    ends = _ends(admin, places, IsolationLevel.READ_UNCOMMITTED)
    deadline = time.monotonic() + SETTLED_TIMEOUT_S
    while True:
        stable = _ends(admin, places, IsolationLevel.READ_COMMITTED)
        behind = [topic for (topic, number), end in ends.items() if stable[topic, number] < end]
        if not behind:
            return
        if time.monotonic() > deadline:
            raise ReplayError(f"a transaction on {behind[0]} is still open after {SETTLED_TIMEOUT_S:.0f} s: try again")
        time.sleep(0.1)


def _ends(admin: AdminClient, places: list[TopicPartition], isolation: IsolationLevel) -> dict[tuple[str, int], int]:
    found = admin.list_offsets({place: OffsetSpec.latest() for place in places}, isolation_level=isolation)
    return {(place.topic, place.partition): future.result(REQUEST_TIMEOUT_S).offset for place, future in found.items()}
