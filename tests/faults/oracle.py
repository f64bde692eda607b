"""The oracle: what must be true after any crash, as pure functions over what committed readers see.

`lost`: an accepted record without its result. `doubled`: a result twice. `torn`: a result that no accepted record
explains, or only a part of one: content that is not the transform, a record of an aborted transaction, half a
transaction, an artifact that is missing or damaged, an order that is not the input's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from streams.kafka import Record

KEPT = 20
FILLER = b"filler/"  # what an erasure writes so that an idle partition closes its segment


@dataclass
class Verdict:
    """How many findings of each kind, and the first few in words."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.findings) < KEPT:
            self.findings.append(f"{kind}: {what}")

    def merge(self, other: Verdict) -> None:
        self.counts.update(other.counts)
        self.findings += other.findings[:KEPT]

    @property
    def clean(self) -> bool:
        return not +self.counts


@dataclass(frozen=True)
class Expected:
    """What one input record must become: an output (`value`) or a dead letter (`dead`), under its `key`."""

    key: bytes
    value: bytes
    dead: bool = False


def numbered(
    records: Iterable[Record], said: Mapping[tuple[str, int], int], lane: str, personal: Container[bytes] = ()
) -> Iterator[Record]:
    """Pass records on; at their end raise AssertionError unless the topic holds each acknowledged one once, in order.

    This is about the input itself: the broker and the feed's own idempotent producer. `personal` are the keys of
    records that may be gone, as somebody asked for it.
    """
    next_n: Counter[int] = Counter()

    def pass_over(number: int, until: int) -> None:
        while next_n[number] < until and f"{lane}-{number}-{next_n[number]}".encode() in personal:
            next_n[number] += 1

    for record in records:
        if (record.key or b"").startswith(FILLER):
            continue
        name, number, n = (record.key or b"").decode().split("-")
        assert name == lane, f"{record.origin}: {record.key!r} was aborted, or said to another lane"
        if record.value is not None:
            pass_over(int(number), int(n))
            assert int(n) == next_n[int(number)], f"{record.origin}: {record.key!r} after {next_n[int(number)] - 1}"
            next_n[int(number)] += 1
        yield record
    wanted = Counter({key: n for (of, key), n in said.items() if of == lane and n})
    for key, n in wanted.items():
        pass_over(key, n)
    assert next_n == wanted, f"{lane}: input is missing"


def copied(
    inputs: Iterable[Record], outputs: Iterable[Record], letters: Iterable[Record],
    expect: Callable[[Record], Expected],
) -> Verdict:
    """A transact lane that makes one output of each input, per partition in the input's order."""
    verdict = Verdict()
    wanted: dict[int, list[Expected]] = defaultdict(list)
    poison: dict[bytes, bytes] = {}
    for record in inputs:
        one = expect(record)
        if one.dead:
            poison[one.key] = one.value
        else:
            wanted[record.partition].append(one)
    seen: dict[int, list[Record]] = defaultdict(list)
    batches: Counter[bytes] = Counter()
    for record in outputs:
        seen[record.partition].append(record)
        batches[_batch(record)] += 1
    for partition in wanted.keys() | seen.keys():
        _in_order(verdict, partition, wanted[partition], seen[partition])
    letters = list(letters)
    batches.update(_batch(letter) for letter in letters)
    dead_lettered(verdict, poison, letters)
    _whole(verdict, batches)
    return verdict


def _batch(record: Record) -> bytes:
    return dict(record.headers).get("batch", b"")


def _whole(verdict: Verdict, batches: Counter[bytes]) -> None:
    """Every transaction is visible as a whole."""
    for stamp, count in batches.items():
        if stamp and count != (size := int(stamp.rpartition(b"/")[2])):
            kind = "torn" if count < size else "doubled"
            verdict.add(kind, f"{count} of the {size} records of transaction {stamp.decode()} are visible")


def _in_order(verdict: Verdict, partition: int, wanted: list[Expected], seen: list[Record]) -> None:
    values = {one.key: one.value for one in wanted}
    times = Counter(record.key or b"" for record in seen)
    for one in wanted:
        if not times[one.key]:
            verdict.add("lost", f"{one.key.decode()} of partition {partition}")
    first: dict[bytes, None] = {}
    for record in seen:
        key = record.key or b""
        if key not in values:
            verdict.add("torn", f"{record.origin} {key!r}: no accepted record explains it")
        elif values[key] != record.value:
            verdict.add("torn", f"{record.origin} {key!r}: is not the transform of its input")
        if key in first:
            verdict.add("doubled", f"{record.origin} {key!r}")
        first.setdefault(key)
    order = [key for key in first if key in values]
    if order != [one.key for one in wanted if times[one.key]]:
        verdict.add("torn", f"partition {partition}: the outputs are not in their inputs' order")


def dead_lettered(
    verdict: Verdict, poison: Mapping[bytes, bytes], letters: Iterable[Record], once: bool = True
) -> None:
    """Dead letters are exactly the poison, under its origin and with its bytes; `once` where they are transactional."""
    times: Counter[bytes] = Counter()
    for letter in letters:
        key = letter.key or b""
        times[key] += 1
        if poison.get(key) != letter.value:
            verdict.add("torn", f"dead letter {key!r}: no poison explains it")
        if once and times[key] > 1:
            verdict.add("doubled", f"dead letter {key!r}")
    for key in poison.keys() - times.keys():
        verdict.add("lost", f"poison {key!r} has no dead letter")


class Shard(Protocol):
    """What the oracle needs of a `ShardWritten`."""

    shard_id: str
    source_partition: int
    first_offset: int
    last_offset: int
    dropped: dict[str, int]
    digest: str
    replaces: str
    erased: int


Place = tuple[int, int]


def prepared(
    accepted: Mapping[int, list[int]], said: Iterable[Shard], rows_of: Callable[[Any], list[Place] | None],
    forgotten: Container[Place] = (), reasons: Container[str] = ("erased",),
) -> Verdict:
    """Shards account for every accepted offset once. `accepted`: offsets by partition, ascending, without poison.

    `reasons` are those for which rows of this input may be dropped; any other would hide a loss.

    `said` are the shards' events in their order; `rows_of` gives the (partition, offset) of a shard's own rows, None
    where its file is missing or damaged. Of the `forgotten` places no row is left.
    """
    verdict = Verdict()
    by_partition: dict[int, list[Shard]] = defaultdict(list)
    for shard in _as_they_stand(verdict, said):
        by_partition[shard.source_partition].append(shard)
    for partition in accepted.keys() | by_partition.keys():
        _partition(verdict, partition, accepted.get(partition, []), by_partition[partition], rows_of, forgotten)
        for shard in by_partition[partition]:
            for reason, count in shard.dropped.items():
                if reason not in reasons:
                    verdict.add("lost", f"shard {shard.shard_id}: {count} dropped, {reason}", count)
    return verdict


def _as_they_stand(verdict: Verdict, said: Iterable[Shard]) -> Iterable[Shard]:
    """The last word of each shard; one that is said again says what it replaces."""
    shards: dict[str, Shard] = {}
    for shard in said:
        before = shards.get(shard.shard_id)
        if before is not None and not shard.replaces:
            verdict.add("doubled", f"shard {shard.shard_id} is said twice")
        elif shard.replaces != (before.digest if before else ""):
            verdict.add("torn", f"shard {shard.shard_id} replaces {shard.replaces!r}, which it was not")
        shards[shard.shard_id] = shard
    return shards.values()


def _partition(
    verdict: Verdict, partition: int, offsets: list[int], shards: list[Shard],
    rows_of: Callable[[Any], list[Place] | None], forgotten: Container[Place],
) -> None:
    covered, rest = -1, iter(offsets)
    offset = next(rest, None)
    for shard in sorted(shards, key=lambda one: one.first_offset):
        if shard.first_offset <= covered:
            verdict.add("doubled", f"shard {shard.shard_id} begins at {shard.first_offset}, {covered} was covered before")
        covered, inside = max(covered, shard.last_offset), []
        while offset is not None and offset <= shard.last_offset:
            if offset < shard.first_offset:
                verdict.add("lost", f"offset {partition}/{offset} lies between two shards")
            else:
                inside.append(offset)
            offset = next(rest, None)
        _shard(verdict, shard, inside, rows_of(shard), forgotten)
    left = [] if offset is None else [offset, *rest]
    if left:
        verdict.add("lost", f"offsets {partition}/{left[0]} and on are in no shard", len(left))


def _shard(
    verdict: Verdict, shard: Shard, inside: list[int], rows: list[Place] | None, forgotten: Container[Place]
) -> None:
    if rows is None:
        verdict.add("torn", f"the file of shard {shard.shard_id} is missing or damaged")
        return
    strangers = set(rows) - {(shard.source_partition, offset) for offset in inside}
    if strangers:
        verdict.add("torn", f"shard {shard.shard_id} has rows of {sorted(strangers)[:3]}", len(strangers))
    if len(rows) > len(set(rows)):
        verdict.add("doubled", f"shard {shard.shard_id} has a row twice", len(rows) - len(set(rows)))
    left = [place for place in rows if place in forgotten]
    if left:
        verdict.add("torn", f"shard {shard.shard_id} still has rows of somebody forgotten: {left[:3]}", len(left))
    gone = shard.erased + shard.dropped.get("erased", 0)
    theirs = sum((shard.source_partition, offset) in forgotten for offset in inside)
    if gone > theirs:
        verdict.add("lost", f"shard {shard.shard_id}: {gone} rows are erased, {theirs} were to be", gone - theirs)
    difference = len(inside) - len(rows) - sum(shard.dropped.values()) - shard.erased
    if difference:
        what = (
            f"shard {shard.shard_id}: {len(inside)} accepted, {len(rows)} rows, {shard.dropped} dropped, "
            f"{shard.erased} erased"
        )
        verdict.add("lost" if difference > 0 else "doubled", what, abs(difference))


def forgotten(
    erasures: Iterable[str], receipts: Iterable[str], early: Container[bytes], inputs: Iterable[Record]
) -> Verdict:
    """Every erasure has its receipt, and of what was there when it was asked for (`early`, keys) no value is left."""
    verdict = Verdict()
    for erasure in set(erasures) - set(receipts):
        verdict.add("lost", f"{erasure} has no receipt")
    for record in inputs:
        if record.key in early and record.value is not None:
            verdict.add("torn", f"{record.origin} {record.key!r} is still there after its erasure")
    return verdict


def landed(accepted: Mapping[tuple[int, int], Any], rows: Iterable[tuple[tuple[int, int], Any]]) -> Verdict:
    """A table equals its topic row for row. Both: (partition, offset) and what was said there."""
    verdict = Verdict()
    seen: set[tuple[int, int]] = set()
    for place, said in rows:
        if place in seen:
            verdict.add("doubled", f"row {place}")
        seen.add(place)
        if place not in accepted:
            verdict.add("torn", f"row {place}: the topic has no such record, or it was to be forgotten")
        elif accepted[place] != said:
            verdict.add("torn", f"row {place}: {said} instead of {accepted[place]}")
    for place in accepted.keys() - seen:
        verdict.add("lost", f"row {place}")
    return verdict


def worked(jobs: Iterable[str], ended: Iterable[tuple[str, str]], whole: Callable[[str, str], bool]) -> Verdict:
    """Each job ends once, and its artifact is whole. `ended`: (job_id, what was said of it)."""
    verdict, times = Verdict(), Counter[str]()
    for job_id, said in ended:
        times[job_id] += 1
        if times[job_id] > 1:
            verdict.add("doubled", f"{job_id} ended {times[job_id]} times")
        if not whole(job_id, said):
            verdict.add("torn", f"{job_id}: {said} is missing or damaged")
    wanted = set(jobs)
    for job_id in wanted - times.keys():
        verdict.add("lost", job_id)
    for job_id in times.keys() - wanted:
        verdict.add("torn", f"{job_id} was never asked for")
    return verdict
