"""Tables on disk: a part at a time, round and round, without holding the database open."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streams import disk_tables
from streams.disk_tables import Round, disk_table, parts
from streams.faust_app import faust_app


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A table with seven rows in partition 1, one in partition 0, read three at a time."""
    monkeypatch.setattr(disk_tables, "PART", 3)
    table = disk_table(faust_app("app", "127.0.0.1:1", str(tmp_path), 2), "things", 2)
    for key in ("a", "b1", "b2", "b3", "b4", "c", "d"):
        database(table, 1).put(key.encode(), b"v")
    database(table, 0).put(b"b9", b"v")
    database(table, 1).put(table.data.offset_key, b"5")
    return table


def database(table: Any, partition: int) -> Any:
    return table.data._db_for_partition(partition)


def keys(found: list[tuple[bytes, bytes]]) -> str:
    return " ".join(key.decode() for key, _ in found)


def test_rows_come_in_parts_of_one_partition_and_by_prefix(table) -> None:
    assert [keys(part) for part in parts(table, 1)] == ["a b1 b2", "b3 b4 c", "d"]
    assert [keys(part) for part in parts(table, 1, b"b")] == ["b1 b2 b3", "b4"]
    assert [keys(part) for part in parts(table, 0)] == ["b9"] and list(parts(table, 0, b"z")) == []


def test_a_round_goes_on_where_it_was_and_begins_again(table) -> None:
    around = Round(table)
    assert [keys(around.next_part(1)) for _ in range(2)] == ["a b1 b2", "b3 b4 c"]
    assert keys(around.next_part(0)) == "b9"
    database(table, 1).put(b"e", b"v")
    assert [keys(around.next_part(1)) for _ in range(2)] == ["d e", "a b1 b2"]
    for key in (b"a", b"b1", b"b2", b"b3", b"b4", b"c", b"d", b"e"):
        database(table, 1).delete(key)
    assert around.next_part(1) == around.next_part(1) == []


def test_a_rebalance_amid_a_round_finds_the_database_closed(table) -> None:
    around = Round(table)
    around.next_part(1)
    table.data._dbs.clear()
    gc.collect()
    assert keys(around.next_part(1)) == "b3 b4 c", "opened again: nothing had kept its lock"


def test_each_database_is_small_in_memory(table) -> None:
    options = table.data.rocksdb_options
    assert options.use_rocksdict
    assert options.write_buffer_size * options.max_write_buffer_number + options.block_cache_size <= 16 << 20


FAILS = """
import asyncio, logging, sys
from types import SimpleNamespace
from streams import faust_app
logging.basicConfig()

def agent(topic, name):
    return lambda function: asyncio.run(function(SimpleNamespace(events=events)))

async def events():
    for offset in (1, 2, 3):
        yield SimpleNamespace(message=SimpleNamespace(topic="t", partition=0, offset=offset))

async def handle(event):
    print("handled", event.message.offset, flush=True)
    if event.message.offset == 2:
        raise ValueError("no")

faust_app.take(SimpleNamespace(agent=agent), None, "one", handle)
"""


def test_a_failing_agent_ends_its_process_before_its_message_is_acknowledged() -> None:
    ended = subprocess.run([sys.executable, "-c", FAILS], capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr
    assert ended.stdout.split("\n")[:-1] == ["handled 1", "handled 2"] and "t/0/2: ending this process" in ended.stderr
