"""Putting dead letters back, on a real broker: each record once for whoever reads committed, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from deploy.cli.main import command_line
from streams import failpoints, kafka, replay
from streams.dead_letters import dead_letter
from streams.kafka import Record
from streams.replay import Letter, Move, ReplayError
from tests.broker import fresh, fresh_topic, publish, since
from tests.integration.test_prepare import Bench, question

ROOT = Path(__file__).parents[2]
GROUP = "conduct"  # nothing else in these tests writes to its dead letters


class Desk:
    """A topic of its own, whose records `conduct` has refused."""

    def __init__(self, bootstrap: str, partitions: int = 1, **config: str) -> None:
        # Records keep their own times, which are long ago: a topic that deletes by time would lose them.
        own = {"retention.ms": "-1", **config}
        self.bootstrap, self.topic = bootstrap, fresh_topic(bootstrap, "refused", partitions, **own)

    def refuse(self, *records: Record, group: str = GROUP, reason: str = "a reason") -> None:
        publish(self.bootstrap, [dead_letter(group, record, reason) for record in records])

    def record(self, number: int) -> Record:
        return Record(self.topic, 0, number, 1_700_000_000_000 + number, b"k%d" % number, b"v%d" % number, [])

    def mine(self, letters: list[Letter]) -> list[Letter]:
        return [letter for letter in letters if letter.origin.startswith(f"{self.topic}/")]

    def open(self) -> list[str]:
        """What can be read; behind a commit its markers take their time."""
        replay.wait_settled(self.bootstrap, [f"dead.{GROUP}", "dead.work"])
        return sorted(letter.origin for letter in self.mine(replay.read(self.bootstrap)))

    def back(self, letters: list[Letter]) -> list[Move]:
        return replay.moves_back(self.mine(letters), letters)

    def settle(self, choose: Callable[[list[Letter]], list[Move]] | None = None, batch: int = 500) -> list[Move]:
        return replay.settle(self.bootstrap, choose or self.back, lambda done, of: None, batch)

    def back_again(self) -> list[Record]:
        return since(self.bootstrap, self.topic)

    def values(self) -> list[bytes | None]:
        return [record.value for record in self.back_again()]


@pytest.fixture
def desk(kafka_bootstrap: str) -> Desk:
    return Desk(kafka_bootstrap)


def test_records_go_back_byte_for_byte_to_where_they_were(kafka_bootstrap) -> None:
    desk = Desk(kafka_bootstrap, partitions=3)
    headers: list[tuple[str, Any]] = [("a", b"\xff\x00"), ("b", None), ("a", b""), ("ce_type", b"Nothing")]
    said = [
        Record(desk.topic, 2, 40, 1_700_000_000_001, b"\xff\x00 no text", b"\xfe{", headers),
        Record(desk.topic, 1, 41, 1_700_000_000_002, None, b"", []),
        Record(desk.topic, 0, 42, 1_700_000_000_003, b"", b"{}", []),
    ]
    desk.refuse(*said)
    desk.settle()
    found = sorted(desk.back_again(), key=lambda record: record.timestamp_ms)
    for before, after in zip(said, found, strict=True):
        assert (after.partition, after.timestamp_ms, after.key, after.value, after.headers) == (
            before.partition, before.timestamp_ms, before.key, before.value, before.headers,
        )  # fmt: skip
    assert desk.open() == []
    assert desk.settle() == [], "there is nothing left to put back"


KILLED = """
import sys
from streams import replay
bootstrap, topic = sys.argv[1:]
def choose(letters):
    return replay.moves_back([one for one in letters if one.origin.startswith(topic + "/")], letters)
replay.settle(bootstrap, choose, lambda done, of: None, 3)
"""


@pytest.mark.parametrize(("failpoint", "stood"), [
    ("dlq.produced=kill@2", 3), ("dlq.committed=kill@1", 3),
])  # fmt: skip
def test_kill_9_around_the_commit_neither_loses_nor_doubles(desk, failpoint, stood) -> None:
    desk.refuse(*(desk.record(number) for number in range(7)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), failpoints.VARIABLE: failpoint}
    killed = subprocess.run([sys.executable, "-c", KILLED, desk.bootstrap, desk.topic], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(since(desk.bootstrap, desk.topic, settled=False)) <= stood, "what was produced and not committed is nobody's"
    assert len(desk.settle(batch=3)) == 7 - stood
    assert desk.values() == [b"v%d" % number for number in range(7)]
    assert desk.open() == []


def test_of_two_at_once_one_does_it_and_the_other_says_so(desk, capfd) -> None:
    desk.refuse(*(desk.record(number) for number in range(3)))

    def overtaken(letters: list[Letter]) -> list[Move]:
        assert len(desk.settle()) == 3
        return desk.back(letters)

    with pytest.raises(ReplayError, match=r"another `tuneloop dlq replay` or `drop` took over.*\(0 of 3 were settled before\)"):
        desk.settle(overtaken)
    assert "fenced" not in capfd.readouterr().err, "the client's own lines would bury the one that counts"
    assert desk.values() == [b"v0", b"v1", b"v2"]


def test_an_open_transaction_cannot_hide_what_was_put_back(desk) -> None:
    """Behind somebody's open transaction a committed tombstone cannot be read yet: looking now would double."""
    desk.refuse(desk.record(0))
    slow = kafka.producer(desk.bootstrap, transactional_id=fresh("slow"))
    slow.init_transactions(20)

    def opened(letters: list[Letter]) -> list[Move]:
        slow.begin_transaction()
        kafka.produce(slow, dead_letter(GROUP, desk.record(1), "never committed"))
        slow.flush(10)
        return desk.back(letters)

    assert len(desk.settle(opened)) == 1
    (hidden,) = desk.mine(replay.read(desk.bootstrap))
    assert hidden.origin == f"{desk.topic}/0/0", "its tombstone is committed, and cannot be seen"
    threading.Timer(1.0, lambda: slow.abort_transaction(10)).start()
    assert desk.settle() == []
    assert desk.values() == [b"v0"]


def test_a_record_that_two_groups_refused_goes_back_once(desk) -> None:
    desk.refuse(desk.record(0))
    desk.refuse(desk.record(0), group="work")
    assert len(desk.open()) == 2
    desk.settle(lambda letters: replay.moves_back([one for one in desk.mine(letters) if one.group == GROUP], letters))
    assert desk.values() == [b"v0"] and desk.open() == []


def test_a_letter_whose_place_is_gone_is_named_and_nothing_goes(desk) -> None:
    nowhere, gone = Record(desk.topic, 9, 1, 1, b"k", b"v", []), Record(fresh("gone"), 0, 1, 1, b"k", b"v", [])
    desk.refuse(desk.record(0), nowhere)
    with pytest.raises(ReplayError, match=rf"letter {nowhere.origin} belongs to {desk.topic}/9, which is not there"):
        desk.settle()
    desk.refuse(gone)
    with pytest.raises(ReplayError, match=rf"letter {gone.origin} belongs to"):
        desk.settle(lambda letters: replay.moves_back([one for one in letters if one.origin == gone.origin], letters))
    assert desk.values() == [] and len(desk.open()) == 2


def test_a_refused_transaction_leaves_nothing(kafka_bootstrap) -> None:
    desk = Desk(kafka_bootstrap, **{"max.message.bytes": "1000"})
    desk.refuse(desk.record(0), replace(desk.record(1), value=os.urandom(2_000)))
    with pytest.raises(ReplayError, match=r"Kafka refused a transaction: .*nothing of it stands"):
        desk.settle()
    assert desk.values() == [] and len(desk.open()) == 2


def test_what_is_mended_becomes_a_row_and_what_is_not_a_new_letter(kafka_bootstrap, tmp_path) -> None:
    bench = Bench(kafka_bootstrap, tmp_path / "artifacts")
    stranger = json.dumps({"model": bench.model, **question(1)}).encode()
    bench.submit(b'{"model": ', stranger, partition=3)
    model, bench.model = bench.model, fresh("other")
    bench.prepared()
    refused = bench.dead()
    assert [letter.value for letter in refused] == [b'{"model": ', stranger]
    origins = {(letter.key or b"").decode() for letter in refused}
    bench.model = model  # the settings know the model now

    def choose(letters: list[Letter]) -> list[Move]:
        return replay.moves_back([one for one in letters if one.origin in origins], letters)

    replay.settle(bench.bootstrap, choose, lambda done, of: None)
    (shard,) = bench.prepared()
    assert shard.rows == 1 and shard.dropped == {}
    after = [one for one in replay.read(bench.bootstrap, ("prepare",)) if one.original and one.original.value == b'{"model": ']
    assert len(after) == 1 and after[0].origin not in origins, "still bad: a new letter with a new origin"


class Cli:
    """The command line, in this process."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self._flags = ["--data-dir", str(folder), "--kafka-bootstrap", bootstrap, "--clickhouse-url", "http://127.0.0.1:1",
                       "--http-port", "1"]

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(command_line(), [*self._flags, "dlq", *words])

    def json(self, *words: str) -> list[dict[str, Any]]:
        said = self(*words, "--format", "json")
        assert said.exit_code == 0, (said.output, said.exception)
        return json.loads(said.stdout)  # type: ignore[no-any-return]


def test_the_command_line_lists_shows_puts_back_and_drops(desk, tmp_path) -> None:
    cli, why = Cli(desk.bootstrap, tmp_path), fresh("because")
    words = Record(desk.topic, 0, 0, 1_700_000_000_000, b"\xff", "where is my pärcel".encode(), [("h", b"x")])
    desk.refuse(words, desk.record(1), desk.record(2), reason=why)
    (counted,) = [row for row in cli.json("ls", GROUP) if row["reason"] == why]
    assert counted["letters"] == 3 and "pärcel" not in cli("ls").output, "bodies are shown on demand alone"
    (shown,) = cli.json("show", words.origin)
    assert (shown["body"], shown["key"], shown["headers"]) == ("where is my pärcel", "\\xff", [["h", "x"]])
    assert shown["said"].startswith("2023-11-14") and "where is my pärcel" in cli("show", GROUP).stdout
    assert "which letters?" in str(cli("replay", GROUP).exception)
    assert "nobody is here to be asked" in str(cli("drop", "--reason", why).exception)
    assert cli.json("replay", words.origin) == [{"group": GROUP, "replayed": 1}]
    assert "no dead letter of" in str(cli("replay", words.origin).exception)
    assert cli.json("drop", GROUP, desk.record(2).origin, "--yes") == [{"group": GROUP, "dropped": 1}]
    assert cli.json("replay", "--reason", why) == [{"group": GROUP, "replayed": 1}]
    assert cli.json("replay", "--reason", why) == []
    assert desk.values() == [words.value, b"v1"] and desk.open() == []
