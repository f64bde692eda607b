"""The doors in Ray Serve's HTTP proxy: it passes bodies on to a replica unread and unbounded, so they stand before it.

Ray 2.60 takes middlewares for its proxy from a function that an environment variable names, and calls it in the proxy's
own process, which knows nothing but its environment: `environment` goes in before Ray starts, `middlewares` comes out.
Whether they really stand there `check` asks from outside, once the proxy answers.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
from typing import TYPE_CHECKING

import msgspec

from serving.doors import DoorPolicy, Doors

if TYPE_CHECKING:
    from starlette.middleware import Middleware

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
VARIABLE = "TUNELOOP_DOORS"
# With these a client would set how long Ray waits for it, and where its request goes.
RAYS_HEADERS = ("x_request_timeout_seconds", "x_request_disconnect_disabled", "serve_multiplexed_model_id")
STANDS_WITHIN_S = 30.0
MOST_CONNECTIONS = 1_000
HEAD_TIMEOUT_S = 30.0


def environment(policy: DoorPolicy) -> dict[str, str]:
    """What has to stand in the environment before Ray is started."""
    policy = msgspec.structs.replace(policy, dropped_headers=RAYS_HEADERS)
    return {CALLBACK: "serving.proxy:middlewares", VARIABLE: msgspec.json.encode(policy).decode()}


def middlewares() -> list[Middleware]:
    """Called by Ray in its proxy's process. Raises KeyError where there is no policy: no proxy, not an open one."""
    from starlette.middleware import Middleware

    _bound_heads()
    return [Middleware(Doors, msgspec.json.decode(os.environ[VARIABLE], type=DoorPolicy))]


def _bound_heads() -> None:
    """Have uvicorn read with h11, which refuses a head of over 16 KB: httptools keeps one of any size in memory.

    And have it end what sends no head in time, and take so many connections alone: it has neither bound of its own.
    """
    from uvicorn.protocols.http import auto
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MOST_CONNECTIONS:
                transport.abort()
            else:
                self.loop.call_later(HEAD_TIMEOUT_S, self._end_without_head)

        def _end_without_head(self) -> None:
            if self.cycle is None and self.transport.get_protocol() is self:  # no request, no WebSocket either
                self.transport.abort()

    auto.AutoHTTPProtocol = BoundedProtocol


def check(host: str, port: int) -> None:
    """Raises RuntimeError where a name that is never allowed gets in."""
    deadline = time.monotonic() + STANDS_WITHIN_S
    while True:
        try:
            status, code = _knock(host, port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing answers on {host}:{port} within {STANDS_WITHIN_S:.0f} s") from error
            time.sleep(0.1)
        else:
            break
    if (status, code) != (403, "host_not_allowed"):
        raise RuntimeError(
            f"Ray's proxy on {host}:{port} runs without the doors (status {status}): is {CALLBACK} set for its workers?"
        )


def _knock(host: str, port: int) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/v1/models", headers={"Host": "doors.invalid"})
        reply = connection.getresponse()
        try:
            return reply.status, json.loads(reply.read())["error"]["code"]
        except (ValueError, TypeError, KeyError):
            return reply.status, ""
    finally:
        connection.close()
