"""How far each consumer lags: records between its committed offsets and the end of its topics."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from schemas.topics import CONSUMER_GROUPS
from streams import lag


def lags(bootstrap: str, names: Sequence[str], timeout_s: float = 5.0) -> dict[str, int | None]:
    """Records behind, by consumer group; None where the broker does not answer or nothing was committed yet."""
    found: dict[str, int | None] = {}
    if not set(CONSUMER_GROUPS) & set(names):
        return found
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException:  # asking for every group would take as long for each
        return dict.fromkeys(names)
    for group in CONSUMER_GROUPS:
        if group in names:
            try:
                behind = lag.of_group(admin, group, timeout_s)
            except (KafkaException, TimeoutError):
                behind = {}
            found[group] = sum(behind.values()) if behind else None
    return found
