"""How far each consumer lags: records between its committed offsets and the end of its topics."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException

from schemas.topics import CONSUMER_GROUPS
from streams import kafka, lag

NO_BROKER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)


def lags(bootstrap: str, names: Sequence[str], timeout_s: float = 5.0) -> dict[str, int | None]:
    """Records behind, by consumer group; None where the broker does not answer or nothing was committed yet."""
    found: dict[str, int | None] = {}
    for group in CONSUMER_GROUPS:
        if group in names:
            client = kafka.asking(bootstrap, group)
            try:
                behind = lag.of_group(client, timeout_s)
            except KafkaException as error:
                if error.args[0].code() in NO_BROKER:  # to ask for every group would take as long for each
                    return dict.fromkeys(names)
                behind = {}
            finally:
                client.close()
            found[group] = sum(behind.values()) if behind else None
    return found
