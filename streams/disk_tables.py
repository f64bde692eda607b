"""Faust tables on disk: RocksDB (the package `rocksdict`), one small database per table and partition.

Faust writes a row to the disk at once and to its changelog a little later; offsets are committed after both. A
record that is taken up again after a crash therefore finds its own row, and must do everything again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from faust.app import App

PART = 5_000
# Faust's defaults (3 write buffers of 64 MB, 2 GB of cache, 90% of all file handles) are for one database alone;
# every table has one per partition.
_OPTIONS = {
    "driver": "rocksdict", "write_buffer_size": 4 << 20, "max_write_buffer_number": 2, "block_cache_size": 8 << 20,
    "target_file_size_base": 16 << 20, "max_open_files": 64,
}  # fmt: skip


def disk_table(app: App, name: str, partitions: int) -> Any:
    """A table of bytes by bytes, kept under the application's data directory."""
    store = f"rocksdb:{name}"  # with a path: Faust takes the bare "rocksdb://" for no URL at all, and keeps to memory
    return app.Table(
        name, key_type=bytes, value_type=bytes, partitions=partitions, store=store, options=dict(_OPTIONS)
    )


def parts(table: Any, partition: int, prefix: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of one partition whose key begins so, in the order of their keys, some at a time.

    Faust's own iteration goes through all partitions at once. Each part is read anew from the disk: a RocksDB
    iterator that is held would keep the database open, and locked, through a rebalance.
    """
    start = prefix
    while found := _read(table.data, partition, start, prefix):
        yield found
        start = found[-1][0] + b"\0"


def _read(store: Any, partition: int, start: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
    items = store._db_for_partition(partition).items(from_key=start or None)
    wanted = takewhile(lambda row: row[0].startswith(prefix), (row for row in items if row[0] != store.offset_key))
    return list(islice(wanted, PART))


class Round:
    """Goes through a table again and again, one part at a time."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._left: dict[int, Iterator[list[tuple[bytes, bytes]]]] = {}

    def next_part(self, partition: int) -> list[tuple[bytes, bytes]]:
        """The next rows of a partition; behind the last ones it begins again."""
        found = next(self._left.get(partition, iter(())), None)
        if found is None:
            self._left[partition] = parts(self._table, partition)
            found = next(self._left[partition], [])
        return found


async def remove(table: Any, partition: int, keys: Sequence[bytes]) -> None:
    """Take rows out for good: out of the changelog first, then off the disk.

    In the order of `del table[key]` a crash in between would leave them in the changelog for ever: the record
    that is taken up again finds nothing on disk to remove.
    """
    sent = [table.send_changelog(partition, key, None, value_serializer="raw") for key in keys]
    await asyncio.gather(*sent)
    for key in keys:
        del table.data[key]


async def erase(table: Any, partition: int, keys: Sequence[bytes]) -> None:
    """Take rows out, and their bytes off the disk before this returns.

    RocksDB only notes a deletion: what is deleted stays in its log and its files until these are written anew.
    """
    await remove(table, partition, keys)
    database = table.data._db_for_partition(partition)
    database.flush(True)
    for key in keys:
        database.compact_range(key, key + b"\0")
