"""One Kafka transaction: records, and the input offsets that they answer. What the transact and long-job loops share.

A transaction that fails is aborted, and one whose outcome is unknown is left as it is: the broker settles either when
`start_over` makes a producer anew under the same name, and the committed offsets then say which it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from streams import failpoints, kafka, metrics
from streams.kafka import Out, Record

log = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 4.0
# What a request takes is milliseconds. One that meets the death of a broker may never return, whatever its own time-out
# is (seen in librdkafka 2.16: send_offsets_to_transaction alone); being given up while it was merely slow costs a
# repeated batch.
HUNG_S, LONGEST_HUNG_S = 1.0, 4.0
# What is refused that often in a row is refused for good, as a record that is too large: to go on would only hide it.
ATTEMPTS = 8
START_OVER_LIMIT_S = 8.0


class FencedError(RuntimeError):
    """Another process has taken this one's place; the only right thing is to exit."""


class RefusedError(RuntimeError):
    """The same records were refused again and again."""


class UnansweredError(RuntimeError):
    """A request did not return; its producer is of no more use."""


def commit(
    client: Consumer, writer: Producer, outs: list[Out], stage: str, failures: int, left: Sequence[Record] = ()
) -> bool:
    """Publish `outs` with the consumer's positions. True = committed; False = `start_over` and do it again.

    `left` were read and not dealt with: a partition's position is before the first of these. `stage` names the
    failpoints: STAGE.begun, .produced, .offsets_sent, .committed; `failures` is how often it has failed in a row.
    Raises `FencedError`, `RefusedError`.
    """
    try:
        with kafka.at_most(kafka.TRANSACTION_LIMIT_S, "a transaction", client):
            _publish(client, writer, outs, left, stage, min(HUNG_S * 2**failures, LONGEST_HUNG_S))
    except UnansweredError as error:
        log.warning("transaction given up, to be done again: %s", error)
    except KafkaException as error:
        reason = error.args[0]
        if reason.fatal():
            raise FencedError(f"transaction refused for good: {reason.str()}") from error
        if failures + 1 >= ATTEMPTS:
            raise RefusedError(f"refused {ATTEMPTS} times in a row: {reason.str()}") from error
        log.warning("transaction aborted, to be done again: %s", reason.str())
        with kafka.at_most(kafka.TRANSACTION_LIMIT_S, "an abort", client):
            _abort(writer)
    else:
        metrics.COMMITS.inc()
        return True
    metrics.ABORTED.inc()
    return False


def _publish(
    client: Consumer, writer: Producer, outs: list[Out], left: Sequence[Record], stage: str, patience_s: float
) -> None:
    writer.begin_transaction()
    failpoints.hit(f"{stage}.begun")
    for record in outs:
        kafka.produce(writer, record)
    failpoints.hit(f"{stage}.produced")
    places, group = _before(kafka.positions(client), left), client.consumer_group_metadata()
    request = lambda: writer.send_offsets_to_transaction(places, group, REQUEST_TIMEOUT_S)  # noqa: E731
    _answered(request, "sending offsets", patience_s)
    failpoints.hit(f"{stage}.offsets_sent")
    _retrying(writer.commit_transaction)
    failpoints.hit(f"{stage}.committed")


def _before(positions: list[TopicPartition], left: Sequence[Record]) -> list[TopicPartition]:
    """These positions, moved back to the first record of each partition that is left."""
    first = {(record.topic, record.partition): record.offset for record in reversed(left)}
    return [
        TopicPartition(place.topic, place.partition, first.get((place.topic, place.partition), place.offset))
        for place in positions
    ]


def _answered(request: Callable[[], object], what: str, patience_s: float) -> None:
    """Run `request` in a thread that is left behind where it hangs. Raises `UnansweredError`, or what it raised."""
    raised: list[Exception] = []

    def body() -> None:
        try:
            request()
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked
            raised.append(error)

    asking = threading.Thread(target=body, daemon=True, name=what)
    asking.start()
    asking.join(patience_s)
    if asking.is_alive():
        raise UnansweredError(f"{what} did not return within {patience_s:.0f} s")
    if raised:
        raise raised[0]


def _retrying(request: Callable[[], object], attempts: int = 5) -> None:
    for attempt in range(attempts):
        try:
            request()
        except KafkaException as error:
            if not error.args[0].retriable() or attempt == attempts - 1:
                raise
        else:
            return


def _abort(writer: Producer) -> None:
    try:
        writer.abort_transaction(REQUEST_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].fatal():
            raise FencedError(f"abort refused: {error.args[0].str()}") from error
        log.warning("abort did not answer (%s); a fresh producer settles it", error.args[0].str())


def fresh_producer(bootstrap: str, transactional_id: str) -> Producer:
    """A producer under this name; whoever had it before is fenced, what they left open is settled.

    After a request that timed out its outcome is unknown: only init_transactions of a new producer settles it.
    """
    writer = kafka.producer(bootstrap, transactional_id=transactional_id)
    _retrying(lambda: writer.init_transactions(30))
    return writer


def start_over(client: Consumer, bootstrap: str, transactional_id: str) -> tuple[Producer, list[TopicPartition]]:
    """A fresh producer, and the consumer back at its committed offsets; with the partitions that it has."""
    # Seen to hang for minutes while the assignment was being lost; `seek` has no time-out of its own.
    with kafka.at_most(START_OVER_LIMIT_S, "starting over after an abort", client):
        return fresh_producer(bootstrap, transactional_id), _rewind(client)


def _rewind(client: Consumer) -> list[TopicPartition]:
    assignment = client.assignment()
    for place in client.committed(assignment, timeout=15):
        offset = place.offset if place.offset >= 0 else 0
        client.seek(TopicPartition(place.topic, place.partition, offset))
    return assignment
