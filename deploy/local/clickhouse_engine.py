"""The ClickHouse engine (chdb) inside this process: runs one statement with its settings and parameters.

Owns the data directory. A fresh engine connection per request costs 0.4 ms and leaves nothing behind (`USE`,
`SET`, temporary tables); a writer's `session_id` keeps its own connection until it rests for its timeout. Safe to call
from many threads: a connection is used by one at a time. Before a statement runs the engine parses it, and
`clickhouse_rules` decides on what it parsed (2 ms). Leaves HTTP to `clickhouse_http`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chdb

from deploy.local.clickhouse_check import bounded, check, decoded, forget_unused_default, lines, make_default_plain
from deploy.local.clickhouse_error import EngineError
from deploy.local.clickhouse_rules import Rules, check_setting
from deploy.local.clickhouse_sql import Statement

_CODE = re.compile(r"Code: (\d+)\.")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
DEFAULT_FORMAT = "TabSeparated"
MAX_SESSION_TIMEOUT_S = 3600.0
MAX_SESSIONS = 100

@dataclass(frozen=True)
class Task:
    """One statement and its surroundings, as a request states them."""

    statement: Statement
    database: str | None = None
    default_format: str = DEFAULT_FORMAT
    settings: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    session_id: str | None = None
    session_timeout_s: float = 60.0
    reads_only: bool = False


@dataclass(frozen=True)
class Limits:
    """What a reader's query may take, and the names that a statement may use beside the lists (`allow_sources`)."""

    seconds: float = 60.0
    memory_mb: int = 2_000
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Answer:
    """The result's bytes in its format (None: no result set) and what ClickHouse's summary counts."""

    body: bytes
    format: str | None
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    elapsed_ns: int = 0


@dataclass
class _Session:
    connection: Any
    lock: threading.Lock = field(default_factory=threading.Lock)
    expires_at: float = 0.0


class Engine:
    """The engine over one directory; close it once, when no request runs any more."""

    def __init__(self, directory: Path, limits: Limits = Limits()) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = str(directory.absolute())
        forget_unused_default(directory)
        self._anchor = chdb.connect(self._path)  # keeps the engine alive between requests
        make_default_plain(self._anchor)
        self._sessions: dict[str, _Session] = {}
        self._guard = threading.Lock()
        self.time_zone, self.version = lines(self._anchor, "SELECT timezone(), version()")[0].split("\t")
        known = frozenset(name.lower() for name in lines(self._anchor, "SELECT name FROM system.table_functions"))
        self._writing = Rules(False, limits.sources, known)
        bounds = {"max_execution_time": limits.seconds, "max_memory_usage": limits.memory_mb * 1_000_000}
        self._reading = Rules(True, limits.sources, known, bounds)

    def run(self, task: Task) -> Answer:
        """Runs the task to its end. Raises EngineError with ClickHouse's code."""
        rules = self._reading if task.reads_only else self._writing
        settings = bounded(task.settings, rules)
        for name, value in settings.items():
            check_setting(name, value, rules)
        try:
            with self._connection(task) as connection:
                return _run_on(connection, task, settings, rules)
        except RuntimeError as error:  # chdb.ChdbError, and what its bindings raise
            raise _engine_error(error) from error

    def close(self) -> None:
        """Closes every connection, and with the last one the engine."""
        with self._guard:
            sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            session.connection.close()
        self._anchor.close()

    @contextmanager
    def _connection(self, task: Task) -> Iterator[Any]:
        self._forget_rested_sessions()
        if task.session_id is None or task.reads_only:
            connection = chdb.connect(self._path)
            try:
                yield connection
            finally:
                connection.close()
            return
        session = self._session(task.session_id)
        if not session.lock.acquire(timeout=1.0):
            raise EngineError(373, _locked(task.session_id))
        try:
            with _restored_settings(session.connection, task.settings):
                yield session.connection
        finally:
            session.expires_at = time.monotonic() + min(task.session_timeout_s, MAX_SESSION_TIMEOUT_S)
            session.lock.release()

    def _session(self, session_id: str) -> _Session:
        with self._guard:
            if session_id not in self._sessions:
                if len(self._sessions) >= MAX_SESSIONS:
                    raise EngineError(202, _TOO_MANY_SESSIONS)
                self._sessions[session_id] = _Session(chdb.connect(self._path), expires_at=float("inf"))
            return self._sessions[session_id]

    def _forget_rested_sessions(self) -> None:
        now = time.monotonic()
        with self._guard:
            for session_id, session in list(self._sessions.items()):
                if session.expires_at < now and session.lock.acquire(blocking=False):
                    del self._sessions[session_id]
                    session.connection.close()


_TOO_MANY_SESSIONS = (
    f"Code: 202. DB::Exception: {MAX_SESSIONS} sessions are open: ask without session_id, or give a shorter "
    "session_timeout. (TOO_MANY_SIMULTANEOUS_QUERIES)"
)


def _locked(session_id: str) -> str:
    return f"Code: 373. DB::Exception: Session {session_id} is locked by a concurrent client. (SESSION_IS_LOCKED)"


def _run_on(connection: Any, task: Task, settings: Mapping[str, str], rules: Rules) -> Answer:
    if task.database:
        connection.query(f"USE {quote_identifier(task.database)}")
    for name, value in settings.items():
        connection.query(f"SET {_setting_name(name)} = {quote(value)}")
    check(connection, task.statement, task.params, rules)
    if rules.reads_only:
        connection.query("SET readonly = 2")
    if task.statement.data is not None:
        return _insert(connection, task)
    return _query(connection, task)


def _query(connection: Any, task: Task) -> Answer:
    statement = task.statement
    result = connection.query(decoded(statement.sql), task.default_format, params=dict(task.params))
    shape = (statement.format or task.default_format) if statement.answers else None
    written = 0 if statement.answers else int(result.rows_written() or 0)
    return Answer(
        body=result.bytes() or b"",
        format=shape,
        read_rows=int(result.rows_read()),
        read_bytes=int(result.bytes_read()),
        written_rows=written,
        elapsed_ns=int(result.elapsed() * 1e9),
    )


def _insert(connection: Any, task: Task) -> Answer:
    for name, value in task.params.items():
        connection.query(f"SET param_{_setting_name(name)} = {quote(value)}")
    statement = task.statement
    inserter = connection.send_insert(decoded(statement.sql), statement.format)
    try:
        if statement.data:
            inserter.append(statement.data)
        done = inserter.finish()
    finally:
        inserter.close()
    return Answer(
        body=b"",
        format=None,
        written_rows=int(done.rows_written),
        written_bytes=int(done.bytes_written),
        elapsed_ns=int(done.elapsed * 1e9),
    )


@contextmanager
def _restored_settings(connection: Any, settings: Mapping[str, str]) -> Iterator[None]:
    """A request's settings hold for the request; what the session itself has SET comes back after it."""
    if not settings:
        yield
        return
    names = ", ".join(quote(name) for name in settings)
    listed = f"SELECT name, value, changed FROM system.settings WHERE name IN ({names})"
    before = [json.loads(row) for row in connection.query(listed, "JSONEachRow").bytes().splitlines()]
    try:
        yield
    finally:
        for row in before:
            value = quote(row["value"]) if row["changed"] else "DEFAULT"
            connection.query(f"SET {row['name']} = {value}")


def _engine_error(error: Exception) -> EngineError:
    text = str(error)
    start = text.find("Code: ")
    message = text[start:].strip() if start >= 0 else text.strip()
    code = _CODE.match(message)
    # 1001 is what ClickHouse calls an exception that is none of its own.
    return EngineError(int(code.group(1)) if code else 1001, message)


def _setting_name(name: str) -> str:
    if not _NAME.match(name):
        raise EngineError(115, f"Code: 115. DB::Exception: Unknown setting {quote(name)}. (UNKNOWN_SETTING)")
    return name


def quote(text: str) -> str:
    """A string literal of ClickHouse's SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quote_identifier(name: str) -> str:
    """An identifier of ClickHouse's SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
