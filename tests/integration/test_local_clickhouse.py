"""The local ClickHouse, driven by an unchanged clickhouse-connect, by curl, and by kill -9."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from deploy.local.clickhouse_access import ANALYST, USERS, WRITER, make_passwords, read_passwords
from deploy.local.clickhouse_blocks import from_blocks, to_blocks
from deploy.local.ports import free_ports
from tests.parts import clickhouse_command

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Server:
    """A server of its own, with passwords in the folder beside its data."""

    data: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def passwords(self) -> dict[str, str]:
        return read_passwords(self.data / "passwords")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self, **env: str) -> None:
        make_passwords(self.data / "passwords")
        command = clickhouse_command(self.data, self.port, self.data / "passwords")
        self.process = subprocess.Popen(command, cwd=ROOT, env={"PATH": "/usr/bin:/bin", **env})
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if httpx.get(self.url + "ping", timeout=1).text == "Ok.\n":
                    return
            except httpx.TransportError:
                assert self.process.poll() is None, "the server ended at its start"
                time.sleep(0.05)
        raise AssertionError("the server did not answer /ping within 30 s")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def post(self, body: bytes | str, user: str = WRITER, **params: str) -> httpx.Response:
        login = (user, self.passwords[user])
        return httpx.post(self.url, content=body, params=params, timeout=30, auth=login)

    def client(self, user: str = WRITER, **options: Any) -> clickhouse_connect.driver.Client:
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user, password=self.passwords[user], **options
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("clickhouse"), free_ports(1)[0])
    server.start()
    assert server.post("CREATE DATABASE IF NOT EXISTS tuneloop").status_code == 200
    yield server
    server.kill()


@pytest.fixture
def client(server: Server) -> Iterator[clickhouse_connect.driver.Client]:
    client = server.client(database="tuneloop")
    yield client
    client.close()


@pytest.fixture
def table(client: clickhouse_connect.driver.Client) -> Iterator[str]:
    client.command("CREATE TABLE events (id UInt64, text String, at DateTime64(3)) ENGINE = MergeTree ORDER BY id")
    yield "events"
    client.command("DROP TABLE events SYNC")


def test_the_client_inserts_natively_and_reads_back(client, table) -> None:
    rows = [[1, "INSERT … FORMAT Native\n'quoted'", NOON], [2, "", NOON]]
    summary = client.insert(table, rows, column_names=["id", "text", "at"])
    assert summary.written_rows == 2
    read = client.query("SELECT id, text FROM events ORDER BY id")
    assert read.result_rows == [(1, rows[0][1]), (2, "")]
    assert read.column_names == ("id", "text")


@pytest.mark.parametrize("compress", [False, True, "gzip", "lz4", "zstd"])
def test_the_client_compresses_both_ways(server, table, compress) -> None:
    client = server.client(database="tuneloop", compress=compress)
    client.insert(table, [[i, "x" * 100, NOON] for i in range(5000)], column_names=["id", "text", "at"])
    read = client.query("SELECT id, text FROM events ORDER BY id")
    assert len(read.result_rows) == 5000 and read.result_rows[-1] == (4999, "x" * 100)
    client.close()


def test_the_client_inserts_and_reads_arrow(client, table) -> None:
    block = pa.table({"id": pa.array([7, 8], pa.uint64()), "text": ["a", "b"]})
    client.insert_arrow(table, block)
    read = client.query_arrow("SELECT id, text FROM events ORDER BY id", use_strings=True)
    assert read.to_pydict() == {"id": [7, 8], "text": ["a", "b"]}


@pytest.mark.parametrize("value", ["plain", "it's", "tab\there", "line\nbreak", "back\\slash", "ünï"])
def test_the_client_binds_server_side_parameters(client, value) -> None:
    assert client.query("SELECT {v:String}", parameters={"v": value}).result_rows == [(value,)]


def test_a_parameter_too_long_for_a_url_comes_as_a_form(server) -> None:
    client = server.client(form_encode_query_params=True)
    numbers = list(range(20_000))
    counted = client.query("SELECT length({n:Array(UInt32)})", parameters={"n": numbers})
    assert counted.first_row == (20_000,)
    client.close()


def test_settings_hold_for_one_query(client) -> None:
    assert client.command("SELECT getSetting('max_block_size')", settings={"max_block_size": 4321}) == 4321
    assert client.command("SELECT getSetting('max_block_size')") != 4321


def test_a_session_keeps_what_it_set(client) -> None:
    client.command("CREATE TEMPORARY TABLE seen (id UInt8)")
    client.insert("seen", [[5]], column_names=["id"], settings={"max_insert_block_size": 1000})
    assert client.query("SELECT id FROM seen").result_rows == [(5,)]


def test_commands_tell_a_result_from_none(client, table) -> None:
    assert client.command("SELECT count() FROM events") == 0
    assert client.command("EXISTS TABLE events") == 1
    assert client.command("OPTIMIZE TABLE events").written_rows == 0
    assert client.command("SELECT text FROM events") == ""


def test_raw_insert_splits_sql_and_data(client, table) -> None:
    client.raw_insert(table, ["id", "text"], b'{"id":1,"text":"FORMAT x"}\n{"id":2,"text":"y"}\n', fmt="JSONEachRow")
    assert client.query("SELECT count() FROM events").first_row == (2,)


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("SELEC 1", 62, 400),
        ("SELECT nothing", 47, 404),
        ("SELECT * FROM nowhere", 60, 404),
        ("SELECT throwIf(1)", 395, 500),
    ],
)
def test_errors_carry_clickhouses_code(server, client, sql, code, status) -> None:
    answer = server.post(sql)
    assert (answer.status_code, answer.headers["x-clickhouse-exception-code"]) == (status, str(code))
    assert answer.text.startswith(f"Code: {code}. DB::Exception:")
    with pytest.raises(DatabaseError) as raised:
        client.query(sql)
    assert raised.value.code == code


def test_unknown_setting_database_and_broken_rows_are_errors(server, client, table) -> None:
    assert server.post("SELECT 1", max_treads="1").headers["x-clickhouse-exception-code"] == "115"
    assert server.post("SELECT 1", database="absent").headers["x-clickhouse-exception-code"] == "81"
    bad = server.post('INSERT INTO events FORMAT JSONEachRow\n{"id":"x"}', database="tuneloop")
    assert bad.status_code == 400 and "x-clickhouse-exception-code" in bad.headers
    assert client.command("SELECT count() FROM events") == 0


def test_blocks_are_sent_and_taken_as_clickhouse_has_them(server, client, table) -> None:
    sql = b"INSERT INTO events (id, text) FORMAT JSONEachRow\n" + b"".join(b'{"id":%d,"text":"x"}' % n for n in range(3))
    assert server.post(to_blocks(sql), database="tuneloop", decompress="1").status_code == 200
    answer = server.post("SELECT id FROM events ORDER BY id", database="tuneloop", compress="1")
    assert from_blocks(answer.content) == b"0\n1\n2\n"
    assert server.post("DROP TABLE IF EXISTS nowhere", database="tuneloop", compress="1").content == b""
    refused = server.post("SELECT * FROM nowhere", compress="1")
    assert (refused.status_code, refused.text.startswith("Code: 60. DB::Exception")) == (404, True), "errors stay readable"
    damaged = server.post(to_blocks(b"SELECT 1")[:-1] + b"?", decompress="1")
    assert (damaged.status_code, damaged.headers["x-clickhouse-exception-code"]) == (500, "40")


def test_the_checksum_is_the_engines_own(server, client) -> None:
    """A table's files hold the same blocks, written by the engine."""
    client.command("CREATE TABLE stored (text String) ENGINE = TinyLog")
    texts = ["", "x" * 7, *(f"{n * 7919:x}" * (n % 5) for n in range(400))]
    client.insert("stored", [[text] for text in texts], column_names=["text"])
    (file,) = server.data.rglob("text.bin")
    assert from_blocks(file.read_bytes()) == b"".join(bytes([len(text)]) + text.encode() for text in texts)
    client.command("DROP TABLE stored SYNC")


@pytest.fixture(scope="module")
def curl(server: Server) -> Callable[..., bytes]:
    """curl as the user tuneloop, whose password is in a file of options."""
    options = server.data / "curl"
    options.write_text(f'user = "{WRITER}:{server.passwords[WRITER]}"\n')

    def curl(*arguments: str, stdin: bytes = b"") -> bytes:
        command = ["curl", "-sS", "--config", str(options), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout

    return curl


def test_curl_gets_posts_and_pings(server, curl) -> None:
    assert curl(server.url) == b"Ok.\n"
    assert curl(server.url + "ping") == b"Ok.\n"
    assert curl("-G", server.url, "--data-urlencode", "query=SELECT 1, 'a'") == b"1\ta\n"
    assert curl(server.url, "--data-binary", "SELECT 1 AS x FORMAT JSONEachRow") == b'{"x":1}\n'
    assert curl(server.url + "?default_format=CSV", "--data-binary", "SELECT 1, 'a'") == b'1,"a"\n'
    assert curl(server.url + "?param_n=41", "--data-binary", "SELECT {n:UInt8} + 1") == b"42\n"
    assert curl("--compressed", server.url + "?enable_http_compression=1", "-d", "SELECT 7") == b"7\n"


def test_curl_inserts_with_sql_in_the_url_and_a_compressed_body(server, curl, table) -> None:
    import gzip

    rows = gzip.compress(b'{"id":1,"text":"one"}\n{"id":2,"text":"two"}\n')
    query = f"{server.url}?database=tuneloop&query=INSERT%20INTO%20events%20FORMAT%20JSONEachRow"
    assert curl(query, "-H", "Content-Encoding: gzip", "--data-binary", "@-", stdin=rows) == b""
    assert curl(server.url + "?database=tuneloop", "-d", "SELECT sum(id) FROM events") == b"3\n"
    curl(server.url + "?database=tuneloop", "-d", "INSERT INTO events (id) VALUES (10), (20)")
    assert curl(server.url + "?database=tuneloop", "-d", "SELECT sum(id) FROM events") == b"33\n"


@pytest.mark.parametrize("user", USERS)
def test_get_only_reads_whoever_asks(server, user) -> None:
    login = (user, server.passwords[user])
    refused = httpx.get(server.url, params={"query": "CREATE TABLE t (a UInt8) ENGINE = Memory"}, auth=login)
    assert refused.headers["x-clickhouse-exception-code"] == "164"
    assert httpx.get(server.url, params={"query": "SELECT 1"}, auth=login).text == "1\n"


def test_the_analyst_reads_within_bounds_and_changes_nothing(server, client, table) -> None:
    analyst = server.client(ANALYST, database="tuneloop")
    assert analyst.query("SELECT count() FROM events").first_row == (0,)
    assert analyst.query("SELECT {n:UInt8} + 1", parameters={"n": 1}).first_row == (2,)
    assert len(analyst.query_arrow("SELECT * FROM events", settings={"max_threads": 1})) == 0
    for sql in ("INSERT INTO events (id) VALUES (1)", "DROP TABLE events", "SET max_threads = 1", "TRUNCATE events"):
        with pytest.raises(DatabaseError) as raised:
            analyst.command(sql)
        assert raised.value.code == 164
    assert client.command("SELECT count() FROM events") == 0
    analyst.close()


def test_a_query_of_the_analyst_ends_at_its_bounds(tmp_path) -> None:
    server = Server(tmp_path, free_ports(1)[0])
    server.start(TUNELOOP_QUERY_SECONDS="1", TUNELOOP_QUERY_MEMORY_MB="100")
    began = time.monotonic()
    for asked in ({}, {"max_execution_time": "0"}, {"max_execution_time": "3600"}):
        slow = server.post("SELECT count() FROM numbers(1000000000000000)", ANALYST, **asked)
        assert slow.headers["x-clickhouse-exception-code"] == "159"
    assert time.monotonic() - began < 10
    large = "SELECT sum(length(repeat('x', 999998 + number % 2))) FROM numbers(200)"
    refused = server.post(large, ANALYST, max_memory_usage="0")
    assert refused.headers["x-clickhouse-exception-code"] == "241"
    assert server.post(large).text == "199999700\n", "a writer may"
    server.kill()


def test_what_the_settings_allow_is_allowed(tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("1\n2\n")
    sql = f"SELECT sum(c1) FROM file('{tmp_path / 'rows.csv'}')"
    server = Server(tmp_path / "data", free_ports(1)[0])
    server.start(TUNELOOP_ALLOW_SOURCES="url, File")
    assert server.post(sql, ANALYST).text == "3\n"
    assert server.post("SELECT * FROM s3('http://127.0.0.1:1/x')").headers["x-clickhouse-exception-code"] == "497"
    server.kill()


def test_a_server_without_passwords_does_not_start(tmp_path) -> None:
    command = clickhouse_command(tmp_path, free_ports(1)[0], tmp_path / "none")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "") and "`tuneloop up` makes it" in done.stderr


def test_what_was_made_in_the_database_default_is_there_after_a_restart(tmp_path) -> None:
    server = Server(tmp_path, free_ports(1)[0])
    server.start()
    assert server.post("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n").status_code == 200
    assert server.post("INSERT INTO default.kept VALUES (7)").status_code == 200
    for _ in range(2):
        server.kill()
        server.start()
        assert server.post("SELECT * FROM kept").text == "7\n"
        assert server.post(f"SELECT * FROM '{tmp_path / 'passwords' / WRITER}'").headers["x-clickhouse-exception-code"] == "60"
    server.kill()


def test_readers_beside_a_writer(server, client, table) -> None:
    failed: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        own = server.client(database="tuneloop")
        last = 0
        try:
            while not done.is_set():
                count = own.command("SELECT count() FROM events")
                assert count % 2000 == 0 and count >= last, f"a torn or lost block: {last} then {count}"
                last = count
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for block in range(20):
        rows = [[block * 2000 + i, "text", NOON] for i in range(2000)]
        client.insert(table, rows, column_names=["id", "text", "at"])
    done.set()
    for reader in readers:
        reader.join()
    assert not failed
    assert client.command("SELECT count() FROM events") == 40_000


def test_a_second_process_on_the_directory_is_refused(server) -> None:
    def start(port: int) -> subprocess.CompletedProcess[str]:
        command = clickhouse_command(server.data, port, server.data / "passwords")
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    other = start(free_ports(1)[0])
    assert other.returncode == 1 and "served by another process" in other.stderr
    taken = start(server.port)
    assert taken.returncode == 1 and f"Port {server.port}" in taken.stderr


def test_what_was_acknowledged_survives_kill_9(tmp_path) -> None:
    server = Server(tmp_path, free_ports(1)[0])
    server.start()
    server.post("CREATE DATABASE tuneloop")
    server.post("CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n", database="tuneloop")
    acknowledged = 0
    for _ in range(3):
        for _ in range(10):
            first = acknowledged
            sql = f"INSERT INTO kept SELECT number + {first} FROM numbers(100)"
            assert server.post(sql, database="tuneloop").status_code == 200
            acknowledged += 100
        server.kill()
        server.start()
        assert (
            server.post("SELECT count(), uniqExact(n) FROM tuneloop.kept").text == f"{acknowledged}\t{acknowledged}\n"
        )
    server.kill()
