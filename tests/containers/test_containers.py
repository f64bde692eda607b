"""The data plane against servers somebody else runs: topics, landing, views, by addresses alone.

`containers` starts real Kafka and ClickHouse servers with Docker and skips where no engine answers; `local` is
the same smoke on the parts that `tuneloop up` starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from schemas import events as e
from schemas.identity import partition_of
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME, all_topics
from streams import kafka, kafka_security, sink
from streams.clickhouse import PASSWORD_FILE_VARIABLE, USER_VARIABLE, connect, rows
from streams.monitor.land import LANDED_TOPICS, ClickHouseStore
from streams.monitor.measure import note_policies
from streams.monitor.migrate import migrate
from tests.broker import Running, fresh, publish
from tests.examples import example
from tests.ids import IDS

KAFKA_IMAGE = "confluentinc/cp-kafka:7.6.0"
CLICKHOUSE_IMAGE = "clickhouse/clickhouse-server:25.8"
USER, PASSWORD = "tuneloop", "tuneloop"


@pytest.fixture(scope="module")
def containers() -> Iterator[tuple[str, str]]:
    """(bootstrap, ClickHouse URL) of containers; skips without a Docker engine."""
    from docker.errors import DockerException
    from testcontainers.community.clickhouse import ClickHouseContainer
    from testcontainers.community.kafka import KafkaContainer
    from testcontainers.core.docker_client import DockerClient

    try:
        DockerClient().client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers here, and this test needs containers: {error}")
    broker = KafkaContainer(KAFKA_IMAGE).with_kraft()
    for name in ("REPLICATION_FACTOR", "MIN_ISR"):
        broker.with_env(f"KAFKA_TRANSACTION_STATE_LOG_{name}", "1")
    server = ClickHouseContainer(CLICKHOUSE_IMAGE, port=8123, username=USER, password=PASSWORD)
    with ExitStack() as stack:
        stack.enter_context(broker)
        stack.enter_context(server)
        address = f"{server.get_container_host_ip()}:{server.get_exposed_port(8123)}"
        yield broker.get_bootstrap_server(), f"http://{address}"


@pytest.fixture(params=["local", pytest.param("containers", marks=pytest.mark.slow)])
def parts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    if request.param == "containers":
        monkeypatch.setenv(kafka_security.VARIABLE, "")
        given: tuple[str, str] = request.getfixturevalue("containers")
        (tmp_path / "password").write_text(PASSWORD)
        monkeypatch.setenv(USER_VARIABLE, USER)
        monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "password"))
        return given
    return request.getfixturevalue("kafka_bootstrap"), request.getfixturevalue("clickhouse_url")


def test_events_become_rows_and_views_by_addresses_alone(parts: tuple[str, str]) -> None:
    bootstrap, url = parts
    kafka.ensure_topics(bootstrap)
    kafka.ensure_topics(bootstrap)  # saying it again is harmless
    there = kafka.admin(bootstrap).list_topics(timeout=15).topics
    assert {topic.name: topic.partitions for topic in all_topics()} == {
        topic.name: len(there[topic.name].partitions) for topic in all_topics()
    }
    client = connect(url)
    migrate(client)
    assert migrate(client) == [], "a migration was applied twice"
    model = fresh("model")
    note_policies(client, {model: ModelPolicy()})
    answers = [
        example(e.InferenceServed, model, inference_id=IDS.issue(), version=1 + number % 2)
        for number in range(40)
    ]
    scores = [
        e.FeedbackGiven(inference_id=answer.inference_id, metric_name="correct", value=answer.version == 2)
        for answer in answers
    ]
    partitions = BY_NAME["usage.feedback"].partitions
    store = ClickHouseStore(connect(url), kafka.producer(bootstrap, linger_ms=0))
    with Running(lambda stop: sink.run(bootstrap, fresh("monitor"), LANDED_TOPICS, store, stop, linger_s=0.1)) as loop:
        publish(bootstrap, [kafka.out(answer, source="serve") for answer in answers])
        publish(bootstrap, [
            kafka.out(score, source="serve", partition=partition_of(score.inference_id, partitions))
            for score in scores
        ])  # fmt: skip
        query = "SELECT version, count() AS n, sum(correct) AS good FROM tuneloop.scored_answers " \
                "WHERE model = {m:String} GROUP BY version ORDER BY version"  # fmt: skip
        loop.until(lambda: sum(row["n"] for row in rows(client, query, m=model)) == 40, 60, "40 scored answers")
    scored = [(row["version"], row["n"], row["good"]) for row in rows(client, query, m=model)]
    assert scored == [(1, 20, 0), (2, 20, 20)]
    daily = rows(client, "SELECT sum(requests) AS n FROM tuneloop.usage_daily WHERE model = {m:String}", m=model)
    assert daily[0]["n"] == 40
