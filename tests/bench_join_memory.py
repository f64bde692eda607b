"""What the tables of `join-feedback` cost in memory, on disk and in memory: `python -m tests.bench_join_memory [N]`.

Starts a broker of its own, writes N answers of about 1 kB, has the join take them in, and prints for each kind
of table how far its memory grew and how fast it was; then one feedback each for N/20 of them, and a start without
its disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from deploy.local import kafka as local_kafka
from deploy.local.ports import free_ports
from schemas.events import FeedbackGiven, Message
from schemas.topics import BY_NAME
from streams import kafka
from streams.join.rows import FEEDBACK, GROUP, INFERENCES, REKEYED
from tests.broker import lag, mark, publish, until
from tests.examples import example
from tests.join_bench import RAW, Process
from tests.parts import credential

IN_MEMORY = """
from types import SimpleNamespace
from streams import join_feedback
def table(app, name, partitions):
    return app.Table(name, key_type=bytes, value_type=bytes, partitions=partitions)
join_feedback.disk_table, join_feedback.parts = table, lambda *_: iter(())
join_feedback.Round = lambda table: SimpleNamespace(next_part=lambda partition: [])
from deploy.cli.main import main
main()
"""


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    prepared = local_kafka.prepare(folder, free_ports(1)[0], credential(folder), local_kafka.fetch_jars())
    process = subprocess.Popen(prepared.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: local_kafka.registered(prepared.bootstrap), 60, "the broker")
        kafka.ensure_topics(prepared.bootstrap)
        yield prepared.bootstrap
    finally:
        process.kill()
        process.wait()


def answers(n: int) -> Iterator[Any]:
    for _ in range(n):
        text = os.urandom(350).hex()
        yield example(BY_NAME[INFERENCES].events[0], "support", messages=[Message(role="user", content=text)], answer=text[:100])


def measure(bootstrap: str, folder: Path, ids: list[str], in_memory: bool) -> str:
    process = Process(bootstrap, folder)
    started = time.monotonic()
    process.start(code=IN_MEMORY if in_memory else "")
    running = psutil.Process(process.pid)
    first = running.memory_info().rss
    peak = first

    def done(topic: str) -> bool:
        nonlocal peak
        peak = max(peak, running.memory_info().rss)
        return process.alive() and lag(bootstrap, GROUP, topic) == 0

    until(lambda: done(INFERENCES), 600, "the answers taken in")
    seconds, before = time.monotonic() - started, mark(bootstrap, RAW)
    grown = running.memory_info().rss - first
    said = [FeedbackGiven(inference_id=one, metric_name="correct", value=True) for one in ids[::20]]
    publish(bootstrap, [kafka.out(one, source="bench") for one in said])
    started = time.monotonic()
    until(lambda: done(FEEDBACK) and done(REKEYED), 600, "the feedback taken in")
    assert sum(mark(bootstrap, RAW).values()) - sum(before.values()) >= len(said)
    rate = len(said) / (time.monotonic() - started)
    process.kill()
    lost = rebuilt_s(bootstrap, process, ids[1], in_memory)
    return (
        f"{'memory' if in_memory else 'disk':6} tables: +{grown / 2**20:.0f} MB (peak +{(peak - first) / 2**20:.0f} MB) after "
        f"{len(ids):,} answers, {len(ids) / seconds:,.0f}/s with the start; then {rate:,.0f} feedback/s; "
        f"{lost:.0f} s from a start without its disk to the next record"
    )


def rebuilt_s(bootstrap: str, process: Process, known: str, in_memory: bool) -> float:
    """Seconds from a start with nothing on disk until feedback on an answer of old is joined."""
    started, before = time.monotonic(), sum(mark(bootstrap, RAW).values())
    if not in_memory:
        process.lose_disk()
    process.start(code=IN_MEMORY if in_memory else "")
    publish(bootstrap, [kafka.out(FeedbackGiven(inference_id=known, metric_name="correct", value=True), source="bench")])
    until(lambda: process.alive() and sum(mark(bootstrap, RAW).values()) > before, 600, "the record")
    process.kill()
    return time.monotonic() - started


def main(n: int) -> None:
    for in_memory in (False, True):
        with tempfile.TemporaryDirectory() as name, broker(Path(name)) as bootstrap:
            ids = []
            for _ in range(n // 5_000):
                batch = list(answers(5_000))
                ids += [one.inference_id for one in batch]
                publish(bootstrap, [kafka.out(one, source="bench") for one in batch])
            folder = Path(name) / "join"
            folder.mkdir()
            print(measure(bootstrap, folder, ids, in_memory), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200_000)
