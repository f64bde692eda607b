"""What the tests of `join-feedback` do: run it, serve answers, say things of them, and look at what it made and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import TopicPartition
from rocksdict import AccessType, Options, Rdict

from deploy.local.ports import free_ports
from schemas import events as e
from schemas.codec import iso_time
from streams import kafka
from streams.kafka import Out, Record
from tests.broker import Mark, fresh, mark, publish, since, until
from tests.examples import example
from tests.ids import keep

ROOT = Path(__file__).parents[1]
GROUP = "join-feedback"
INFERENCES, FEEDBACK, RAW, DEAD = "usage.inferences", "usage.feedback", "training.raw", "dead.join-feedback"
START_TIMEOUT_S = 60.0
SETTINGS = "[models.support]\nthresholds = {rating = 4.0}\n"


class Process:
    """`tuneloop run join-feedback` in a process of its own; or, `turned`, the same with a clock that tests turn."""

    turned = False

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.folder = folder
        (folder / "tuneloop.toml").write_text(SETTINGS)
        keep(folder / "data")
        self.turn(0)
        http, self.metrics_port = free_ports(2)
        self._env = {
            **os.environ, "PYTHONPATH": str(ROOT), "TUNELOOP_DATA_DIR": str(folder / "data"),
            "TUNELOOP_KAFKA_BOOTSTRAP": bootstrap, "TUNELOOP_CLICKHOUSE_URL": "http://127.0.0.1:1",
            "TUNELOOP_HTTP_PORT": str(http),
        }  # fmt: skip

    def start(self, turned: bool = False, code: str = "") -> None:
        """Start it; with `code`, that in the place of the command `tuneloop`."""
        self.turned = turned
        ready = self.folder / "data" / "run" / "ready" / GROUP
        ready.unlink(missing_ok=True)
        what = ["-m", "tests.turned_clock"] if turned else ["-c", code] if code else ["-m", "deploy.cli.main"]
        with (self.folder / "log").open("ab") as out:
            command = [sys.executable, *what, "run", GROUP, "--metrics-port", str(self.metrics_port)]
            self._process = subprocess.Popen(command, cwd=self.folder, env=self._env, stdout=out, stderr=out)
        until(lambda: self.alive() and ready.exists(), START_TIMEOUT_S, "join-feedback's start")

    def turn(self, days: float) -> None:
        """Put its clock this many days ahead."""
        (self.folder / "new").write_text(str(days))
        (self.folder / "new").replace(self.folder / "now")

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def lose_disk(self) -> None:
        shutil.rmtree(self.folder / "data" / "faust")

    def on_disk(self, table: str) -> dict[bytes, bytes]:
        """The rows of one table as they stand on disk now."""
        databases = (self.folder / "data" / "faust").rglob(f"{table}-*.db")
        opened = [Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only()) for path in databases]
        return {key: value for database in opened for key, value in database.items()}


class Bench:
    """The process, and one model's answers, feedback and training records."""

    def __init__(self, bootstrap: str, process: Process) -> None:
        self.bootstrap, self.process = bootstrap, process
        self.start: Mark = mark(bootstrap, RAW, DEAD)

    def answer(self, **fields: Any) -> Any:
        return example(e.InferenceServed, "support", **fields)

    def serve(self, *answers: Any) -> None:
        publish(self.bootstrap, [kafka.out(answer, source="serve") for answer in answers])

    def say(
        self, inference_id: str, metric: str, value: Any, partition: int | None = None,
        time_ms: int | None = None, feedback_id: str = "", said_ms: int = 0, author: str = "", **client: Any,
    ) -> bytes:  # fmt: skip
        """As any application would: JSON without headers, wherever its own partitioner puts it. Its key."""
        more = {"feedback_id": feedback_id, "said_ms": said_ms, "author": author}
        body = {"inference_id": inference_id, "metric_name": metric, "value": value}
        body |= {name: said for name, said in more.items() if said}
        key = fresh("feedback").encode()
        headers = [] if time_ms is None else [("ce_time", iso_time(time_ms).encode())]
        publish(self.bootstrap, [Out(FEEDBACK, key, msgspec.json.encode(body), headers, partition)], **client)
        return key

    def delete(self, topic: str, key: bytes, partition: int | None = None) -> None:
        publish(self.bootstrap, [Out(topic, key, None, [], partition)])

    def written(self) -> Iterator[tuple[Record, e.RecordSubmitted]]:
        """Training records since the start, in their order."""
        for record in since(self.bootstrap, RAW, self.start):
            event = kafka.decode(record)[1]
            if event.origin == "feedback":
                yield record, event

    def of(self, *answers: Any) -> list[e.RecordSubmitted]:
        """The training records of these answers; the last word of each counts."""
        ids = {answer.inference_id for answer in answers}
        return list({event.record_id: event for _, event in self.written() if event.inference_id in ids}.values())

    def every(self, answer: Any) -> list[Any]:
        """What was written of one answer, replaced or not: completion or label."""
        events = [event for _, event in self.written() if event.inference_id == answer.inference_id]
        return [event.label if event.kind == "kto" else event.completion for event in events]

    def until_joined(self, n: int, *answers: Any) -> list[e.RecordSubmitted]:
        found = lambda: self.process.alive() and len(self.of(*answers)) >= n and self.of(*answers)  # noqa: E731
        return list(until(found, 120, f"{n} training records"))

    def until_taken_in(self, *topics: str) -> None:
        for topic in topics:
            until(lambda topic=topic: not self.left(topic), 30, f"{topic} taken in")

    def left(self, topic: str) -> list[Record]:
        """Records that the group has not committed; an offset may also belong to somebody's control marker."""
        reader = kafka.consumer(self.bootstrap, GROUP)
        try:
            places = [TopicPartition(topic, number) for number in kafka.partitions_of(reader, topic)]
            committed = reader.committed(places, timeout=15)
        finally:
            reader.close()
        return since(self.bootstrap, topic, {(one.topic, one.partition): max(one.offset, 0) for one in committed})

    def letters(self) -> list[Record]:
        return since(self.bootstrap, DEAD, self.start)

    def changelog(self, table: str) -> dict[bytes, bytes | None]:
        """The last word of each key in a table's changelog."""
        return {r.key or b"": r.value for r in since(self.bootstrap, f"{GROUP}-{table}-changelog")}
