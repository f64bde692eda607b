"""Making Kafka compact now what it would compact within a day.

A deletion reaches the disk when the segment it deletes from is closed and cleaned and its old file removed. An idle
partition closes nothing: one filler record does it. Topic settings are lowered for that time and put back after; a note
of what they were outlives whoever lowered them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from streams import failpoints, kafka
from streams.artifacts import ArtifactError, ArtifactStore
from streams.erase.find import Place
from streams.kafka import Out

log = logging.getLogger(__name__)
FILE_DELETE_DELAY_MS = 1_000
BEFORE = "erasures/settings-before.json"
_HASTY = {
    "segment.ms": "100", "min.cleanable.dirty.ratio": "0.0", "max.compaction.lag.ms": "100",
    "file.delete.delay.ms": str(FILE_DELETE_DELAY_MS),
}  # fmt: skip


def compact_away(
    bootstrap: str, store: ArtifactStore, places: Sequence[Place], name: str, stored: Callable[[], int],
    timeout_s: float = 900.0,
) -> None:
    """Return once `stored()`, which counts what Kafka still holds of it, comes to nothing. Raises `TimeoutError`."""
    if not places:
        return
    deadline = time.monotonic() + timeout_s
    with _in_a_hurry(bootstrap, store, sorted({topic for topic, _ in places})):
        while True:
            time.sleep(0.3)
            fill(bootstrap, list(places), name)
            time.sleep(1.0)
            left = stored()
            if not left:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} records were not compacted away within {timeout_s:.0f} s")
            log.info("%s: %d records are still on disk", name, left)
        # What was cleaned away stays in renamed files for this long.
        time.sleep(FILE_DELETE_DELAY_MS / 1000 + 2.0)


def fill(bootstrap: str, places: list[Place], name: str) -> None:
    """One deletion of a key that never was, so that each partition closes its segment."""
    client = kafka.producer(bootstrap, linger_ms=0)
    for topic, partition in places:
        kafka.produce(client, Out(topic, f"filler/{name}".encode(), None, [], partition))
    if client.flush(30):
        raise TimeoutError("filler records were not acknowledged within 30 s")


@contextmanager
def _in_a_hurry(bootstrap: str, store: ArtifactStore, topics: list[str]) -> Iterator[None]:
    admin = kafka.admin(bootstrap)
    before = {topic: _own_settings(admin, topic) for topic in topics}
    store.put_bytes(BEFORE, msgspec.json.encode(before))
    failpoints.hit("erase.settings_noted")
    _alter(admin, {topic: dict(_HASTY) for topic in topics})
    try:
        yield
    finally:
        restore_settings(bootstrap, store)


def restore_settings(bootstrap: str, store: ArtifactStore) -> None:
    """Put back the settings that were noted before the hurry, also of one that was killed; nothing where none was."""
    try:
        before = msgspec.json.decode(store.read_bytes(BEFORE), type=dict[str, dict[str, str]])
    except ArtifactError:
        return
    admin = kafka.admin(bootstrap)
    _alter(admin, {topic: {name: own.get(name) for name in _HASTY} for topic, own in before.items()})
    store.delete(BEFORE)


def _own_settings(admin: AdminClient, topic: str) -> dict[str, str]:
    """What is set on the topic itself, without the broker's defaults."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    found = admin.describe_configs([resource])[resource].result(30)
    return {name: entry.value for name, entry in found.items() if not entry.is_default and name in _HASTY}


def _alter(admin: AdminClient, settings: dict[str, dict[str, str | None]] | dict[str, dict[str, str]]) -> None:
    """Set these settings; None takes a setting of the topic's own away."""
    resources = []
    for topic, values in settings.items():
        entries = [
            ConfigEntry(
                name, value, incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET
            )
            for name, value in values.items()
        ]
        resources.append(ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries))
    for future in admin.incremental_alter_configs(resources).values():
        future.result(30)
