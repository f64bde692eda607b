"""The local ClickHouse in this process, behind an ASGI client, with something to lose: rows, files, an environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.testclient import TestClient

from deploy.local.clickhouse import build_app
from deploy.local.clickhouse_access import USERS, WRITER, make_passwords, read_passwords
from deploy.local.clickhouse_engine import Engine, Limits
from deploy.local.clickhouse_error import EngineError
from deploy.local.clickhouse_http import read_task

PORT = 8123
SECRET = "a-secret-that-no-answer-may-hold"


@dataclass
class Door:
    """`outside` is a folder of somebody's files; SECRET stands in one of them and in this process's environment."""

    client: TestClient
    engine: Engine
    outside: Path
    passwords: dict[str, str]

    def ask(self, sql: str | bytes, user: str = WRITER, method: str = "POST", **params: str) -> tuple[int, str]:
        """ClickHouse's error code (0: it was carried out) and the answer's text."""
        body = sql.encode() if isinstance(sql, str) else sql
        login = (user, self.passwords[user])
        if method == "GET":
            answer = self.client.get("/", params={**params, "query": body.decode()}, auth=login)
        else:
            answer = self.client.post("/", params=params, content=body, auth=login)
        return int(answer.headers.get("x-clickhouse-exception-code", 0)), answer.text

    def run(self, sql: str | bytes, user: str = WRITER, method: str = "POST", **params: str) -> tuple[int, str]:
        """The same without HTTP, for many statements: access and body are tested elsewhere."""
        body = sql.encode() if isinstance(sql, str) else sql
        try:
            task = read_task(params, body, None, user != WRITER or method == "GET")
            return 0, self.engine.run(task).body.decode(errors="replace")
        except EngineError as error:
            return error.code, str(error)

    def state(self) -> list[object]:
        """All that a hostile statement could change."""
        held = [self.run(sql)[1] for sql in (
            "SELECT n, words FROM tuneloop.kept ORDER BY n",
            "SELECT database, name, engine FROM system.tables WHERE database NOT IN "
            "('system', 'INFORMATION_SCHEMA', 'information_schema') ORDER BY database, name",
            "SELECT name, engine FROM system.databases ORDER BY name", "SELECT count() FROM system.functions",
            "SELECT count() FROM system.mutations", "SELECT count() FROM system.named_collections",
        )]  # fmt: skip
        files = [(str(path), path.read_bytes()) for path in sorted(self.outside.rglob("*")) if path.is_file()]
        return [*held, *files, sorted(os.listdir())]

    def fill(self, statement: str) -> str:
        """A statement with the paths of this door: NEW_FILE would be a new file, IN is one that holds SECRET."""
        statement = statement.replace("NEW_FILE", str(self.outside / "written"))
        return statement.replace("IN_FILE", str(self.outside / "secret.csv"))


@contextmanager
def door(folder: Path, limits: Limits = Limits()) -> Iterator[Door]:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.csv").write_text(f"{SECRET}\n")
    make_passwords(folder / "passwords")
    passwords = read_passwords(folder / "passwords")
    os.environ["TUNELOOP_HOSTILE"] = SECRET
    try:
        engine = Engine(folder / "engine", limits)
        with TestClient(build_app(engine, passwords, PORT), base_url=f"http://127.0.0.1:{PORT}") as client:
            one = Door(client, engine, outside, passwords)
            for sql in (
                "CREATE DATABASE tuneloop",
                "CREATE TABLE tuneloop.kept (n UInt64, words String) ENGINE = MergeTree ORDER BY n",
                "INSERT INTO tuneloop.kept VALUES (1, 'one'), (2, 'two')",
            ):
                assert one.ask(sql) == (0, "")
            yield one
    finally:
        del os.environ["TUNELOOP_HOSTILE"]


__all__ = ["PORT", "SECRET", "USERS", "Door", "door"]
