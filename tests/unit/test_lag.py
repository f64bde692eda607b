"""A consumer's lag by its positions, where a partition has none: before its first record, and after a batch was taken back."""

from __future__ import annotations

from confluent_kafka import TopicPartition

from streams.lag import ConsumerLag


class FakeConsumer:
    """One partition whose end is at 247; a real one cannot be told when to have no position."""

    position_at, committed_at, asked = -1001, -1001, 0

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("t", 0)]

    def position(self, _: object) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.position_at)]

    def committed(self, _: object, timeout: float) -> list[TopicPartition]:
        self.asked += 1
        return [TopicPartition("t", 0, self.committed_at)]

    def get_watermark_offsets(self, _: object, cached: bool) -> tuple[int, int]:
        return 0, 247


def noted(lag: ConsumerLag) -> int:
    lag._noted_at = float("-inf")
    lag.note()
    return lag.records["t", 0]


def test_without_a_position_the_committed_offset_counts_and_is_asked_for_once() -> None:
    client = FakeConsumer()
    lag = ConsumerLag(client)  # type: ignore[arg-type]
    assert [noted(lag), noted(lag)] == [247, 247] and client.asked == 1


def test_a_batch_that_was_taken_back_asks_anew() -> None:
    client = FakeConsumer()
    lag = ConsumerLag(client)  # type: ignore[arg-type]
    noted(lag)
    client.position_at = client.committed_at = 247
    assert noted(lag) == 0
    client.position_at = -1001
    assert noted(lag) == 0 and client.asked == 2
