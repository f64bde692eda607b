"""The worker processes of `prepare`: the rules run in them alone, so that one that does not return can be ended.

Records go out in short runs, and each answer is a sign of life. A worker sets itself an alarm for each record, which
the kernel sounds however busy the worker is: it ends the process. The run is then done again by a fresh worker, the
record that it was at by itself, and a record that ends that worker as well is refused. What the others say stands.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import msgspec
import pyarrow as pa

from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams import metrics
from streams.kafka import Record
from streams.prepare.read import Reading, read

# A record that a rule takes longer over is refused: the slowest text that is admitted takes a second.
LIMIT_S = 5.0
# A worker answers after so many records, or for those that it has begun within so many seconds.
RUN_RECORDS, RUN_S = 250, 5.0
# Below this many records to each of them a second worker's answer comes later than the first's.
WORTH_SHARING = 500
Read = Callable[[Iterable[Record], Mapping[str, ModelPolicy], bytes], Reading]


class WorkerLostError(RuntimeError):
    """A worker does not even start: this process ends too, and the batch is read again by whoever takes its place."""


@dataclass
class _Run:
    """Records to be read in one go; `start` is where they stand in the batch, `deaths` how many workers they ended."""

    start: int
    records: Sequence[Record]
    deaths: int = 0

    def part(self, first: int, end: int | None = None) -> list[_Run]:
        some = self.records[first:end]
        return [_Run(self.start + first, some)] if some else []

    def around(self, suspect: int) -> list[_Run]:
        """The record that ended a worker by itself, and what stands before and behind it."""
        alone = _Run(self.start + suspect, self.records[suspect : suspect + 1], self.deaths + 1)
        return [*self.part(0, suspect), alone, *self.part(suspect + 1)]


class WorkerPool:
    """One worker, and `helpers` more from the first batch on that is worth it, used once they are up."""

    def __init__(
        self, policies: Mapping[str, ModelPolicy], split_key: bytes, helpers: int = 0, rules: Read = read,
        limit_s: float = LIMIT_S,
    ) -> None:  # fmt: skip
        """`rules` is a function of a module's own: the workers import it by its name."""
        self._told = msgspec.msgpack.encode(dict(policies)), split_key, rules, limit_s
        self._limit_s, self._most = limit_s, 1 + helpers
        self._workers = [_Worker(self._told)]

    def read(self, records: Sequence[Record], until: float = float("inf")) -> list[Reading]:
        """Readings of consecutive parts of `records`, from the first on; some at least.

        Nothing is begun after `until` (by the monotonic clock): what is left then is to be read another time. Raises
        `WorkerLostError`.
        """
        steps = range(0, len(records), RUN_RECORDS)
        waiting = deque(_Run(start, records[start : start + RUN_RECORDS]) for start in steps)
        done: dict[int, Reading] = {}
        idle, busy = self._staff(len(records)), dict[Connection, tuple[_Worker, _Run]]()
        while True:
            while idle and waiting and (time.monotonic() < until or 0 not in done):
                worker, run = self._alive(idle.pop()), waiting.popleft()
                worker.send(run.records)
                busy[worker.pipe] = worker, run
            if not busy:
                return _from_the_first(done)
            said = wait(list(busy))
            for pipe in [one for one in busy if one in said]:
                worker, run = busy.pop(pipe)
                reading, again = self._answer(worker, run)
                if reading is not None:
                    done[run.start] = reading
                metrics.heartbeat()
                waiting.extendleft(reversed(again))
                idle.append(worker)

    def _answer(self, worker: _Worker, run: _Run) -> tuple[Reading | None, list[_Run]]:
        """What a worker read of its run (None where that ended it), and what of that is still to be read."""
        reading = worker.receive()
        if reading is not None:
            return reading, run.part(reading.records)
        if len(run.records) == 1 and run.deaths:
            return _refused(run.records[0], worker.how_it_ended(self._limit_s)), []
        return None, run.around(worker.at.value)

    def wait_warm(self) -> None:
        """Start all workers and return once they are up."""
        self._start_all()
        for worker in self._workers:
            worker.wait_warm()

    def _start_all(self) -> None:
        self._workers += [_Worker(self._told) for _ in range(self._most - len(self._workers))]

    def _staff(self, records: int) -> list[_Worker]:
        """The workers for so many records; the others that this starts are there for a later batch."""
        if records >= 2 * WORTH_SHARING:
            self._start_all()
        up = [worker for worker in self._workers if worker.is_warm()] or self._workers[:1]
        return up[: max(1, records // WORTH_SHARING)]

    def _alive(self, worker: _Worker) -> _Worker:
        """This worker, or a fresh one in its place; it is up."""
        if not worker.process.is_alive():
            fresh = _Worker(self._told)
            self._workers[self._workers.index(worker)] = worker = fresh
        worker.wait_warm()
        return worker


def _from_the_first(done: Mapping[int, Reading]) -> list[Reading]:
    """The readings that stand side by side from the first record on; one behind a gap is read again."""
    readings, place = [], 0
    while place in done:
        readings.append(done[place])
        place += done[place].records
    return readings


def _refused(record: Record, reason: str) -> Reading:
    return Reading(pa.RecordBatch.from_pylist([], schema=SHARD_SCHEMA), [], {}, {}, {record.offset: reason}, 1)


# Plain values and Arrow's own format, no pickle.
_ENCODER = msgspec.msgpack.Encoder()
_READINGS = msgspec.msgpack.Decoder(Reading)
_RECORDS = msgspec.msgpack.Decoder(list[Record])
_LOST = (EOFError, OSError)
# Forked from a process that has imported the rules and nothing else happened in: this one has Kafka clients, whose
# threads do not survive a fork, and a second of imports would go by before the next record after each that hangs.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class _Worker:
    """This side of one worker process."""

    def __init__(self, told: tuple[bytes, bytes, Read, float]) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.at = _CONTEXT.RawValue("l", 0)  # which record of its run it has begun
        self.process = _CONTEXT.Process(target=work, args=(theirs, self.at, *told), daemon=True)
        self.process.start()
        theirs.close()
        self._warm = False

    def is_warm(self) -> bool:
        if not self._warm and self.pipe.poll(0):
            self.wait_warm()
        return self._warm

    def wait_warm(self) -> None:
        """Return once it has its imports behind it. Raises `WorkerLostError`."""
        if not self._warm:
            try:
                self.pipe.recv_bytes()
            except _LOST as error:
                raise WorkerLostError(f"a worker of prepare did not start: {self.how_it_ended(LIMIT_S)}") from error
            self._warm = True

    def send(self, records: Sequence[Record]) -> None:
        self.at.value = 0
        with contextlib.suppress(*_LOST):  # its end is noticed where its answer is received
            self.pipe.send_bytes(_ENCODER.encode(records))

    def receive(self) -> Reading | None:
        """What it read; None where it has ended."""
        try:
            reading = _READINGS.decode(self.pipe.recv_bytes())
        except _LOST:
            self.process.kill()
            self.process.join()
            return None
        reading.rows = pa.ipc.read_record_batch(pa.py_buffer(reading.rows), SHARD_SCHEMA)
        return reading

    def how_it_ended(self, limit_s: float) -> str:
        self.process.join()
        if self.process.exitcode == -signal.SIGALRM:
            return f"a rule did not return within {limit_s:g} s"
        return f"its worker ended with exit code {self.process.exitcode}"


def work(pipe: Connection, at: Any, policies: bytes, split_key: bytes, rules: Read, limit_s: float) -> None:
    """A worker's life: read what it is sent until the one it works for is gone."""
    known = msgspec.msgpack.decode(policies, type=dict[str, ModelPolicy])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        pipe.send_bytes(b"warm")
        while True:
            reading = rules(_timed(_RECORDS.decode(pipe.recv_bytes()), at, limit_s), known, split_key)
            reading.rows = reading.rows.serialize().to_pybytes()
            pipe.send_bytes(_ENCODER.encode(reading))


def _timed(records: Sequence[Record], at: Any, limit_s: float) -> Iterator[Record]:
    """Each record under its alarm, as many as begin within `RUN_S`."""
    enough = time.monotonic() + RUN_S
    for at.value, record in enumerate(records):
        # A handler in Python would wait for the rule to return; left to the kernel, the signal ends the process.
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        yield record
        if time.monotonic() > enough:
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
