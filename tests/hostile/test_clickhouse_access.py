"""Who may ask the local ClickHouse, and how much it takes in: decided before a body is read."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lz4.frame
import pytest

from deploy.local.clickhouse_access import (
    ANALYST,
    USERS,
    WRITER,
    check_access,
    check_site,
    given_login,
    make_passwords,
    read_passwords,
)
from deploy.local.clickhouse_blocks import from_blocks, to_blocks
from deploy.local.clickhouse_engine import MAX_SESSIONS
from deploy.local.clickhouse_error import EngineError
from deploy.local.clickhouse_http import MAX_BODY_BYTES, decompress, zstd
from deploy.local.errors import LocalPartError
from tests.hostile.door import PORT, Door, door

HERE = {"host": f"127.0.0.1:{PORT}"}
PASSWORDS = {WRITER: "w" * 43, ANALYST: "a" * 43}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with door(tmp_path_factory.mktemp("door")) as one:
        yield one


PAGES = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "Cross-Site"},
    {"sec-fetch-site": ""},
    {"sec-fetch-site": "none, cross-site"},
    {"origin": "https://example.org"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": f"https://127.0.0.1:{PORT}"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": f"http://localhost:{PORT}"},  # another origin than the 127.0.0.1 that was asked
    {"origin": f"http://127.0.0.1:{PORT}.example.org"},
    {"origin": f"http://127.0.0.1:{PORT}/"},
    {"origin": "http://127.0.0.1"},
    {"host": "example.org"},
    {"host": f"rebound.example.org:{PORT}"},
    {"host": f"localhost.example.org:{PORT}"},
    {"host": f"127.0.0.1.example.org:{PORT}"},
    {"host": f"10.0.0.1:{PORT}"},
    {"host": "0.0.0.0"},
    {"host": ""},
    {"host": "[::1"},
    {"host": f"127.0.0.1@example.org:{PORT}"},
    {"host": "localhost:3000", "origin": "http://localhost:3000"},
    {"host": f"[::ffff:10.0.0.1]:{PORT}"},
]


@pytest.mark.parametrize("headers", PAGES, ids=str)
def test_what_a_web_page_makes_a_browser_send_is_refused(at: Door, headers: dict[str, str]) -> None:
    with pytest.raises(EngineError) as raised:
        check_site({**HERE, **headers}, PORT)
    assert raised.value.code == 497
    login = (WRITER, at.passwords[WRITER])
    for method in ("GET", "POST"):
        answer = at.client.request(method, "/", params={"query": "SELECT 1"}, headers=headers, auth=login)
        assert answer.status_code in (400, 403) and "1\n" not in answer.text.splitlines(keepends=True), method


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"host": f"localhost:{PORT}"}, {"host": f"[::1]:{PORT}"}, {"sec-fetch-site": "none"}, {"host": "127.0.0.2"},
        {"sec-fetch-site": "same-origin", "origin": f"http://127.0.0.1:{PORT}"},
        {"host": f"localhost:{PORT}", "origin": f"http://localhost:{PORT}"},
    ],
    ids=str,
)  # fmt: skip
def test_programs_of_this_machine_may_ask(headers: dict[str, str]) -> None:
    check_site({**HERE, **headers}, PORT)


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({}, {}), (basic("tuneloop:"), {}), (basic("tuneloop"), {}), (basic(":" + "w" * 43), {}),
        (basic("analyst:" + "w" * 43), {}), (basic("tuneloop:" + "w" * 42), {}), (basic("tuneloop:" + "w" * 44), {}),
        (basic("default:"), {}), (basic("nobody:"), {}), ({"authorization": "Basic ????"}, {}),
        ({"authorization": "Bearer " + "w" * 43}, {}), ({"x-clickhouse-key": "w" * 43}, {}),
        ({"x-clickhouse-user": "tuneloop"}, {}), ({}, {"user": "tuneloop"}), ({}, {"password": "w" * 43}),
        ({"x-clickhouse-user": "tuneloop", "x-clickhouse-key": ""}, {"user": "tuneloop", "password": "w" * 43}),
        (basic("tuneloop:é"), {}), ({"authorization": "Basic /w=="}, {"user": WRITER, "password": "w" * 43}),
    ],
)  # fmt: skip
def test_without_its_own_password_nobody_is_let_in(headers: dict[str, str], url: dict[str, str]) -> None:
    with pytest.raises(EngineError) as raised:
        check_access({**HERE, **headers}, url, PORT, PASSWORDS)
    assert raised.value.code == 516 and "w" * 40 not in str(raised.value)


@pytest.mark.parametrize("user", USERS)
def test_a_password_is_taken_from_wherever_clients_put_it(user: str) -> None:
    word = PASSWORDS[user]
    for headers, url in (
        (basic(f"{user}:{word}"), {}), ({"x-clickhouse-user": user, "x-clickhouse-key": word}, {}),
        ({}, {"user": user, "password": word}),
    ):  # fmt: skip
        assert check_access({**HERE, **headers}, url, PORT, PASSWORDS) == user
    assert given_login(basic(f"{user}:a:b"), {}) == (user, "a:b")


def test_ping_answers_without_access_and_says_nothing_else(at: Door) -> None:
    for path in ("/ping", "/", "/replicas_status"):
        answer = at.client.get(path, headers={"sec-fetch-site": "cross-site"})
        said = {name for name in answer.headers if name.startswith("x-")}
        assert (answer.status_code, answer.text, said) == (200, "Ok.\n", set())
    assert at.client.get("/?query=SELECT+1").status_code == 403
    assert at.client.options("/", headers={"origin": "https://example.org"}).status_code == 405, "no CORS"


def taken_of_an_endless_body(at: Door, headers: dict[str, str]) -> tuple[int, int]:
    """The status, and how many bytes of a body without end the application took."""
    taken, status = 0, 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 2**20
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    raw = [(name.encode(), value.encode()) for name, value in {**HERE, **headers}.items()]
    scope = {
        "type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"query=SELECT+1",
        "headers": raw, "scheme": "http", "server": ("127.0.0.1", PORT), "http_version": "1.1", "app": None,
    }  # fmt: skip
    asyncio.run(at.client.app(scope, receive, send))  # type: ignore[arg-type]
    return status, taken


def test_no_byte_of_a_body_is_read_without_access(at: Door) -> None:
    login = basic(f"{WRITER}:{at.passwords[WRITER]}")
    for headers in ({}, basic("tuneloop:wrong"), {**login, "sec-fetch-site": "cross-site"}, {**login, "host": "a.org"}):
        assert taken_of_an_endless_body(at, headers) == (403, 0)


def test_no_more_than_the_bound_is_read_with_access(at: Door) -> None:
    for user in USERS:
        login = basic(f"{user}:{at.passwords[user]}")
        for length in (str(MAX_BODY_BYTES + 1), "9" * 30, "x", "-1"):
            assert taken_of_an_endless_body(at, {**login, "content-length": length}) == (413, 0)
    status, taken = taken_of_an_endless_body(at, basic(f"{ANALYST}:{at.passwords[ANALYST]}"))
    assert (status, taken) == (413, MAX_BODY_BYTES + 2**20)


BOMB = bytes(2**24)


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("gzip", gzip.compress(BOMB)), ("deflate", zlib.compress(BOMB)), ("lz4", lz4.frame.compress(BOMB)),
        ("zstd", zstd.compress(BOMB)), ("gzip", gzip.compress(BOMB[: 2**21]) * 8), ("X-GZIP ", gzip.compress(BOMB)),
    ],
)  # fmt: skip
def test_a_body_is_unpacked_no_further_than_the_bound(name: str, packed: bytes) -> None:
    with pytest.raises(EngineError) as raised:
        decompress(packed, name, 2**22)
    assert raised.value.code == 307
    assert decompress(packed, name, 2**24) == BOMB
    with pytest.raises(EngineError) as raised:
        decompress(packed[:-9], name, 2**24)
    assert raised.value.code == 354, "cut off"


def test_blocks_are_unpacked_no_further_than_the_bound() -> None:
    with pytest.raises(EngineError) as raised:
        from_blocks(to_blocks(BOMB), 2**22)
    assert raised.value.code == 307


def test_sessions_are_bounded_and_no_readers_affair(at: Door) -> None:
    for number in range(MAX_SESSIONS + 20):
        assert at.run("SELECT 1", ANALYST, session_id=f"a{number}")[0] == 0
    codes = [at.run("SELECT 1", WRITER, session_id=f"w{number}")[0] for number in range(MAX_SESSIONS + 5)]
    assert codes == [0] * MAX_SESSIONS + [202] * 5
    assert at.run("SELECT 1", WRITER)[0] == 0, "without a session there is always room"


# --- the files ---


def test_passwords_are_made_once_long_and_for_their_owner_alone(tmp_path: Path) -> None:
    folder, umask = tmp_path / "secrets" / "clickhouse", os.umask(0)
    make_passwords(folder)
    os.umask(umask)
    first = read_passwords(folder)
    make_passwords(folder)
    assert read_passwords(folder) == first and len({*first.values()}) == 2
    made = sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))
    assert min(map(len, first.values())) >= 43 and made == sorted(USERS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("harm", ["missing", "open", "short", "empty", "link", "pipe", "folder"])
def test_a_password_file_that_is_not_as_it_was_made_ends_the_start(tmp_path: Path, harm: str) -> None:
    make_passwords(tmp_path)
    path = tmp_path / ANALYST
    whole = path.read_text()
    if harm in ("open", "short", "empty"):
        path.write_text({"short": "secret", "empty": ""}.get(harm, whole))
        path.chmod(0o640 if harm == "open" else 0o600)
    else:
        path.unlink()
    if harm == "link":
        (tmp_path / "elsewhere").write_text(whole)
        path.symlink_to(tmp_path / "elsewhere")
    elif harm == "pipe":
        os.mkfifo(path, 0o600)
    elif harm == "folder":
        path.mkdir(0o700)
    with pytest.raises(LocalPartError, match=str(path)):
        read_passwords(tmp_path)
