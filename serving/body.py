"""How much of a request is read: its body is gathered here, bounded in size and time, before anything behind it runs.

What is behind gets the whole body at once. A body that never ends, or comes a byte a minute, holds nothing but its own
connection, and all bodies together never hold more than the policy says.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from serving.errors import ApiError, too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from serving.doors import DoorPolicy

# Of a body that is refused so much is still taken: a client that is cut off while it writes may never read why.
DRAINED_BYTES = 4 * 1024 * 1024
DRAIN_S = 2.0
MOST_DRAINING = 32
# Beyond the bound, for probes and scrapers: a gateway that is full is alive.
FOR_PROBES = 32


class Bodies:
    """Counts what was read and not answered yet. All methods run on one asyncio loop."""

    def __init__(self, policy: DoorPolicy) -> None:
        self._policy = policy
        self._held_bytes = self._running = self._draining = 0

    async def read(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, probe: bool = False) -> None:
        """Gather the body, then run `app` with it; 408, 413 or 429 where a bound is passed."""
        if self._running >= self._policy.max_requests + (FOR_PROBES if probe else 0):
            await self.refuse(_busy("requests are under way"), scope, receive, send)
            return
        body = bytearray()
        self._running += 1
        try:
            error, is_more = await self._gather(body, receive)
            if error is None:
                await app(scope, _replayed(bytes(body), receive), send)
            else:
                await self.refuse(error, scope, receive, send, is_more)
        except ConnectionAbortedError:  # whoever asked is gone
            return
        finally:
            self._running -= 1
            self._held_bytes -= len(body)

    async def _gather(self, body: bytearray, receive: Receive) -> tuple[ApiError | None, bool]:
        """Fill `body`; the error where a bound is passed, and whether more of it is to come."""
        policy, is_more = self._policy, True
        try:
            async with asyncio.timeout(policy.body_timeout_s):
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionAbortedError
                    part, is_more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(part) > policy.max_body_bytes:
                        return too_large(policy.max_body_bytes), is_more
                    if self._held_bytes + len(part) > policy.max_held_bytes:
                        return _busy("bodies are held"), is_more
                    body += part
                    self._held_bytes += len(part)
        except TimeoutError:
            said = f"the body was not there within {policy.body_timeout_s:g} s: send it at once"
            return ApiError(408, said, None, "body_timeout"), True
        return None, False

    async def refuse(
        self, error: ApiError, scope: Scope, receive: Receive, send: Send, is_more: bool = True
    ) -> None:
        """Send the error at once, take a little of what is still coming, and end the connection."""
        content = json.dumps(error.body(), ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
        headers |= {name.lower(): value for name, value in error.headers().items()}
        await send({
            "type": "http.response.start", "status": error.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        })  # fmt: skip
        await send({"type": "http.response.body", "body": content, "more_body": True})
        asks_first = any(name == b"expect" for name, _ in scope["headers"])  # to read would be to say: go on
        if is_more and not asks_first and self._draining < MOST_DRAINING:
            self._draining += 1
            try:
                await _drain(receive)
            finally:
                self._draining -= 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _busy(what: str) -> ApiError:
    return ApiError(429, f"too many {what}: try again", None, "overloaded", retry_after_s=1)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out the gathered body first, then whatever the connection says."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


async def _drain(receive: Receive) -> None:
    taken = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while taken < DRAINED_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
