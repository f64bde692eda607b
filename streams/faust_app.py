"""Faust with this project's settings: the stateful, low-rate control plane.

At least once over tables that are rebuilt from their changelogs. Faust acknowledges a message whose agent
raised, so agents hand failures to the dead letters themselves, and whatever else fails ends the process (`take`);
and it reads uncommitted records, so an agent reads a transactional topic only where that is harmless, and says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import faust
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.cimpl import NewTopic
from faust.app import App
from faust.transport.drivers import aiokafka

from schemas.topics import BY_NAME
from streams import kafka, metrics
from streams.kafka import EX_TEMPFAIL, Out, Record
from streams.kafka_security import faust_credentials

log = logging.getLogger(__name__)


class _Consumer(aiokafka.Consumer):
    """Skips nothing after a recovery, as Faust's own does (its bug 596).

    Faust takes up the partitions of its agents, seeks to what is committed, and then lets messages flow, which empties
    its queues: what it fetched in between is gone until the next start, and nothing behind it is ever committed. Here
    partitions are taken up only when messages flow, and a fetch that was under way meanwhile is done again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held_back: set[Any] = set()
        self._changes = 0

    def pause_partitions(self, tps: Iterable[Any]) -> None:
        tps = set(tps)
        self._changes += 1
        self._held_back -= tps
        super().pause_partitions(tps)

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        self._held_back.update(tps)

    def resume_flow(self) -> None:
        held_back, self._held_back = self._held_back, set()
        self._changes += 1
        super().resume_partitions(held_back)
        super().resume_flow()

    async def _getmany(self, active_partitions: set[Any] | None, timeout: float) -> Any:
        before = self._changes
        # A copy: Faust empties the set while the fetch looks at it, and an empty one means all partitions.
        records = await super()._getmany(active_partitions and set(active_partitions), timeout)
        if self._changes == before:
            return records
        # Nothing was handed on since the fetch began, so that to begin again at what is committed leaves nothing out.
        if any(not self._is_changelog_tp(tp) for tp in records):
            await self.perform_seek()
        return {}


class _App(faust.App):
    def _new_transport(self) -> Any:
        transport = super()._new_transport()
        transport.Consumer = _Consumer
        return transport


def faust_app(name: str, bootstrap: str, data_dir: str, partitions: int, replication: int = 1) -> App:
    """A Faust application with this project's settings: raw bytes, no web server, quick recovery."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    app = _App(
        name, broker=f"kafka://{bootstrap}", datadir=data_dir, store="memory://", topic_partitions=partitions,
        key_serializer="raw", value_serializer="raw", web_enabled=False, topic_replication_factor=replication,
        broker_session_timeout=6.0, broker_heartbeat_interval=2.0, stream_wait_empty=False,
        consumer_auto_offset_reset="earliest", producer_linger=0.0, broker_commit_interval=1.0,
        table_cleanup_interval=30.0, producer_acks=-1, topic_disable_leader=True,
        broker_credentials=faust_credentials(),
        # What one producer got past the broker's limit of 1 MB we must get past it again, with more headers: the
        # limit is on what is compressed, and lz4 shrinks no base64.
        producer_compression_type="zstd", producer_max_request_size=1 << 25,
    )

    @app.timer(1.0)
    async def beat() -> None:
        metrics.heartbeat()

    return app


def bytes_topic(app: App, name: str) -> Any:
    """A topic of ours as Faust sees it: raw bytes, never created by Faust."""
    return app.topic(
        name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw",
        partitions=BY_NAME[name].partitions if name in BY_NAME else 1,
    )


def record_of(event: Any, topic: str) -> Record:
    """What an agent was given of one of our topics, counted as consumed."""
    metrics.consumed(topic)
    message = event.message
    headers = message.headers.items() if isinstance(message.headers, dict) else message.headers or ()
    timestamp_ms = round((message.timestamp or 0) * 1000)  # Faust has seconds: cut off, some come out 1 ms short
    return Record(
        topic, message.partition, message.offset, timestamp_ms, message.key, message.value, list(headers)
    )


def take(app: App, topic: Any, name: str, handle: Callable[[Any], Awaitable[None]]) -> None:
    """Have an agent of this name hand every event of `topic` to `handle`. A failure ends this process, to be
    started again: Faust would acknowledge the message and go on without it."""

    @app.agent(topic, name=name)
    async def agent(stream: Any) -> None:
        async for event in stream.events():
            try:
                await handle(event)
            except Exception:
                where = event.message
                log.exception("%s/%d/%d: ending this process", where.topic, where.partition, where.offset)
                os._exit(EX_TEMPFAIL)


class Sender:
    """Sends records through the application's producer."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._topics: dict[str, Any] = {}

    async def send(self, out: Out) -> asyncio.Future[Any]:
        """Enqueue one record; what comes back is done once the broker has it.

        Faust waits for that before it commits offsets; wait for it yourself before you change what the record
        rests on. A record that the broker refuses ends this process.
        """
        if out.topic not in self._topics:
            self._topics[out.topic] = bytes_topic(self._app, out.topic)
        topic = self._topics[out.topic]
        sent = await topic.send(key=out.key, value=out.value, headers=out.headers, partition=out.partition)
        sent.add_done_callback(_end_if_refused)
        metrics.produced([out])
        return sent

    async def send_all(self, outs: list[Out]) -> None:
        """Send these records in their order, and return once the broker has them all."""
        await asyncio.gather(*[await self.send(out) for out in outs])


def _end_if_refused(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.critical("a record was not taken by the broker (%s): ending this process", type(error).__name__)
        os._exit(EX_TEMPFAIL)


def create_internal(bootstrap: str, topics: Mapping[str, Mapping[str, str]], partitions: int, replication: int) -> None:
    """Create an application's own topics (with their settings) before Faust subscribes: it would create them at
    the same time, and an assignment that comes first ignores a topic that is not there yet and leaves it unread
    for ever. Raises `KafkaException`."""
    admin = kafka.admin(bootstrap)
    missing = [NewTopic(name, partitions, replication, config=dict(config)) for name, config in topics.items()]
    for future in admin.create_topics(missing).values():
        try:
            future.result(30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
