"""Where the SQL of a request ends and its data begins, and what kind of statement it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.clickhouse_sql import read_statement


@given(data=st.binary(max_size=60), gap=st.sampled_from([b"\n", b" \n", b"\r\n", b";\n"]))
def test_the_data_of_an_insert_is_kept_to_the_byte(data: bytes, gap: bytes) -> None:
    read = read_statement(b"INSERT INTO t (a) FORMAT Native" + gap + data)
    assert (read.sql, read.format, read.data) == (b"INSERT INTO t (a) ", "Native", data)


@pytest.mark.parametrize(
    ("sql", "shape", "data"),
    [
        ("INSERT INTO `odd FORMAT x` (a) FORMAT CSV\n1", "CSV", b"1"),
        ("insert into db.format (`format`) settings a = 'FORMAT y' format JSONEachRow\n{}", "JSONEachRow", b"{}"),
        ("/* FORMAT a */ -- FORMAT b\nINSERT INTO t FORMAT TSV\n", "TSV", b""),
        ("INSERT INTO t FORMAT Values (1)", "Values", b"(1)"),
    ],
)
def test_the_format_clause_is_found_among_look_alikes(sql: str, shape: str, data: bytes) -> None:
    read = read_statement(sql.encode())
    assert (read.verb, read.format, read.data) == ("INSERT", shape, data)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1, 'FORMAT CSV')",
        "INSERT INTO t SELECT 1 FORMAT Null",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
    ],
)
def test_an_insert_that_brings_its_own_rows_has_no_data(sql: str) -> None:
    read = read_statement(sql.encode())
    assert (read.verb, read.sql, read.data) == ("INSERT", sql.encode(), None)


@pytest.mark.parametrize(
    ("sql", "shape", "answers", "harmless"),
    [
        ("SELECT 1 FORMAT Arrow", "Arrow", True, True),
        ("SELECT 'FORMAT CSV' AS format\nFORMAT JSON SETTINGS max_threads = 1;", "JSON", True, True),
        ("(SELECT 1) UNION ALL (SELECT 2 FORMAT x)", None, True, True),
        ("WITH 1 AS x SELECT x", None, True, True),
        ("SET a = 1", None, False, True),
        ("CREATE TABLE t (a UInt8) ENGINE = Memory", None, False, False),
        ("drop table t", None, False, False),
        ("", None, False, False),
    ],
)
def test_other_statements(sql: str, shape: str | None, answers: bool, harmless: bool) -> None:
    read = read_statement(sql.encode())
    assert (read.format, read.answers, read.harmless, read.data) == (shape, answers, harmless, None)
