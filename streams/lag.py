"""How far a consumer is behind, by partition: noted by the consumer itself, or asked of the broker about its group.

Changes nothing. `ConsumerLag` counts from where the consumer stands, `of_group` from what its group has committed.
"""

from __future__ import annotations

import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

Place = tuple[str, int]
NOTE_EVERY_S = 1.0


class ConsumerLag:
    """Records between the position in each assigned partition and its end, as last heard while fetching.

    Noted by the thread that owns the consumer, read in `records` by anybody: a consumer takes one thread at a time, and
    its own, always inside `consume`, lets no other in (measured: a scrape that called it waited for more than 5 s).
    """

    def __init__(self, client: Consumer) -> None:
        self.records: dict[Place, int] = {}
        self._client = client
        self._committed: dict[Place, int] = {}
        self._noted_at = float("-inf")

    def note(self) -> None:
        """Note it anew, at most once in `NOTE_EVERY_S`. Asks the broker nothing, but once after an assignment."""
        now = time.monotonic()
        if now - self._noted_at < NOTE_EVERY_S:
            return
        self._noted_at = now
        places = self._client.position(self._client.assignment())
        stands = {(place.topic, place.partition): place.offset for place in places if place.offset >= 0}
        unread = [place for place in places if place.offset < 0]
        stands |= self._committed_of(unread)
        self.records = {place: behind for place in stands if (behind := self._behind(place, stands[place])) is not None}

    def _committed_of(self, unread: list[TopicPartition]) -> dict[Place, int]:
        """Where those stand that nothing was read from since the assignment, or since a batch was taken back.

        What was asked before they had a position is forgotten meanwhile: they have moved since.
        """
        names = {(place.topic, place.partition) for place in unread}
        self._committed = {place: offset for place, offset in self._committed.items() if place in names}
        missing = [TopicPartition(*place) for place in names - self._committed.keys()]
        if missing:
            try:
                found = self._client.committed(missing, timeout=1.0)
            except KafkaException:  # a rebalance, or no broker: the next look may know
                found = []
            self._committed |= {(place.topic, place.partition): place.offset for place in found}
        return self._committed

    def _behind(self, place: Place, offset: int) -> int | None:
        low, end = self._client.get_watermark_offsets(TopicPartition(*place), cached=True) or (-1, -1)
        return None if end < 0 else max(0, end - (offset if offset >= 0 else max(low, 0)))


def committed(client: Consumer, timeout_s: float) -> dict[Place, int]:
    """The offsets that the group of `client` has committed. Raises `KafkaException`."""
    topics = client.list_topics(timeout=timeout_s).topics
    places = [TopicPartition(name, number) for name, topic in topics.items() for number in topic.partitions]
    found = client.committed([place for place in places if not place.topic.startswith("__")], timeout=timeout_s)
    return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}


def of_group(client: Consumer, timeout_s: float) -> dict[Place, int]:
    """Records between the committed offsets of `client`'s group and the ends of those partitions.

    Empty where it committed nothing. Raises `KafkaException`.
    """
    return {
        place: max(0, client.get_watermark_offsets(TopicPartition(*place), timeout=timeout_s)[1] - offset)
        for place, offset in committed(client, timeout_s).items()
    }
