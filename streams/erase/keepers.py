"""Deletions, and whether every consumer that keeps people's words in a state of its own has passed them."""

from __future__ import annotations

import time
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from schemas.topics import BY_NAME
from streams import kafka
from streams.erase.find import Place
from streams.kafka import Out

KEEPERS = ("prepare", "join-feedback", "monitor")


def delete(bootstrap: str, doomed: dict[Place, set[bytes]]) -> dict[Place, int]:
    """Write a deletion for every key; returns the offset of the last one of each partition. Raises `TimeoutError`."""
    last: dict[Place, int] = {}
    failed: list[str] = []

    def on_delivery(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(str(error))
        else:
            place = message.topic(), message.partition()
            last[place] = max(message.offset(), last.get(place, -1))

    client = kafka.producer(bootstrap)
    for (topic, partition), keys in doomed.items():
        for key in keys:
            kafka.produce(client, Out(topic, key, None, [], partition), on_delivery)
    if client.flush(60) or failed:
        raise TimeoutError(f"deletions were not acknowledged: {failed[0] if failed else 'no answer within 60 s'}")
    return last


def wait_until_passed(bootstrap: str, marks: dict[Place, int], timeout_s: float) -> None:
    """Return once each keeper has committed past the marks of the topics it reads. Raises `TimeoutError`."""
    deadline = time.monotonic() + timeout_s
    for group in KEEPERS:
        reads = {name for name, topic in BY_NAME.items() if group in topic.consumers}
        wanted = {place: at for place, at in marks.items() if place[0] in reads}
        client = kafka.asking(bootstrap, group)
        try:
            while behind := _behind(client, wanted):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{group} has not passed the deletions in {behind} within {timeout_s:.0f} s")
                time.sleep(0.3)
        finally:
            client.close()


def _behind(client: Consumer, wanted: dict[Place, int]) -> list[Place]:
    committed = client.committed([TopicPartition(*place) for place in wanted], timeout=30) if wanted else []
    return [(one.topic, one.partition) for one in committed if one.offset <= wanted[one.topic, one.partition]]
