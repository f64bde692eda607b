"""How much memory a consumer takes as its stream goes on: `memory_growth_mb`, one line for each of two loops.

`part: "sink"`: the real sink loop with `ClickHouseStore` over 10 million events, nine of ten header-less feedback, one
of ten usage events. `part: "prepare"`: the real transact loop with `PrepareStep` over 500,000 submissions. Each runs in
a process of its own (`python -m tests.bench.memory LOOP BOOTSTRAP CLICKHOUSE FOLDER COUNT START`), under the settings of
allocators that `tuneloop up` gives its processes, which looks at its own resident memory 20 times a second. The value is
its highest point above what the process had when everything was imported and connected and the loop was about to be
entered; client queues, batches in hand and the hashes of rows seen are all in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import psutil

from deploy.cli.output import progress
from deploy.local_run import QUIET
from streams import kafka, sink, transact
from streams.artifacts import ArtifactStore
from streams.kafka import Out
from tests.bench import load
from tests.bench.landing import Counted as CountedStore
from tests.bench.measure import Figure, Parts, note
from tests.bench.preparing import RAW, submit
from tests.bench.preparing import Counted as CountedStep
from tests.broker import Mark, group_from, mark
from tests.parts import ROOT

TOPICS = ["usage.feedback", "usage.inferences"]
PARTITIONS = 4
MB = 1 << 20


class Watch(threading.Thread):
    """Samples this process's resident memory until `stop`."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._stopped, self._process = stop, psutil.Process()
        self.start_bytes = self.peak_bytes = self._process.memory_info().rss

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


def memory_growth(parts: Parts) -> list[Figure]:
    events, submissions = parts.size(10_000_000, 20_000), parts.size(500_000, 2_000)
    note(f"memory_growth_mb: publishing {events:,} events and {submissions:,} submissions")
    start = _publish_events(parts, events)
    figures = [_growth(parts, "sink", start, events)]
    return [*figures, _growth(parts, "prepare", submit(parts.bootstrap, submissions, PARTITIONS), submissions)]


def _publish_events(parts: Parts, count: int) -> Mark:
    start = mark(parts.bootstrap, *TOPICS)
    distinct = parts.size(20_000, 500)
    said = [msgspec.json.encode(event) for event in load.feedback(distinct)]
    usage = [kafka.out(event, source="serve") for event in load.inferences(distinct // 9)]
    bodies = [Out("usage.feedback", b"", value) for value in said]
    bodies = [one for number, body in enumerate(bodies) for one in _mixed(number, body, usage)]
    client = kafka.producer(parts.bootstrap, linger_ms=50)
    with progress("publishing", count) as update:
        for number, body in enumerate(islice(cycle(bodies), count)):
            key = b"key-%d" % number
            kafka.produce(client, Out(body.topic, key, body.value, body.headers, partition=number % PARTITIONS))
            if number % 50_000 == 0:
                update(number)
    assert client.flush(60) == 0
    return start


def _mixed(number: int, body: Out, usage: list[Out]) -> Iterator[Out]:
    """Every ninth feedback is followed by a usage event."""
    yield body
    if number % 9 == 8:
        yield usage[(number // 9) % len(usage)]


def _growth(parts: Parts, loop: str, start: Mark, count: int) -> Figure:
    begin = json.dumps([[topic, partition, offset] for (topic, partition), offset in start.items()])
    command = [sys.executable, "-m", "tests.bench.memory", loop, parts.bootstrap, parts.clickhouse, str(parts.folder)]
    done = subprocess.run(
        [*command, str(count), begin], cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, text=True,
        timeout=900, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    note(f"  {loop}: {said['start']:.0f} MB at the start, {said['peak']:.0f} MB at most, {count:,} in {said['s']:.0f} s")
    return Figure("memory_growth_mb", said["peak"] - said["start"], "MB", said["peak"], said["start"], "MB", loop)


def main() -> None:
    """The child: one loop over COUNT records from START, watched."""
    loop, bootstrap, clickhouse, folder, count, begin = sys.argv[1:]
    parts = Parts(bootstrap, clickhouse, Path(folder), quick=False)
    start = {(topic, partition): offset for topic, partition, offset in json.loads(begin)}
    stop, over = threading.Event(), threading.Event()
    group, total = group_from(bootstrap, start), int(count)
    counted: Any = CountedStore(parts, total, stop) if loop == "sink" else None
    if counted is None:
        counted = CountedStep(ArtifactStore(f"{folder}/{group}"), total, stop)
    watch = Watch(over)
    watch.start()
    threading.Thread(target=_show, args=(loop, counted, total, over), daemon=True).start()
    if loop == "sink":
        sink.run(bootstrap, group, TOPICS, counted, stop)
    else:
        transact.run(bootstrap, group, [RAW], counted, stop, transactional_id=group, linger_s=1.0)
    over.set()
    watch.join()
    seconds = time.perf_counter() - counted.begun
    print(json.dumps({"start": watch.start_bytes / MB, "peak": watch.peak_bytes / MB, "s": seconds}))


def _show(loop: str, counted: Any, total: int, over: threading.Event) -> None:
    with progress(loop, total) as update:
        while not over.wait(0.5):
            update(total - counted.left)


if __name__ == "__main__":
    main()
