"""ClickHouse's own JDBC driver at work, in a process of its own: `python jdbc_session.py URL USER PASSWORD_FILE [--ask SQL] JAR...`.

Prints one JSON object: what each step below was told. A Java virtual machine cannot leave the process that started
it, hence the process; the driver is used as a Java program would, through java.sql alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jpype

from deploy.local.jars import java_executable

TYPES = (
    "SELECT 'it''s ünï' AS text, toInt64(-7) AS whole, toUInt64(18446744073709551615) AS huge, 0.5 AS part, true AS yes, "
    "toDateTime64('2026-01-01 12:00:00.123', 3, 'UTC') AS at, CAST(NULL, 'Nullable(Int32)') AS none, "
    "CAST(41, 'Nullable(Int32)') AS some, [1, 2, 3]::Array(Int64) AS list, ['a', 'b'] AS words"
)
TABLE = "CREATE TABLE {} (id UInt64, text String, part Nullable(Float64), at DateTime64(3, 'UTC'), words Array(String)) ENGINE = MergeTree ORDER BY id"


def start_java(jars: list[str]) -> None:
    home = java_executable().parents[1]
    found = [*home.glob("lib/server/libjvm.*"), *home.glob("bin/server/jvm.dll")]
    jpype.startJVM(
        "-Xmx256m", "-XX:TieredStopAtLevel=1", "--enable-native-access=ALL-UNNAMED",
        jvmpath=str(found[0]), classpath=jars, convertStrings=True,
    )  # fmt: skip


def rows(result: Any, columns: int) -> list[list[Any]]:
    """Every row of a result set, as text (None where NULL)."""
    found = []
    while result.next():
        found.append([result.getString(number) for number in range(1, columns + 1)])
    return found


def connected(connection: Any) -> dict[str, Any]:
    about = connection.getMetaData()
    return {
        "product": about.getDatabaseProductName(), "driver": about.getDriverVersion(),
        "version": about.getDatabaseProductVersion(), "valid": bool(connection.isValid(5)),
        "tables": sorted(row[2] for row in rows(about.getTables(None, "tuneloop", "inference%", None), 3)),
    }  # fmt: skip


def types(connection: Any) -> dict[str, Any]:
    result = connection.createStatement().executeQuery(TYPES)
    about = result.getMetaData()
    assert result.next()
    none = int(result.getInt("none"))
    return {
        "columns": {str(about.getColumnName(n)): str(about.getColumnTypeName(n)) for n in range(1, about.getColumnCount() + 1)},
        "text": result.getString("text"), "whole": int(result.getLong("whole")), "huge": str(result.getObject("huge")),
        "part": float(result.getDouble("part")), "yes": bool(result.getBoolean("yes")),
        "at_ms": int(result.getTimestamp("at").getTime()), "none": [none, *was_null(result, "none")],
        "some": [int(result.getInt("some")), *was_null(result, "some")],
        "list": [int(n) for n in result.getArray("list").getArray()],
        "words": [str(word) for word in result.getArray("words").getArray()], "more": bool(result.next()),
    }  # fmt: skip


def was_null(result: Any, column: str) -> list[bool]:
    value = result.getObject(column)
    return [bool(result.wasNull()), value is None]


def prepared(connection: Any) -> dict[str, Any]:
    timestamp = jpype.JClass("java.sql.Timestamp")
    statement = connection.prepareStatement("SELECT ?, ? + 1, ? = toDateTime64('2026-01-01 12:00:00.123', 3, 'UTC'), ?")
    answers = []
    for text in ("plain", "it's", 'back\\slash "quoted"', "line\nbreak ? ünï", "'; DROP TABLE x; --"):
        statement.setString(1, text)
        statement.setInt(2, 41)
        statement.setTimestamp(3, timestamp(1767268800123))
        statement.setNull(4, 0)
        answers.append([text, *rows(statement.executeQuery(), 4)])
    return {"answers": answers}


def insert(connection: Any) -> dict[str, Any]:
    timestamp = jpype.JClass("java.sql.Timestamp")
    connection.createStatement().execute(TABLE.format("tuneloop.from_java"))
    try:
        statement = connection.prepareStatement("INSERT INTO tuneloop.from_java (id, text, part, at, words) VALUES (?, ?, ?, ?, ?)")
        for number, part in ((1, 0.5), (2, None), (3, -2.0)):
            statement.setLong(1, number)
            statement.setString(2, f"it's row {number}\n")
            statement.setObject(3, part)
            statement.setTimestamp(4, timestamp(1767268800000 + number))
            statement.setArray(5, connection.createArrayOf("String", ["a", f"b'{number}"]))
            statement.addBatch()
        counts = [int(count) for count in statement.executeBatch()]
        also = connection.createStatement().executeUpdate("INSERT INTO tuneloop.from_java (id) VALUES (10), (11)")
        read = connection.prepareStatement("SELECT id, text, part, toUnixTimestamp64Milli(at), words[2] FROM tuneloop.from_java WHERE id < ? ORDER BY id")
        read.setLong(1, 10)
        return {"counts": counts, "also": int(also), "rows": rows(read.executeQuery(), 5)}
    finally:
        connection.createStatement().execute("DROP TABLE tuneloop.from_java SYNC")


def refused(connection: Any) -> dict[str, Any]:
    said = {}
    for name, sql in {
        "table": "SELECT * FROM tuneloop.nowhere", "syntax": "SELECT FROM WHERE", "thrown": "SELECT throwIf(number = 2, 'enough') FROM numbers(3)",
        "column": "INSERT INTO tuneloop.inference_served (nothing) VALUES (1)",
    }.items():  # fmt: skip
        try:
            connection.createStatement().execute(sql)
        except jpype.JClass("java.sql.SQLException") as error:
            said[name] = [int(error.getErrorCode()), str(error.getMessage())]
    # The connection is still good.
    return {"said": said, "after": rows(connection.createStatement().executeQuery("SELECT 7"), 1)}


def ours(connection: Any) -> dict[str, Any]:
    """A view and a landing table of Tuneloop's own."""
    counted = connection.createStatement().executeQuery("SELECT count() FROM tuneloop.usage_daily")
    result = connection.createStatement().executeQuery("SELECT model, ts, inference_id, latency_ms FROM tuneloop.inference_served FINAL LIMIT 0")
    about = result.getMetaData()
    return {"rows": rows(counted, 1), "types": [str(about.getColumnTypeName(n)) for n in range(1, 5)]}


def large(connection: Any) -> dict[str, Any]:
    """A result of several compressed blocks."""
    sql = "SELECT number, repeat(toString(cityHash64(number)), 3) AS text FROM numbers(60000) ORDER BY number"
    result, last, size = connection.createStatement().executeQuery(sql), -1, 0
    in_order = True
    while result.next():
        in_order, last = in_order and result.getLong(1) == last + 1, int(result.getLong(1))
        size += len(result.getString(2))
    return {"last": last, "in_order": in_order, "characters": size}


STEPS: tuple[Callable[[Any], dict[str, Any]], ...] = (connected, types, prepared, insert, refused, ours)
# How the driver may be told to send and receive: by default in ClickHouse's own compressed blocks.
WAYS = {
    "blocks": {}, "plain": {"compress": "false"}, "blocks both ways": {"decompress": "true"},
    "http": {"client.use_http_compression": "true", "decompress": "true"},
}  # fmt: skip


def opened(url: str, properties: Mapping[str, str]) -> Any:
    """A connection with these properties, to be closed by `with`."""
    given = jpype.JClass("java.util.Properties")()
    for name, value in properties.items():
        given.setProperty(name, value)
    return jpype.JClass("java.sql.DriverManager").getConnection(url, given)


def main() -> None:
    url, user, password_file, *jars = sys.argv[1:]
    start_java([jar for jar in jars if jar.endswith(".jar")])
    login = {"user": user, "password": Path(password_file).read_text()}
    if jars[0] == "--ask":
        with opened(url, login) as connection:
            connection.createStatement().executeQuery(jars[1])
            print(json.dumps({"user": str(connection.getMetaData().getUserName())}))
        return
    told: dict[str, Any] = {}
    with opened(url, login) as connection:
        told |= {step.__name__: step(connection) for step in STEPS}
    for way, settings in WAYS.items():
        with opened(url, {**login, **settings}) as connection:
            told[way] = {"large": large(connection), "insert": insert(connection)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
