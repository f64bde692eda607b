"""Where the SQL of a request ends and its data begins, and what kind of statement it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.clickhouse_sql import described, names_only, read_statement


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
        "INSERT INTO t SELECT 1 FORMAT Null",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
    ],
)
def test_an_insert_that_reads_its_rows_elsewhere_has_no_data(sql: str) -> None:
    read = read_statement(sql.encode())
    assert (read.verb, read.sql, read.data) == ("INSERT", sql.encode(), None)


@pytest.mark.parametrize(
    ("sql", "shape", "answers"),
    [
        ("SELECT 1 FORMAT Arrow", "Arrow", True),
        ("SELECT 'FORMAT CSV' AS format\nFORMAT JSON SETTINGS max_threads = 1;", "JSON", True),
        ("(SELECT 1) UNION ALL (SELECT 2 FORMAT x)", None, True),
        ("WITH 1 AS x SELECT x", None, True),
        ("SET a = 1", None, False),
        ("CREATE TABLE t (a UInt8) ENGINE = Memory", None, False),
        ("drop table t", None, False),
        ("", None, False),
    ],
)
def test_other_statements(sql: str, shape: str | None, answers: bool) -> None:
    read = read_statement(sql.encode())
    assert (read.format, read.answers, read.data) == (shape, answers, None)


@pytest.mark.parametrize(
    ("rows", "computes", "goes_on"),
    [
        (" (1, 'now()'), (2, 'it''s (SELECT 1); x')", False, False),
        ("\n(1, [(2, 'a')], {'k': 1});\n", False, False),
        ("(1) (2)", False, False),
        ("(1, now())", True, False),
        ("(1, `now` /* ; */ ())", True, True),  # a comment is not looked into: refused rather than guessed
        ("(1, (select 1))", True, False),
        ("(1, 'a\\'b'), (now()); SELECT 2", True, True),
        ("(1);DROP TABLE t", False, True),
    ],
)
def test_rows_of_values_are_data_and_say_whether_they_compute(rows: str, computes: bool, goes_on: bool) -> None:
    read = read_statement(b"INSERT INTO t (a) VALUES" + rows.encode())
    assert (read.sql, read.format, read.data) == (b"INSERT INTO t (a) ", "Values", rows.encode())
    assert (read.rows_compute, read.goes_on) == (computes, goes_on)


@pytest.mark.parametrize(
    ("sql", "only"),
    [
        ("SHOW CREATE TABLE `a b`.t FORMAT TSVRaw;", True),
        ("EXISTS TEMPORARY TABLE t", True),
        ("SHOW FUNCTIONS LIKE 'a%'", True),
        ("SHOW CREATE TABLE t INTO OUTFILE 'x'", False),
        ("SHOW CREATE TABLE t /* */ PARALLEL WITH DROP TABLE u", False),
        ("SHOW FUNCTIONS; DROP TABLE t", False),
        ("SHOW CREATE TABLE f('x')", False),
        ("SHOW $$a$$", False),
        ("EXISTS t SETTINGS a = 1", False),
    ],
)
def test_a_statement_of_names_alone_is_known(sql: str, only: bool) -> None:
    assert names_only(sql.encode()) is only


@pytest.mark.parametrize(
    ("sql", "selected"),
    [
        ("DESCRIBE TABLE t", "SELECT * FROM  t"),
        ("desc /* a */ f('x')", "SELECT * FROM  /* a */ f('x')"),
        ("DESCRIBE (SELECT 1)", "SELECT * FROM  (SELECT 1)"),
        ("DESC table", "SELECT * FROM  table"),
        ("SHOW TABLES", None),
        ("", None),
    ],
)
def test_what_is_described_is_selected_from(sql: str, selected: str | None) -> None:
    assert described(sql.encode()) == (selected.encode() if selected else None)
