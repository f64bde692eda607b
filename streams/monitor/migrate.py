"""Migrations: numbered SQL files, each applied once, in order, under a lock.

Reads `streams/monitor/migrations/NNNN_effect.sql`; writes ClickHouse. A file that was applied must not change
afterwards (its checksum is kept). Every statement may be run twice, so a migration that was cut off is done
again from its beginning.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from schemas.landing import DATABASE
from streams.clickhouse import rows

FOLDER = Path(__file__).parent / "migrations"
LOCK_STALE_S = 60


class MigrationError(RuntimeError):
    """A migration was changed after it had been applied, or another process holds the lock."""


def pending(applied: dict[str, str], folder: Path = FOLDER) -> list[Path]:
    """The files still to apply. Raises `MigrationError` where an applied one has another checksum now."""
    todo = []
    for path in sorted(folder.glob("[0-9]*.sql")):
        known = applied.get(path.name)
        if known is None:
            todo.append(path)
        elif known != checksum(path):
            raise MigrationError(f"{path.name} was changed after it was applied; write a new migration instead")
    return todo


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def statements(sql: str) -> list[str]:
    return [part.strip() for part in sql.split(";\n") if part.strip()]


def migrate(client: Client, wait_s: float = 30.0) -> list[str]:
    """Apply what is pending; returns the names. Raises `MigrationError` and `DatabaseError`."""
    client.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
    client.command(
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.migrations (name String, checksum String, "
        "applied_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY name"
    )
    done = []
    with _lock(client, wait_s):
        applied = {r["name"]: r["checksum"] for r in rows(client, f"SELECT * FROM {DATABASE}.migrations FINAL")}
        for path in pending(applied):
            for statement in statements(path.read_text()):
                client.command(statement)
            client.insert(f"{DATABASE}.migrations", [[path.name, checksum(path)]], ["name", "checksum"])
            done.append(path.name)
    return done


@contextmanager
def _lock(client: Client, wait_s: float) -> Iterator[None]:
    """A table that only one process can create; one older than LOCK_STALE_S is a dead process's."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            client.command(f"CREATE TABLE {DATABASE}.migration_lock (taken DateTime) ENGINE = Memory")
            break
        except DatabaseError as error:
            if "already exists" not in str(error):
                raise
            _break_stale(client)
            if time.monotonic() > deadline:
                raise MigrationError("another process is migrating; try again in a minute") from error
            time.sleep(0.5)
    try:
        yield
    finally:
        client.command(f"DROP TABLE IF EXISTS {DATABASE}.migration_lock")


def _break_stale(client: Client) -> None:
    found = rows(
        client,
        "SELECT now() - metadata_modification_time AS age FROM system.tables "
        "WHERE database = {database:String} AND name = 'migration_lock'",
        database=DATABASE,
    )
    if found and found[0]["age"] > LOCK_STALE_S:
        client.command(f"DROP TABLE IF EXISTS {DATABASE}.migration_lock")
