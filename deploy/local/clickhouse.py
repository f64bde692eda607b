"""ClickHouse on this machine: `python -m deploy.local.clickhouse --data DIR --port P`, on the loopback only.

The engine itself (chdb) answers ClickHouse's HTTP protocol from one process that owns DIR. Driven by tests
with an unchanged clickhouse-connect, ClickHouse's own JDBC driver and curl. Results are built in memory before they
are sent; there are no users, no external tables and no native TCP protocol. With TUNELOOP_CLICKHOUSE_PASSWORD set
every query must carry that password (the user is ignored). What a web page of another origin makes a browser send is
refused.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import os
import sys
import uuid
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.local.clickhouse_blocks import from_blocks, to_blocks
from deploy.local.clickhouse_engine import Engine, EngineError
from deploy.local.clickhouse_http import (
    answer_headers,
    compress,
    decompress,
    error_status,
    is_set,
    read_form,
    read_task,
)
from deploy.local.errors import LocalPartError
from deploy.local.ports import LOOPBACK, port_free

PASSWORD_VARIABLE = "TUNELOOP_CLICKHOUSE_PASSWORD"
PARALLEL_QUERIES = 16
_HERE = {"127.0.0.1", "localhost", "::1"}


def build_app(engine: Engine, password: str | None = None) -> Starlette:
    """The HTTP application over an open engine; closes the engine when it shuts down."""

    async def ping(request: Request) -> Response:
        return Response("Ok.\n", media_type="text/plain")

    async def query(request: Request) -> Response:
        body = await request.body()
        if request.method == "GET" and not request.query_params and not body:
            return await ping(request)
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        try:
            check_access(request, password)
            answer = partial(_answer, engine, request, body, query_id)
            return await anyio.to_thread.run_sync(answer, limiter=threads)
        except EngineError as error:
            return refusal(error, engine, query_id)

    @asynccontextmanager
    async def lifespan(app: Starlette):  # type: ignore[no-untyped-def]
        yield
        engine.close()

    threads = anyio.CapacityLimiter(PARALLEL_QUERIES)
    routes = [
        Route("/ping", ping, methods=["GET", "HEAD"]),
        Route("/replicas_status", ping, methods=["GET"]),
        Route("/", query, methods=["GET", "POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _answer(engine: Engine, request: Request, body: bytes, query_id: str) -> Response:
    body = decompress(body, request.headers.get("content-encoding"))
    if is_set(request.query_params.get("decompress")):
        body = from_blocks(body)
    fields, body = read_form(request.headers.get("content-type", ""), body)
    url = {**dict(request.query_params), **fields}
    url.setdefault("database", request.headers.get("x-clickhouse-database", ""))
    task = read_task(url, body, request.headers.get("x-clickhouse-format"), request.method == "GET")
    answer = engine.run(task)
    headers = answer_headers(answer, query_id, engine.time_zone)
    content, encoding = to_blocks(answer.body) if is_set(url.get("compress")) else answer.body, None
    if content and is_set(url.get("enable_http_compression")):
        content, encoding = compress(content, request.headers.get("accept-encoding", ""))
    if encoding:
        headers["Content-Encoding"] = encoding
    return Response(content, headers=headers)


def refusal(error: EngineError, engine: Engine, query_id: str) -> Response:
    """ClickHouse's error as ClickHouse sends it: code in a header, text and version in the body."""
    text = f"{error} (version {engine.version})\n"
    headers = {
        "X-ClickHouse-Exception-Code": str(error.code),
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Timezone": engine.time_zone,
    }
    return Response(text, status_code=error_status(error.code), headers=headers, media_type="text/plain")


def check_access(request: Request, password: str | None) -> None:
    """Refuses a wrong password; and, whatever the password, what a foreign web page makes a browser send."""
    origin = request.headers.get("origin")
    host = urlsplit("//" + request.headers.get("host", "")).hostname
    if host not in _HERE or (origin and urlsplit(origin).hostname not in _HERE):
        raise EngineError(497, "Code: 497. DB::Exception: Only programs of this machine may ask. (ACCESS_DENIED)")
    if password is not None and not hmac.compare_digest(given_password(request).encode(), password.encode()):
        raise EngineError(
            516, "Code: 516. DB::Exception: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)"
        )


def given_password(request: Request) -> str:
    """The password of a request, from wherever ClickHouse's clients put it."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return request.headers.get("x-clickhouse-key") or request.query_params.get("password", "")


def serve(data_dir: Path, port: int) -> None:
    """Serves until SIGTERM. Raises LocalPartError when the port or the directory is somebody else's."""
    if not port_free(port):
        raise LocalPartError(f"Port {port} on {LOOPBACK} is in use: stop what listens there, or choose another.")
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        owned = FileLock(data_dir / "owner.lock").acquire(timeout=0)
    except Timeout:
        raise LocalPartError(f"{data_dir} is served by another process: stop it, or name another.") from None
    with owned:
        app = build_app(Engine(data_dir / "engine"), os.environ.get(PASSWORD_VARIABLE) or None)
        quiet = {"log_level": "warning", "access_log": False, "server_header": False}
        uvicorn.run(app, host=LOOPBACK, port=port, timeout_graceful_shutdown=5, **quiet)  # type: ignore[arg-type]


def main() -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="ClickHouse's engine behind its HTTP protocol, for this machine.")
    parser.add_argument("--data", type=Path, required=True, help="the directory that holds the tables")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on, on 127.0.0.1")
    options = parser.parse_args()
    try:
        serve(options.data, options.port)
    except LocalPartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
