"""`join-feedback`: pairs an answer with what was said of it and writes the training record that follows.

A Faust application. Reads `usage.inferences` and `usage.feedback`, writes `training.raw`, and what is malformed, does
not fit its metric or found no answer in time to its dead letters. Either may come first. Feedback may come from any
producer with any partitioner, so it is re-keyed by its inference before it meets the tables; the inferences are keyed
that way already. The rules, the rows and their expiry stand in `streams.join`.

At least once: a record's id is derived from the inference and the kind, so that saying it twice, or a later
correction, replaces instead of adding. A mark is kept, and waiting feedback is given up, only after the broker has
what was made of it: taken up again after a crash, each finds itself either done or still to do.

Both inputs are written without transactions, except by a replay of dead letters; as every record replaces
itself, reading uncommitted ones is harmless here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from confluent_kafka import KafkaException
from faust.app import App

from schemas import codec
from schemas.codec import ContractError
from schemas.events import InferenceServed, RecordSubmitted
from schemas.identity import InferenceIds, MadeUpIdError, partition_of
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME, DAY_MS
from streams import kafka
from streams.dead_letters import Budget, dead_letter
from streams.disk_tables import Round, disk_table, erase, parts, remove
from streams.faust_app import Sender, bytes_topic, create_internal, faust_app, record_of, take
from streams.join import expiry, rows
from streams.join.rows import FEEDBACK, GROUP, INFERENCES, REKEYED, Answer, Waiting
from streams.join.rules import Lesson, kind_of, to_write, training_record, unfit
from streams.kafka import Out, Record

log = logging.getLogger(__name__)
NO_ANSWER = "InferenceMissing"
MOST_UNKNOWN = 100  # metrics that are no model's, of which the log speaks
# Of a training record, without its headers: what a broker takes (1 MiB) even where nothing of it can be compressed.
LARGEST_BYTES = 900_000


def as_out(record: RecordSubmitted, cause: codec.Envelope, partitions: int) -> Out:
    """The record for `training.raw`: partition by subject, time of the feedback."""
    return kafka.out(
        record, source=GROUP, partition=partition_of(record.subject_id, partitions), subject=record.model,
        correlation_id=cause.correlation_id or cause.id, causation_id=cause.id,
        event_id=f"{cause.id}/{record.record_id}", time_ms=cause.time_ms,
    )


def _written(lesson: Lesson, feedback: Record) -> Out:
    """A training record, or the dead letter of the feedback that makes one which is too large for its topic."""
    out = as_out(lesson.record, lesson.cause, BY_NAME["training.raw"].partitions)
    size = len(out.value or b"")
    if size <= LARGEST_BYTES:
        return out
    return dead_letter(GROUP, feedback, f"expected a training record of at most {LARGEST_BYTES} bytes, got {size}")


class Join:
    """What is done with one event each. The agents of answers and of feedback run beside each other, so what
    belongs to one partition is done under its lock."""

    def __init__(
        self, app: App, policies: Mapping[str, ModelPolicy], wait_days: float, now_ms: Callable[[], int],
        budget: Budget | None = None, ids: InferenceIds | None = None,
    ) -> None:
        self._ids = ids
        self._policies, self._wait_days, self._now_ms = policies, wait_days, now_ms
        self._sender, self._budget = Sender(app), budget or Budget()
        self._answers = disk_table(app, "answers", rows.PARTITIONS)
        self._waiting = disk_table(app, "waiting", rows.PARTITIONS)
        self._old, self._late = Round(self._answers), Round(self._waiting)
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unknown: set[tuple[str, str]] = set()

    async def rekey(self, event: Any) -> None:
        """Send feedback on to the partition of its answer, and a deletion to all of them."""
        record = record_of(event, FEEDBACK)
        if record.value is None:
            await self._sender.send_all(rows.forgotten(record.key or b""))
            return
        pair = await self._decoded(record)
        if pair is not None:
            await self._sender.send(rows.rekeyed(record, pair[1].inference_id))

    async def take_answer(self, event: Any) -> None:
        """Keep an answer, and learn from what waits for it."""
        record = record_of(event, INFERENCES)
        async with self._locks[record.partition]:
            if record.value is None:
                await self._forget_answer(record.partition, record.key or b"")
                return
            pair = await self._decoded(record)
            if pair is None:
                return
            key = pair[1].inference_id.encode()
            known = self._answer(key)
            since_ms = known.since_ms if known else min(record.timestamp_ms, self._now_ms())
            answer = Answer(since_ms, known.made if known else {}, record.value)
            self._answers[key] = rows.pack(answer)
            waiting = self._waiting_for(record.partition, key)
            await self._learn(pair[1], answer, [row.feedback for row in waiting.values()])
            await remove(self._waiting, record.partition, list(waiting))

    async def take_rekeyed(self, event: Any) -> None:
        """Take feedback, the clock or a deletion from the re-keyed topic."""
        record = record_of(event, REKEYED)
        async with self._locks[record.partition]:
            if record.value is None:
                await self._forget_feedback(record.partition, record.key)
                return
            try:
                clock_ms = rows.clock_of(record)
                feedback = rows.feedback_of(record) if clock_ms is None else None
            except rows.UNREADABLE as error:
                await self._sender.send(dead_letter(GROUP, record, f"neither feedback nor the clock: {error}"))
                return
            if feedback is not None:
                await self._take_feedback(feedback)
            else:
                await self._expire(record.partition, clock_ms or 0)

    async def _take_feedback(self, feedback: Record) -> None:
        """Learn from feedback, or have it wait."""
        pair = await self._decoded(feedback)
        if pair is None:
            return
        inference = pair[1].inference_id.encode()
        answer = self._answer(inference)
        if answer is not None:
            await self._learn(msgspec.json.decode(answer.value, type=InferenceServed), answer, [feedback])
            return
        key = rows.waiting_key(inference, feedback)
        before = self._waiting.get(key)  # its own row, where this is done again after a crash
        since_ms = rows.unpack_waiting(before).since_ms if before else self._now_ms()
        self._waiting[key] = rows.pack(Waiting(since_ms, feedback))

    async def _learn(self, inference: InferenceServed, answer: Answer, said: list[Record]) -> None:
        """Write the training records that follow from feedback on an answer, then the marks of what was written."""
        policy = self._policies.get(inference.model)
        metrics, thresholds = (policy.metrics, policy.thresholds) if policy else ({}, {})
        lessons: list[tuple[Lesson, Record]] = []
        for feedback in said:
            pair = await self._decoded(feedback)
            if pair is None:
                continue
            if wrong := unfit(pair[1], metrics):
                await self._refuse(feedback, wrong)
                continue
            self._note_unknown(inference.model, pair[1].metric_name, metrics)
            if record := training_record(inference, pair[1], metrics, thresholds):
                lessons.append((Lesson(record, *pair), feedback))
        written, made = to_write(answer.made, [lesson for lesson, _ in lessons])
        causes = {id(lesson): feedback for lesson, feedback in lessons}
        await self._sender.send_all([_written(lesson, causes[id(lesson)]) for lesson in written])
        if made != answer.made:
            kept = msgspec.structs.replace(answer, made=made)
            self._answers[inference.inference_id.encode()] = rows.pack(kept)

    def _note_unknown(self, model: str, metric: str, metrics: Mapping[str, str]) -> None:
        """Say once that a metric is none of its model's: ClickHouse has what was said, nothing else uses it."""
        unknown = (model, metric[:64])
        if not kind_of(metric, metrics) and unknown not in self._unknown and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.add(unknown)
            log.warning("%s has no metric %r: what is said by it is stored, and teaches nothing", *unknown)

    async def _forget_answer(self, partition: int, key: bytes) -> None:
        await erase(self._waiting, partition, list(self._waiting_for(partition, key)))
        await erase(self._answers, partition, [key])

    async def _forget_feedback(self, partition: int, key: bytes | None) -> None:
        """Look through all that waits: deletions are rare, and it may wait for any answer."""
        for part in parts(self._waiting, partition):
            gone = [row for row, value in part if rows.unpack_waiting(value).feedback.key == key]
            await erase(self._waiting, partition, gone)

    async def _expire(self, partition: int, clock_ms: int) -> None:
        """Give up what has waited too long, in the next part of both tables."""
        before_ms = clock_ms - int(self._wait_days * DAY_MS)
        waiting = {key: rows.unpack_waiting(value) for key, value in self._late.next_part(partition)}
        late = {key: row.feedback for key, row in waiting.items() if row.since_ms < before_ms}
        reason = f"no inference with this id within {self._wait_days:g} days"
        await self._sender.send_all([dead_letter(GROUP, record, reason, NO_ANSWER) for record in late.values()])
        await remove(self._waiting, partition, list(late))
        answers = self._old.next_part(partition)
        old = [key for key, value in answers if rows.unpack_answer(value).since_ms < before_ms]
        await remove(self._answers, partition, old)

    def _answer(self, key: bytes) -> Answer | None:
        stored = self._answers.get(key)
        return rows.unpack_answer(stored) if stored else None

    def _waiting_for(self, partition: int, inference: bytes) -> dict[bytes, Waiting]:
        found = [row for part in parts(self._waiting, partition, rows.waiting_prefix(inference)) for row in part]
        return {key: rows.unpack_waiting(value) for key, value in found if rows.waits_for(key, inference)}

    async def _decoded(self, record: Record) -> tuple[codec.Envelope, Any] | None:
        """Envelope and event of a record; None where it became a dead letter."""
        try:
            pair = kafka.decode(record)
            if self._ids is not None:
                self._ids.check(pair[1])
            self._budget.count(refused=False)
            return pair
        except (ContractError, MadeUpIdError) as error:
            await self._refuse(record, str(error))
            return None

    async def _refuse(self, record: Record, reason: str) -> None:
        self._budget.count(refused=True)
        await self._sender.send(dead_letter(GROUP, record, reason))
        await asyncio.sleep(self._budget.wait_s())


def build(
    bootstrap: str,
    policies: Mapping[str, ModelPolicy],
    data_dir: str,
    *,
    wait_days: float = 30.0,
    replication: int = 1,
    expire_every_s: float = expiry.EVERY_S,
    now_ms: Callable[[], int] = codec.now_ms,
    budget: Budget | None = None,
    ids: InferenceIds | None = None,
) -> App:
    """The Faust application. `policies` by model: whose thumbs and scores teach what.

    What `ids` did not issue is refused at once, instead of waiting for an answer that never comes; None takes any id.
    """
    changelogs = {f"{GROUP}-{table}-changelog": rows.CHANGELOG_CONFIG for table in ("answers", "waiting")}
    create_internal(bootstrap, {REKEYED: rows.REKEYED_CONFIG, **changelogs}, rows.PARTITIONS, replication)
    app = faust_app(GROUP, bootstrap, data_dir, rows.PARTITIONS, replication)
    join = Join(app, policies, wait_days, now_ms, budget, ids)
    rekeyed = app.topic(REKEYED, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw",
                        partitions=rows.PARTITIONS, internal=True)  # fmt: skip
    take(app, bytes_topic(app, INFERENCES), "answers", join.take_answer)
    take(app, bytes_topic(app, FEEDBACK), "rekey", join.rekey)
    take(app, rekeyed, "join", join.take_rekeyed)
    sender = Sender(app)

    @app.timer(expire_every_s)
    async def tell_the_time() -> None:
        mine = sorted(tp.partition for tp in app.consumer.assignment() if tp.topic == REKEYED)
        try:
            inputs = (INFERENCES, FEEDBACK)
            clock_ms = await asyncio.to_thread(expiry.taken_in_until, bootstrap, GROUP, inputs, now_ms())
        except (KafkaException, TimeoutError) as error:
            log.warning("nothing expires for now: %s", error)
            return
        await sender.send_all([rows.clock(partition, clock_ms) for partition in mine])

    return app
