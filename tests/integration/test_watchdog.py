"""A process that has fallen out of its loop or its group ends; one that only has nothing to do does not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from streams import kafka, transact, watchdog
from streams.kafka import Out, Record
from tests.broker import Running, fresh, fresh_topic, lag, members, publish, until

HUNG = """
import logging, time
from streams import watchdog
logging.basicConfig()
began = time.monotonic()
watchdog.watch(lambda: time.monotonic() - began, limit_s=0.4)
def the_loop_that_hangs():
    time.sleep(60)
the_loop_that_hangs()
"""


def test_a_loop_that_hangs_ends_its_process_and_says_where() -> None:
    ended = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == kafka.EX_TEMPFAIL and "in the_loop_that_hangs" in ended.stderr
    assert "no sign of life" in ended.stderr


class Nothing:
    def assigned(self, partitions: list[tuple[str, int]]) -> None: ...

    def handle(self, batch: list[Record]) -> list[Out]:
        return []


def test_a_member_that_its_group_has_lost_ends_its_loop(kafka_bootstrap, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "ALONE_S", 1.0)
    topic, group = fresh_topic(kafka_bootstrap, "watched"), fresh("group")
    publish(kafka_bootstrap, [Out(topic, b"k", b"v")])
    monkeypatch.setattr(kafka, "consumer", deaf(kafka.consumer))
    loop = lambda stop: transact.run(kafka_bootstrap, group, [topic], Nothing(), stop, transactional_id=group)  # noqa: E731
    with Running(loop) as running:
        assert isinstance(running.ended(), watchdog.LostMembershipError)


def deaf(make):  # type: ignore[no-untyped-def]
    """Consumers that never join, as librdkafka's has been seen to do."""

    def consumer(*args, **settings):  # type: ignore[no-untyped-def]
        client = make(*args, **settings)

        class Deaf:
            def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
                return (lambda *_, **__: None) if name == "subscribe" else getattr(client, name)

            def consume(self, *_: object, timeout: float = 0.0) -> list[object]:
                threading.Event().wait(timeout)
                return []

        return Deaf()

    return consumer


def test_a_spare_member_waits(kafka_bootstrap, monkeypatch) -> None:
    """More members than partitions: one has none, and its group knows it."""
    topic, group = fresh_topic(kafka_bootstrap, "watched"), fresh("group")

    def loop(stop: threading.Event) -> None:
        transact.run(kafka_bootstrap, group, [topic], Nothing(), stop, transactional_id=fresh("slot"))

    with Running(loop) as one, Running(loop) as other:
        until(lambda: members(kafka_bootstrap, group) == 2, what="two members")
        publish(kafka_bootstrap, [Out(topic, b"k", b"v")])
        other.until(lambda: lag(kafka_bootstrap, group, topic) == 0, what="lag 0")
        monkeypatch.setattr(watchdog, "ALONE_S", 0.5)
        time.sleep(2.0)
        assert one.error is None and other.error is None
