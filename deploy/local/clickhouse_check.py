"""Asks the engine what a statement is before it runs, and `clickhouse_rules` whether it may.

The engine parses as it will when it runs the text, so the two cannot differ on where a comment or a string ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.local.clickhouse_error import EngineError, denied
from deploy.local.clickhouse_rules import Rules, check_tree
from deploy.local.clickhouse_sql import Statement, described, names_only
from deploy.local.errors import LocalPartError

# Of a statement that the engine parsed, but cannot write as JSON. A statement's own text stands in errors too: hence ^.
_UNWRITTEN = re.compile(r"^Code: 36\. DB::Exception: AST node of type .* does not support JSON serialization")
_OUR_QUESTION = re.compile(r": In scope SELECT parseQueryToJSON\(.*\)(?=\. \([A-Z_]+\))", re.DOTALL)
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f"})


def forget_unused_default(directory: Path) -> None:
    """Before the engine opens `directory`: takes out the note of a `default` in which no table was ever made.

    chdb gives such a one another id at each start, and then does not find the one that is noted. The link is made with
    the first table.
    """
    metadata = directory / "metadata"
    if not (metadata / "default").is_symlink():
        (metadata / "default.sql").unlink(missing_ok=True)


def make_default_plain(anchor: Any) -> None:
    """Takes the files out of the database `default`, where chdb reads any table name as a path."""
    anchor.query("DETACH DATABASE default")
    try:
        anchor.query("ATTACH DATABASE default")  # what an earlier start made
    except RuntimeError:
        anchor.query("CREATE DATABASE default ENGINE = Atomic")
    engines = lines(anchor, "SELECT engine FROM system.databases WHERE name = 'default'")
    if engines != ["Atomic"]:
        raise LocalPartError(f"ClickHouse's database default is of the engine {engines}, which could read files")


def lines(connection: Any, sql: str) -> list[str]:
    """A query's lines of TabSeparated, raw."""
    answer: bytes = connection.query(sql, "TSVRaw").bytes()
    return answer.decode().splitlines()


def bounded(settings: Mapping[str, str], rules: Rules) -> dict[str, str]:
    """The settings of a request's URL; of a reader's, none above its bound. `readonly` was the transport's to read."""
    given = {name: value for name, value in settings.items() if name != "readonly"}
    for name, most in rules.bounds.items():
        try:
            asked = float(given.get(name, most))
        except ValueError:
            asked = most
        given[name] = f"{asked if 0 < asked <= most else most:.15g}"
    return given


def check(connection: Any, statement: Statement, params: Mapping[str, str], rules: Rules) -> None:
    """Refuses what the rules do, and more than one statement. Raises EngineError, and what chdb raises.

    The connection has the settings that the statement will run with, for some change how it is parsed.
    """
    tree: dict[str, Any] | None
    try:
        tree = _parsed(connection, statement.head)
    except RuntimeError as error:
        if not _UNWRITTEN.search(str(error)):
            raise
        tree = _parsed_otherwise(connection, statement)
    if tree:
        check_tree(tree, params, rules)
    if statement.goes_on:
        more = "Code: 62. DB::Exception: Syntax error (Multi-statements are not allowed). (SYNTAX_ERROR)"
        raise EngineError(62, more)
    if statement.rows_compute:
        rows = b"SELECT " + (statement.data or b"").strip().removesuffix(b";")
        try:
            check_tree(_parsed(connection, rows, f"SETTINGS max_query_size = {2**30}"), params, rules)
        except RuntimeError as error:
            raise denied("VALUES that compute something must be rows with a comma between any two") from error


def _parsed(connection: Any, sql: bytes, settings: str = "") -> dict[str, Any]:
    """The engine's own tree of a statement. Raises what the engine does, also for more than one statement."""
    if b"\0" in sql:
        raise EngineError(62, "Code: 62. DB::Exception: A statement holds a zero byte. (SYNTAX_ERROR)")
    text = decoded(sql).translate(_ESCAPED)  # a parameter's value is escaped as in TabSeparated
    asked = f"SELECT parseQueryToJSON({{sql:String}}) {settings}"
    try:
        answer = connection.query(asked, "TSVRaw", params={"sql": text})
    except RuntimeError as error:
        raise RuntimeError(_OUR_QUESTION.sub("", str(error))) from error
    try:
        tree: dict[str, Any] = json.loads(answer.bytes())
    except RecursionError:
        deep = "Code: 306. DB::Exception: The statement is nested too deep. (TOO_DEEP_RECURSION)"
        raise EngineError(306, deep) from None
    return tree


def _parsed_otherwise(connection: Any, statement: Statement) -> dict[str, Any] | None:
    """For what has no tree: DESCRIBE as a SELECT from the same; nothing where SHOW or EXISTS has only names."""
    selected = described(statement.sql)
    if selected is not None:
        return _parsed(connection, selected)
    if statement.verb in ("SHOW", "EXISTS") and names_only(statement.sql):
        return None
    raise denied(f"the statement {statement.verb} is not allowed on this server")


def decoded(sql: bytes) -> str:
    """The text of a statement. Raises EngineError where it is not UTF-8."""
    try:
        return sql.decode()
    except UnicodeDecodeError as error:
        raise EngineError(62, f"Code: 62. DB::Exception: A statement is UTF-8: {error}. (SYNTAX_ERROR)") from error
