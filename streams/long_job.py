"""The long-job loop: minutes of work per message, without losing the group or the work.

Commit order, and why: the job's artifact is stored under its content's hash by a warm child process; then its
result records and the input offset go into one short transaction. A crash before it repeats the job, and a
job whose result is already published is answered from there (first wins). Meanwhile the consumer keeps
polling a paused assignment, so that the broker sees it alive, and progress goes out by a second producer.
Where the partition was taken away meanwhile, or the transaction failed, the result waits: it is published if the job
comes again, not if not.

The child is spawned, never forked: this process holds Kafka clients, whose threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.codec import ContractError, Envelope
from streams import failpoints, kafka, metrics, transaction
from streams.dead_letters import Budget, dead_letter
from streams.kafka import Out, Record
from streams.watchdog import Membership

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
# Answers come before jobs where both share the cores, and before a child's imports (12 s) at a start.
NICENESS = 5


class ChildLostError(RuntimeError):
    """The child process died without an answer."""


@dataclass(frozen=True)
class Limits:
    """How long one request may take in all, and without any word of the child's own (seconds)."""

    total_s: float = math.inf
    silent_s: float = math.inf


class Job(Protocol):
    """What a long-job loop runs; everything here happens in the parent."""

    def accept(self, envelope: Envelope, event: Any) -> Any | list[Out] | None:
        """The request for the child (plain values); or the records that are said instead; None where the work was done
        before."""

    def limits(self) -> Limits:
        """Of the request that was accepted last."""

    def progress(self, message: Any, elapsed_s: float) -> list[Out]:
        """The progress records for one message of the child (None = a heartbeat)."""

    def finished(self, result: Any, elapsed_s: float) -> list[Out]:
        """The result records. `result` is what the child returned, or the exception that ended it."""


def _say(pipe: Connection, kind: str, body: Any) -> None:
    # JSON, not pickle: whatever reaches either side can only ever be plain values.
    pipe.send_bytes(msgspec.json.encode([kind, body]))


def _hear(pipe: Connection) -> tuple[str, Any]:
    kind, body = msgspec.json.decode(pipe.recv_bytes())
    return kind, body


class WarmChild:
    """One spawned process that has its imports behind it and takes one request at a time.

    Requests, progress and results are plain values (what JSON holds).
    """

    def __init__(self, module: str, args: tuple[Any, ...], *, at_once: bool = True) -> None:
        """`module` is imported in the child alone (its imports are what the warmth is for) and has a
        `make(*args)` that returns the function `work(request, report)`. `at_once` False: started when first asked,
        for work that is rare."""
        self._module, self._args = module, args
        self._process: Any = None
        if at_once:
            self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=child_main, args=(theirs, self._module, self._args), daemon=True)
        self._process.start()
        theirs.close()

    def wait_warm(self, stop: threading.Event) -> None:
        """Return once the child has its imports behind it. Raises `ChildLostError` where it dies first."""
        while not stop.is_set() and not self._pipe.poll(0.2):
            if not self._process.is_alive():
                raise ChildLostError(f"{self._module} did not start: exit code {self._process.exitcode}")

    def ask(self, request: Any) -> None:
        if self._process is None or not self._process.is_alive():
            self._start()
        _say(self._pipe, "request", request)

    def receive(self) -> tuple[str, Any] | None:
        """The child's next message, or None if it has said nothing. Raises `ChildLostError`."""
        try:
            if self._pipe.poll(0):
                return _hear(self._pipe)
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5)
            code = self._process.exitcode
            self._start()
            raise ChildLostError(f"the working process ended with exit code {code}") from error
        return None

    def restart(self) -> None:
        """End the child, whatever it does, and start another."""
        if self._process is not None:
            self._process.kill()
            self._process.join(10)
        self._start()

    def close(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(10)


def _step_back() -> None:
    os.nice(NICENESS)
    # Where Linux groups processes by session, niceness counts within a group alone, and the group has its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _end_with_parent() -> None:
    """Whoever takes a dead parent's place does its job as well, and two that do one may undo each other's work."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent").start()


def child_main(pipe: Connection, module: str, args: tuple[Any, ...]) -> None:
    """The child's side: import, say so, then work on each request until the parent is gone.

    Errors of the work travel back as text and leave the child warm.
    """
    _end_with_parent()
    _step_back()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    work = importlib.import_module(module).make(*args)
    _say(pipe, "warm", None)
    while True:
        try:
            _, request = _hear(pipe)
        except (EOFError, KeyboardInterrupt):
            return
        try:
            result = work(request, lambda message: _say(pipe, "progress", message))
        except BrokenPipeError:
            return
        except Exception as error:
            log.exception("job failed")
            _say(pipe, "error", f"{type(error).__name__}: {error}")
        else:
            _say(pipe, "result", result)


class Places:
    """The partitions of a consumer that takes one job at a time: which came and went while it was busy."""

    def __init__(self, client: Consumer, topic: str) -> None:
        self._busy, self._gone = False, set[int]()
        client.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked)

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        # librdkafka keeps a partition paused while it is away: one that was lost in the middle of a job and comes
        # back after it would stay silent for ever, and one that is new in the middle of a job would be read.
        client.assign(partitions)
        (client.pause if self._busy else client.resume)(partitions)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._gone.update(partition.partition for partition in partitions)

    def busy(self) -> None:
        """A job begins: what is assigned from now on stays paused."""
        self._busy, self._gone = True, set()

    def idle(self) -> set[int]:
        """The job is done: the partitions that were away at any time since it began."""
        self._busy = False
        return self._gone


def run(
    bootstrap: str,
    group: str,
    topic: str,
    job: Job,
    child: WarmChild,
    stop: threading.Event,
    *,
    transactional_id: str,
    attempts: int = 2,
    budget: Budget | None = None,
) -> None:
    """Take `topic` one record at a time until `stop`. Raises `transaction.FencedError`, `transaction.RefusedError`."""
    client = kafka.consumer(bootstrap, group, transactional_id, **{"max.poll.interval.ms": 60_000})
    writer = transaction.fresh_producer(bootstrap, transactional_id)
    reporter = kafka.producer(bootstrap, linger_ms=0)
    places = Places(client, topic)
    held: dict[str, list[Out]] = {}  # by origin: a result whose partition was away when it was there
    unwatch, member = metrics.watch_group(bootstrap, group), Membership(client, bootstrap, group, transactional_id)
    budget, failures = budget or Budget(), 0
    idle_at: set[tuple[str, int, int]] = set()
    try:
        while not stop.is_set():
            records = kafka.messages_of(client.consume(1, timeout=0.1))
            metrics.heartbeat()
            member.check()
            if not records:
                idle_at = kafka.commit_idle(client, idle_at)
                continue
            began, record = time.monotonic(), records[0]
            places.busy()
            failpoints.hit("job.taken")
            outs = held.pop(record.origin, None)
            if outs is None:
                outs = _answer(client, reporter, job, child, record, stop, attempts, group, budget)
            gone = places.idle()
            if outs is None:
                return
            if record.partition in gone:
                # There is no offset to commit, so nothing would fence this result: whoever has the partition now may
                # do the job as well, and it would end twice. If nobody has, it comes again.
                held = {record.origin: outs}
                continue
            if not transaction.commit(client, writer, outs, "job", failures):
                # It comes again unless it was committed after all; in either case the work is not done again.
                held = {record.origin: outs}
                failures += 1
                writer, _ = transaction.start_over(client, bootstrap, transactional_id)
                continue
            failures = 0
            metrics.batch_done(metrics.by_topic(records), outs, time.monotonic() - began)
    finally:
        unwatch()
        reporter.flush(5)
        child.close()
        client.close()


def _answer(
    client: Consumer, reporter: Producer, job: Job, child: WarmChild, record: Record,
    stop: threading.Event, attempts: int, group: str, budget: Budget,
) -> list[Out] | None:
    """The result records of one input record; None where we were asked to stop in between."""
    if record.value is None:
        return []
    try:
        envelope, event = kafka.decode(record)
    except ContractError as error:
        budget.count(refused=True)
        budget.slow_down()
        return [dead_letter(group, record, str(error))]
    budget.count(refused=False)
    request = job.accept(envelope, event)
    if request is None or isinstance(request, list):
        return request or []
    return _work_on(client, reporter, job, child, request, stop, attempts)


def _work_on(
    client: Consumer, reporter: Producer, job: Job, child: WarmChild, request: Any,
    stop: threading.Event, attempts: int,
) -> list[Out] | None:
    """Have the child do it while the paused consumer stays in its group."""
    client.pause(client.assignment())
    began = time.monotonic()
    try:
        for attempt in range(1, attempts + 1):
            try:
                result = _ask(client, reporter, job, child, request, stop, began)
            except ChildLostError as error:
                log.warning("attempt %d of %d: %s", attempt, attempts, error)
                result = error
                continue
            if result is None:
                return None
            break
        return job.finished(result, time.monotonic() - began)
    finally:
        client.resume(client.assignment())


def _late(limits: Limits, total_s: float, silent_s: float) -> str:
    """Which limit is over, in words; "" for none."""
    if total_s > limits.total_s:
        return f"did not end within {limits.total_s:.0f} s"
    return f"made no progress for {silent_s:.0f} s" if silent_s > limits.silent_s else ""


def _ask(
    client: Consumer, reporter: Producer, job: Job, child: WarmChild, request: Any,
    stop: threading.Event, began: float,
) -> Any | None:
    child.ask(request)
    failpoints.hit("job.asked")
    limits, heard = job.limits(), time.monotonic()
    spoke = heard
    while not stop.is_set():
        metrics.heartbeat()
        message = child.receive()
        now = time.monotonic()
        heard = now if message is not None else heard
        if message is None and (late := _late(limits, now - began, now - heard)):
            log.error("the working process %s: it is ended", late)
            child.restart()
            return RuntimeError(f"the working process {late}, and was ended")
        if message is None and now - spoke < HEARTBEAT_S:
            # Paused: delivers nothing but errors, and keeps us in the group.
            said = client.poll(0.05)
            if said is not None:
                kafka.messages_of([said])
            continue
        spoke = now
        kind, body = message or ("progress", None)
        if kind == "result":
            failpoints.hit("job.answered")
            return body
        if kind == "error":
            return RuntimeError(body)
        if kind == "warm":
            continue
        for progress in job.progress(body, now - began):
            kafka.produce(reporter, progress)
            metrics.produced([progress])
    return None
