"""Statements against the local ClickHouse: nothing outside its tables is read, written or reached, by any spelling."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from random import Random

import pytest
from chdb.agents.safety import SAFE_TABLE_FUNCTIONS

from deploy.local.clickhouse_access import ANALYST, WRITER
from deploy.local.clickhouse_lists import (
    DATABASE_ENGINES,
    DICTIONARY_SOURCES,
    REFUSED_FUNCTIONS,
    REFUSED_SETTINGS,
    SETTINGS,
    TABLE_ENGINES,
    TABLE_FUNCTIONS,
)
from tests.hostile.door import SECRET, Door, door
from tests.hostile.statements import AUDITED, REACH_OUT, READ_FILES, WRITE_OUT, WRITES

# Who asks and how: all of them but a POST of the writer only read.
WAYS = [(ANALYST, "GET"), (ANALYST, "POST"), (WRITER, "GET"), (WRITER, "POST")]
# What our rules answer (497, 164), and what the engine says of a text that is no statement or of no table (62, 36, 60).
REFUSED = {497, 164, 62, 36}
NO_SUCH_TABLE = {60, 81}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with door(tmp_path_factory.mktemp("door")) as one:
        yield one


@pytest.mark.parametrize(("user", "method"), WAYS)
def test_no_statement_leaves_the_server(at: Door, user: str, method: str) -> None:
    before = at.state()
    for statement in (*AUDITED, *READ_FILES, *REACH_OUT, *WRITE_OUT):
        code, said = at.ask(at.fill(statement), user, method)
        assert code in REFUSED | NO_SUCH_TABLE, f"{statement}: {code} {said[:200]}"
        assert SECRET not in said, statement
    assert at.state() == before


@pytest.mark.parametrize(("user", "method"), WAYS[:3])
def test_who_reads_changes_nothing_and_keeps_to_the_bounds(at: Door, user: str, method: str) -> None:
    before = at.state()
    for statement in WRITES:
        code, said = at.ask(statement, user, method)
        assert code in (164, 497), f"{statement}: {code} {said[:200]}"
    assert at.state() == before


@pytest.mark.parametrize(("user", "method"), WAYS)
@pytest.mark.parametrize("name", ["file", "FILE", "default.file", "file`", "IN_FILE", "system.certificates", "", "a b"])
def test_a_name_by_parameter_is_no_way_round(at: Door, user: str, method: str, name: str) -> None:
    for sql in ("SELECT arrayMap({f:Identifier}, ['IN_FILE'])", "SELECT * FROM {f:Identifier}"):
        code, said = at.ask(at.fill(sql), user, method, param_f=at.fill(name))
        assert code and SECRET not in said, (sql, name, said[:200])


@pytest.mark.parametrize("user", [ANALYST, WRITER])
@pytest.mark.parametrize(
    "settings",
    [
        {"dialect": "prql"}, {"format_template_row": "/etc/passwd"}, {"input_format_record_errors_file_path": "/tmp/x"},
        {"format_avro_schema_registry_url": "http://127.0.0.1:1"}, {"additional_result_filter": "file('x') = ''"},
        {"allow_introspection_functions": "1"}, {"profile": "default"}, {"filter": "file('x') = ''"}, {"order": "file('x')"}, {"ast_fuzzer_runs": "9"},
        {"run_query_in_background": "1"}, {"implicit_table_at_top_level": "x"},
        {"default_format": "CSV INTO OUTFILE 'x'"}, {"max_threads'; DROP TABLE x; --": "1"},
    ],
)  # fmt: skip
def test_settings_of_the_url_open_nothing(at: Door, user: str, settings: dict[str, str]) -> None:
    code, said = at.ask("SELECT 1", user, **settings)
    assert code in (497, 115, 73), said


def test_a_reader_cannot_ask_for_more_and_may_ask_for_less(at: Door) -> None:
    sql = "SELECT getSetting('max_execution_time'), getSetting('max_memory_usage'), getSetting('readonly')"
    for asked in ("0", "1e12", "-1", "nan", "x"):
        said = at.ask(sql, ANALYST, max_execution_time=asked, max_memory_usage=asked, readonly="0")[1]
        assert said == "60\t2000000000\t2\n", asked
    assert at.ask(sql, ANALYST, max_execution_time="5", max_memory_usage="1000000")[1] == "5\t1000000\t2\n"
    assert at.ask(sql, WRITER, readonly="1")[1] == "60\t2000000000\t2\n", "a writer may ask as a reader"


def listed(at: Door, table: str) -> list[str]:
    code, said = at.run(f"SELECT name FROM system.{table} ORDER BY name")
    assert code == 0
    return said.split()


def spellings(name: str) -> list[str]:
    return [f"`{name}`", name.upper(), f"{name} /* ( */", name]


# Those that the engine parses with a grammar of their own.
ARGUMENTS = {"viewIfPermitted": "(SELECT 1 ELSE null('a UInt8'))", "viewExplain": "('EXPLAIN', '', (SELECT 1))"}


@pytest.mark.parametrize("user", [ANALYST, WRITER])
def test_each_table_function_of_the_engine_is_refused_or_listed(at: Door, user: str) -> None:
    names, before, passed = listed(at, "table_functions"), at.state(), set()
    assert len(names) > 80
    for name in names:
        quoted, upper, commented, nested = spellings(name)
        of = ARGUMENTS.get(name, "('x')")
        for sql in (
            f"SELECT * FROM {quoted}{of}", f"SELECT * FROM {upper}{of}", f"SELECT * FROM {commented}{of}",
            f"SELECT 1 WHERE 1 IN (WITH q AS (SELECT * FROM ((SELECT * FROM {nested}{of}))) SELECT 1 FROM q)",
        ):  # fmt: skip
            code, said = at.run(sql, user)
            if name.lower() in TABLE_FUNCTIONS:
                passed.add(name.lower())
            else:
                assert code == 497, f"{sql}: {code} {said[:100]}"
    assert at.state() == before and passed == TABLE_FUNCTIONS


def test_each_engine_is_refused_or_listed(at: Door) -> None:
    before, names = at.state(), listed(at, "table_engines")
    assert len(names) > 60
    for name in names:
        quoted, upper, commented, nested = spellings(name)
        for sql in (
            f"CREATE TABLE tuneloop.t (a UInt8) ENGINE = {quoted}('x')",
            f"CREATE TABLE tuneloop.t (a UInt8) ENGINE = {upper}('x')",
            f"CREATE TABLE tuneloop.t (a UInt8) ENGINE {commented} ('x')",
            f"CREATE MATERIALIZED VIEW tuneloop.t ENGINE = {nested}('x') AS SELECT n FROM tuneloop.kept",
        ):
            code, said = at.run(sql)
            if name.lower() not in TABLE_ENGINES:
                assert code == 497, f"{sql}: {code} {said[:100]}"
            elif not code:
                at.run("DROP TABLE tuneloop.t SYNC")
        assert at.run(sql, ANALYST)[0] == 164
    for name in listed(at, "database_engines"):
        if name.lower() not in DATABASE_ENGINES:
            assert at.run(f"CREATE DATABASE other ENGINE = `{name}`('x')")[0] == 497, name
    for name in listed(at, "dictionary_sources"):
        if name not in DICTIONARY_SOURCES:
            source = f"SOURCE({name.upper()}(a 'x')) LAYOUT(FLAT()) LIFETIME(1)"
            assert at.run(f"CREATE DICTIONARY tuneloop.d (a UInt64) PRIMARY KEY a {source}")[0] == 497, name
    assert at.state() == before


def test_each_refused_function_is_refused_in_four_spellings(at: Door) -> None:
    for name in REFUSED_FUNCTIONS:
        for spelling in (f"`{name}`()", f"{name.upper()}(1)", f"{name}/**/ ('x')", f"if(0, {name}('x'), 1)"):
            assert at.run(f"SELECT {spelling}", ANALYST)[0] == 497, spelling


def test_what_the_engine_has_is_what_was_looked_at(at: Door) -> None:
    """Another engine brings other names: look at them (`clickhouse_lists`), then renew these figures."""
    names = sorted({name.lower() for name in listed(at, "functions")})
    assert (len(names), hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]) == FUNCTIONS
    settings = [name for name in listed(at, "settings") if SETTINGS.match(name) and not REFUSED_SETTINGS.search(name)]
    assert (len(settings), hashlib.sha256(" ".join(settings).encode()).hexdigest()[:16]) == SETTINGS_LISTED


FUNCTIONS = (1861, "3723e6b49282f79b")
SETTINGS_LISTED = (1002, "bc59924869be9e27")


def test_our_table_functions_are_among_those_that_chdb_calls_safe() -> None:
    assert {"sqlstandardvalues"} == TABLE_FUNCTIONS - SAFE_TABLE_FUNCTIONS, "VALUES as standard SQL writes it"


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT 1; SELECT 2", "SELECT 'a\\'b' FROM FROM", "GRANT ALL ON *.* TO default"])
def test_an_error_is_of_the_statement_and_not_of_how_it_was_looked_at(at: Door, sql: str) -> None:
    code, said = at.run(sql)
    assert said.startswith(f"Code: {code}. DB::Exception: ") and "parseQueryToJSON" not in said


# --- the fuzzer ---

_BLANKS = [" ", "\t", "\n", "\r\n", "\x0b", "\x0c", "\u00a0", "\u2003", "\u3000", "\ufeff", "\u200b", "/**/", "/* ' */",
           "/*\"*/", "-- x\n", "--'\n", "# x\n", "#! `\n", " /* ; */ "]  # fmt: skip
_AROUND = [
    "{}", "({})", "{};", ";{}", "SELECT * FROM ({})", "SELECT 1 WHERE 1 IN ({})", "WITH q AS ({}) SELECT * FROM q",
    "SELECT 1; {}", "{}; SELECT 1", "EXPLAIN {}", "SELECT ({})", "SELECT [({})]", "SELECT exists({})",
    "SELECT 1 UNION ALL {}", "CREATE VIEW tuneloop.fuzzed AS {}", "INSERT INTO tuneloop.none {}",
    "SELECT * FROM view({})", "((({})))", "DESCRIBE ({})", "SHOW TABLES; {}", "/*{}*/ {}", "SELECT '{}'; {}",
    "SELECT $a$ {} $a$; {}", "SELECT \"{}\", `{}`, ({})", "{} FORMAT Null", "{} SETTINGS max_threads = 1",
]  # fmt: skip


def mutated(statement: str, random: Random) -> str:
    """The statement with other blanks, case, quotes and brackets; strings stay as they are."""
    parts, quoted = [], False
    for piece in statement.replace("'", "\0'\0").split("\0"):
        quoted = quoted != (piece == "'")
        parts.append(piece if quoted or piece == "'" else _respelt(piece, random))
    text = "".join(parts)
    for _ in range(random.randint(0, 2)):
        text = random.choice(_AROUND).replace("{}", text)
    return text


def _respelt(text: str, random: Random) -> str:
    words = []
    for word in text.split(" "):
        if word.isidentifier() and random.random() < 0.3:
            word = random.choice([word.upper(), word.lower(), word.swapcase(), f"`{word}`", f'"{word}"'])
        if "(" in word and random.random() < 0.5:
            word = word.replace("(", random.choice(_BLANKS) + "(", 1)
        words.append(word)
    return "".join(word + (random.choice(_BLANKS) if random.random() < 0.4 else " ") for word in words)


@pytest.mark.parametrize("seed", range(4))
def test_no_spelling_of_them_gets_through(at: Door, seed: int) -> None:
    random, before = Random(seed), at.state()
    statements = [*AUDITED, *READ_FILES, *REACH_OUT, *WRITE_OUT]
    for _ in range(250):
        statement = mutated(at.fill(random.choice(statements)), random)
        user, method = random.choice(WAYS)
        code, said = at.run(statement.encode(errors="replace"), user, method)
        assert SECRET not in said, f"{user} {method} {statement!r}: {said[:200]}"
        assert code or "fuzzed" in statement or at.state() == before, f"{user} {method} {statement!r}: {said[:200]}"
        at.run("DROP TABLE IF EXISTS tuneloop.fuzzed")
    assert at.state() == before
