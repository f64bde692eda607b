"""ClickHouse on this machine: `python -m deploy.local.clickhouse --data DIR --port P --passwords DIR`, loopback only.

The engine itself (chdb) answers ClickHouse's HTTP protocol from one process that owns the data. Driven by tests
with an unchanged clickhouse-connect, ClickHouse's own JDBC driver and curl. Results are built in memory before they
are sent; there are no external tables and no native TCP protocol.

Two users: `tuneloop` writes, `analyst` reads within bounds (TUNELOOP_QUERY_SECONDS, TUNELOOP_QUERY_MEMORY_MB). Their
passwords are files of the folder `--passwords`. A request is one statement, of names on a list or in
TUNELOOP_ALLOW_SOURCES. Who asks is known before a body is read; what a web page makes a browser send is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
import uvicorn
from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.local.clickhouse_access import USERS, WRITER, check_access, read_passwords
from deploy.local.clickhouse_blocks import from_blocks, to_blocks
from deploy.local.clickhouse_engine import Engine, Limits
from deploy.local.clickhouse_error import EngineError, too_large
from deploy.local.clickhouse_http import (
    MAX_BODY_BYTES,
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

PARALLEL_QUERIES = 8  # of each user: readers do not keep the writers waiting
# ClickHouse takes a URL of 1 MiB, in which clients send parameters.
MAX_HEAD_BYTES = 2 * 2**20


def build_app(engine: Engine, passwords: Mapping[str, str], port: int) -> Starlette:
    """The HTTP application over an open engine; closes the engine when it shuts down."""

    async def ping(request: Request) -> Response:
        return Response("Ok.\n", media_type="text/plain")

    async def query(request: Request) -> Response:
        if request.method == "GET" and not request.query_params:
            return await ping(request)
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        try:
            user = check_access(request.headers, request.query_params, port, passwords)
            async with slots[user]:
                body = await read_body(request)
                answer = partial(_answer, engine, request, user, body, query_id)
                return await anyio.to_thread.run_sync(answer, limiter=threads)
        except EngineError as error:
            return refusal(error, engine, query_id)

    @asynccontextmanager
    async def lifespan(app: Starlette):  # type: ignore[no-untyped-def]
        yield
        engine.close()

    slots = {user: anyio.Semaphore(PARALLEL_QUERIES) for user in USERS}
    threads = anyio.CapacityLimiter(PARALLEL_QUERIES * len(USERS))
    routes = [
        Route("/ping", ping, methods=["GET", "HEAD"]),
        Route("/replicas_status", ping, methods=["GET"]),
        Route("/", query, methods=["GET", "POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def read_body(request: Request) -> bytes:
    """The body, up to MAX_BODY_BYTES. Raises EngineError for a larger one without reading on."""
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > MAX_BODY_BYTES:
        raise too_large(f"A body may have {MAX_BODY_BYTES} bytes: send the rows in several requests")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise too_large(f"A body may have {MAX_BODY_BYTES} bytes: send the rows in several requests")
    return bytes(body)


def _answer(engine: Engine, request: Request, user: str, body: bytes, query_id: str) -> Response:
    body = decompress(body, request.headers.get("content-encoding"))
    if is_set(request.query_params.get("decompress")):
        body = from_blocks(body)
    fields, body = read_form(request.headers.get("content-type", ""), body)
    url = {**dict(request.query_params), **fields}
    url.setdefault("database", request.headers.get("x-clickhouse-database", ""))
    reads_only = user != WRITER or request.method != "POST"
    task = read_task(url, body, request.headers.get("x-clickhouse-format"), reads_only)
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
    if error.code in (307, 497, 516):
        headers["Connection"] = "close"  # the body may not have been read, and is not going to be
    return Response(text, status_code=error_status(error.code), headers=headers, media_type="text/plain")


def serve(data_dir: Path, port: int, passwords: Path) -> None:
    """Serves until SIGTERM. Raises LocalPartError without passwords, or where port or directory are somebody else's."""
    known = read_passwords(passwords)
    if not port_free(port):
        raise LocalPartError(f"Port {port} on {LOOPBACK} is in use: stop what listens there, or choose another.")
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        owned = FileLock(data_dir / "owner.lock").acquire(timeout=0)
    except Timeout:
        raise LocalPartError(f"{data_dir} is served by another process: stop it, or name another.") from None
    with owned:
        app = build_app(Engine(data_dir / "engine", limits(os.environ)), known, port)
        # h11, for it alone bounds what comes before a body.
        bounds = {"http": "h11", "h11_max_incomplete_event_size": MAX_HEAD_BYTES, "timeout_graceful_shutdown": 5}
        quiet = {"log_level": "warning", "access_log": False, "server_header": False}
        uvicorn.run(app, host=LOOPBACK, port=port, **bounds, **quiet)  # type: ignore[arg-type]


def limits(environment: Mapping[str, str]) -> Limits:
    """What readers may take and which names are allowed beside the lists, as `up` hands it over."""
    names = environment.get("TUNELOOP_ALLOW_SOURCES", "").lower().split(",")
    return Limits(
        seconds=float(environment.get("TUNELOOP_QUERY_SECONDS") or Limits.seconds),
        memory_mb=int(environment.get("TUNELOOP_QUERY_MEMORY_MB") or Limits.memory_mb),
        sources=frozenset(name.strip() for name in names if name.strip()),
    )


def main() -> int:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description="ClickHouse's engine behind its HTTP protocol, for this machine.")
    parser.add_argument("--data", type=Path, required=True, help="the directory that holds the tables")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on, on 127.0.0.1")
    parser.add_argument("--passwords", type=Path, required=True, help="the folder with a file for each user")
    options = parser.parse_args()
    try:
        serve(options.data, options.port, options.passwords)
    except LocalPartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
