"""A request to an ASGI application, byte for byte as a server would hand it over, and what came back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Head = list[tuple[bytes, bytes]]


@dataclass
class Reply:
    """What the application sent; `taken_bytes` is how much of the body it asked for."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    taken_bytes: int = 0

    @property
    def error(self) -> dict[str, Any]:
        found = json.loads(self.body)["error"]
        assert found.keys() == {"message", "type", "param", "code"} and found["message"]
        return dict(found)


def head(**named: str) -> Head:
    """Headers as ASGI has them: `content_type` is `content-type`."""
    return [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()]


async def request(
    app: Callable[..., Any], method: str, path: str, headers: Head, parts: Iterable[bytes] = (b"",),
    pause_s: float = 0.0, kind: str = "http",
) -> Reply:  # fmt: skip
    """Send one request whose body comes in `parts`, each after a pause; after the last the client waits."""
    reply, left = Reply(), iter(parts)
    waiting: list[bytes] = [next(left, b"")]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        if not waiting:
            await asyncio.sleep(3600)
        part = waiting.pop()
        following = next(left, None)
        if following is not None:
            waiting.append(following)
        reply.taken_bytes += len(part)
        return {"type": "http.request", "body": part, "more_body": following is not None}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            reply.body += message.get("body", b"")
        elif message["type"] == "websocket.close":
            reply.status = 403

    scope = {"type": kind, "method": method, "path": path, "scheme": "ws" if kind == "websocket" else "http",
             "headers": headers, "query_string": b""}  # fmt: skip
    await app(scope, receive, send)
    return reply
