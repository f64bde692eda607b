"""The local Kafka: the real broker comes up, keeps what it acknowledged through kill -9, and resumes on other ports."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import NewTopic

from deploy.local import kafka
from deploy.local.errors import LocalPartError
from deploy.local.kafka_start import FENCED_BEFORE, FENCED_FIRST, is_fenced
from deploy.local.ports import free_ports
from streams import kafka as streams_kafka
from tests.broker import until
from tests.parts import credential


@pytest.fixture(scope="module")
def classpath() -> str:
    try:
        return kafka.fetch_jars()
    except LocalPartError as error:
        pytest.skip(str(error))


@pytest.fixture
def spawned() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def start(data: Path, classpath: str, spawned: list[subprocess.Popen[bytes]]) -> kafka.Prepared:
    prepared = kafka.prepare(data, free_ports(1)[0], credential(data), classpath)
    with (data / "out").open("ab") as out:
        spawned.append(subprocess.Popen(prepared.argv, stdout=out, stderr=out))
    until = time.monotonic() + 60
    while not kafka.registered(prepared.bootstrap):
        assert spawned[-1].poll() is None, (data / "out").read_text()[-2000:]
        assert time.monotonic() < until, "the broker was not ready within 60 s"
        time.sleep(0.05)
    return prepared


def produce(bootstrap: str, values: range) -> None:
    producer = Producer({**streams_kafka.client_settings(bootstrap), "transactional.id": "test", "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    for value in values:
        producer.produce("numbers", str(value).encode())
    producer.commit_transaction(30)


def consume(bootstrap: str, count: int) -> list[int]:
    settings = {**streams_kafka.client_settings(bootstrap), "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer({**settings, "isolation.level": "read_committed"})
    consumer.subscribe(["numbers"])
    values: list[int] = []
    until = time.monotonic() + 30
    while len(values) < count and time.monotonic() < until:
        for message in consumer.consume(100, timeout=0.2):
            assert message.error() is None
            values.append(int(message.value()))
    consumer.commit(asynchronous=False)
    consumer.close()
    return values


@pytest.mark.long
def test_a_start_from_classes_of_before_takes_part_of_the_time(tmp_path, classpath, monkeypatch) -> None:
    def started_cpu_s(prepared: kafka.Prepared) -> float:
        broker = subprocess.Popen(prepared.argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert broker.stdout is not None
        assert any(kafka.STARTED_LINE in line for line in broker.stdout)
        used = psutil.Process(broker.pid).cpu_times()
        broker.kill()
        broker.wait()
        return used.user + used.system

    assert kafka.ahead_of_time(classpath).exists()
    fast = started_cpu_s(kafka.prepare(tmp_path / "fast", free_ports(1)[0], credential(tmp_path), classpath))
    monkeypatch.setenv("TUNELOOP_CACHE", "/proc/nothing-can-be-written-here")
    notes: list[str] = []
    slow = started_cpu_s(kafka.prepare(tmp_path / "slow", free_ports(1)[0], credential(tmp_path), classpath, on_note=notes.append))
    assert "starts as it is" in notes[-1] and fast < 0.8 * slow


def test_it_serves_and_keeps_everything_through_kill_9(tmp_path, classpath, spawned) -> None:
    first = start(tmp_path, classpath, spawned)
    admin = streams_kafka.admin(first.bootstrap)
    admin.create_topics([NewTopic("numbers", 1, 1)])["numbers"].result(30)
    produce(first.bootstrap, range(100))
    assert consume(first.bootstrap, 100) == list(range(100))
    written = (tmp_path / "server.properties").stat().st_mtime_ns
    assert kafka.prepare(tmp_path, int(first.bootstrap.split(":")[1]), credential(tmp_path), classpath) == first
    assert (tmp_path / "server.properties").stat().st_mtime_ns == written, "a running broker's files stay"
    listening = psutil.Process(spawned[-1].pid).net_connections("inet")
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    produce(first.bootstrap, range(100, 150))
    spawned[-1].kill()
    spawned[-1].wait()
    # The next start finds the broker's and the controller's old ports taken by somebody else.
    taken = int((tmp_path / "controller.port").read_text())
    with socket.create_server(("127.0.0.1", taken)):
        second = start(tmp_path, classpath, spawned)
    assert second.bootstrap != first.bootstrap
    assert (tmp_path / "out").read_text().count(FENCED_FIRST) == 1, "after a kill, and then alone"
    assert consume(second.bootstrap, 50) == list(range(100, 150)), "the group goes on where it had committed"
    produce(second.bootstrap, range(150, 160))
    assert consume(second.bootstrap, 10) == list(range(150, 160))
    spawned[-1].terminate()
    spawned[-1].wait(30)
    third = start(tmp_path, classpath, spawned)
    assert (tmp_path / "out").read_text().count(FENCED_FIRST) == 1, "not after an orderly end"
    produce(third.bootstrap, range(160, 170))
    assert consume(third.bootstrap, 10) == list(range(160, 170))


def test_a_kill_while_it_starts_after_a_kill_costs_no_second_wait(tmp_path, classpath, spawned) -> None:
    first = start(tmp_path, classpath, spawned)
    admin = streams_kafka.admin(first.bootstrap)
    admin.create_topics([NewTopic("numbers", 1, 1)])["numbers"].result(30)
    produce(first.bootstrap, range(100))
    assert is_fenced(tmp_path) is False
    spawned[-1].kill()
    spawned[-1].wait()
    with (tmp_path / "out").open("ab") as out:
        starting = subprocess.Popen(first.argv, stdout=out, stderr=out)
    spawned.append(starting)
    until(lambda: FENCED_FIRST in (tmp_path / "out").read_text(), 60, FENCED_FIRST)
    starting.kill()
    starting.wait()
    assert is_fenced(tmp_path) is True
    second = start(tmp_path, classpath, spawned)
    said = (tmp_path / "out").read_text()
    assert said.count(FENCED_FIRST) == said.count(FENCED_BEFORE) == 1
    assert consume(second.bootstrap, 100) == list(range(100))


def test_a_taken_port_is_named(tmp_path, classpath) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalPartError, match=f"Port {port} .* in use"):
            kafka.prepare(tmp_path, port, credential(tmp_path), classpath)


def test_nobody_there_is_not_ready() -> None:
    assert not kafka.ready(f"127.0.0.1:{free_ports(1)[0]}", timeout_s=0.5)
