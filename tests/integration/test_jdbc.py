"""The local ClickHouse, driven by ClickHouse's own JDBC driver on the Java that comes with the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.local import jars
from deploy.local.errors import LocalPartError
from streams.clickhouse import credentials
from tests.integration import jdbc_session

ROOT = Path(__file__).parents[2]


def driver_jars() -> list[str]:
    """The driver's files; skips where they cannot be had."""
    try:
        return [str(jar) for jar in jars.fetch(jars.JDBC)]
    except LocalPartError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def told(clickhouse_url: str) -> dict[str, Any]:
    """What the driver was told, step by step (`jdbc_session`)."""
    driver = driver_jars()
    url = clickhouse_url.replace("http://", "jdbc:clickhouse://")
    who = credentials()
    command = [sys.executable, jdbc_session.__file__, url, who.user, who.password_file, *driver]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_it_connects_and_looks_around(told) -> None:
    seen = told["connected"]
    assert (seen["product"], seen["valid"]) == ("ClickHouse", True)
    assert jars.JDBC_VERSION in seen["driver"] and seen["version"][0].isdigit()
    assert seen["tables"] == ["inference_served"]


def test_it_reads_each_type(told) -> None:
    seen = told["types"]
    assert seen["columns"] == {
        "text": "String", "whole": "Int64", "huge": "UInt64", "part": "Float64", "yes": "Bool",
        "at": "DateTime64(3, 'UTC')", "none": "Nullable(Int32)", "some": "Nullable(Int32)", "list": "Array(Int64)",
        "words": "Array(String)",
    }  # fmt: skip
    assert (seen["text"], seen["whole"], seen["huge"], seen["part"]) == ("it's ünï", -7, str(2**64 - 1), 0.5)
    assert (seen["yes"], seen["at_ms"], seen["more"]) == (True, 1767268800123, False)
    assert (seen["none"], seen["some"]) == ([0, True, True], [41, False, False])
    assert (seen["list"], seen["words"]) == ([1, 2, 3], ["a", "b"])


def test_a_prepared_statement_takes_parameters(told) -> None:
    assert len(told["prepared"]["answers"]) == 5
    for sent, row in told["prepared"]["answers"]:
        assert row == [sent, "42", "1", None]


def check_rows(seen: dict[str, Any]) -> None:
    assert (seen["counts"], seen["also"]) == ([1, 1, 1], 2)
    assert seen["rows"] == [
        ["1", "it's row 1\n", "0.5", "1767268800001", "b'1"],
        ["2", "it's row 2\n", None, "1767268800002", "b'2"],
        ["3", "it's row 3\n", "-2.0", "1767268800003", "b'3"],
    ]


def test_it_inserts_rows(told) -> None:
    check_rows(told["insert"])


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("table", 60, "UNKNOWN_TABLE"),
        ("syntax", 62, "SYNTAX_ERROR"),
        ("thrown", 395, "enough"),
        ("column", 16, "NO_SUCH_COLUMN_IN_TABLE"),
    ],
)
def test_an_error_is_an_sql_exception_with_clickhouses_code(told, name, code, word) -> None:
    number, message = told["refused"]["said"][name]
    assert (number, word in message, "DB::Exception" in message) == (code, True, True)
    assert told["refused"]["after"] == [["7"]], "the connection is still good"


def test_it_reads_what_tuneloop_lands(told) -> None:
    assert told["ours"]["rows"][0][0].isdigit()
    assert told["ours"]["types"] == ["LowCardinality(String)", "DateTime64(3, 'UTC')", "String", "Float64"]


@pytest.mark.parametrize("way", jdbc_session.WAYS)
def test_it_sends_and_receives_each_way_it_can(told, way) -> None:
    check_rows(told[way]["insert"])
    large = told[way]["large"]
    assert (large["last"], large["in_order"]) == (59_999, True)
    assert large["characters"] > 2**20, "several blocks"
