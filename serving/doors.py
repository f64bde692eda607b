"""Who may come in over HTTP, and how much of what is sent is read: for whatever listens here.

A web page can send requests to every port of the machine it is shown on, and by DNS rebinding even as a page of the
same origin. So Host must be an address (rebinding needs a name), a loopback name or an allowed one; a request that a
browser says comes from elsewhere is refused; a body is JSON by its Content-Type, which no page may say without being
asked first (a CORS preflight). `refusal` decides, from plain values; `serving.body` bounds what is read; `Doors` puts
both before an ASGI application. It is about web pages and replaces no key: a program may say of itself what it likes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from serving.body import Bodies
from serving.errors import ApiError, too_large

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ("/healthz", "/readyz", "/metrics")  # asked by probes and scrapers, by any name; no person's word there
LOOPBACK_NAMES = ("localhost",)
METHODS = ("DELETE", "GET", "POST")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_NAME = r"[a-z0-9](?:[a-z0-9_.-]{0,251}[a-z0-9])?"
_HOST = re.compile(rf"({_NAME}|\[[0-9a-f:.]+\])(?::(\d{{1,5}}))?")
_ORIGIN = re.compile(rf"(https?)://({_NAME}|\[[0-9a-f:.]+\])(?::(\d{{1,5}}))?")
# Where these come twice, two readers may each believe another one.
_ONCE = ("host", "origin", "sec-fetch-site", "content-type", "content-length", "transfer-encoding")


class DoorPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Who is let in. Raises ValueError, naming the setting, for a name or an origin that no browser would send."""

    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ("application/json",)
    websockets: bool = False
    max_body_bytes: int = 768 * 1024
    max_held_bytes: int = 32 * 1024 * 1024  # of all bodies together that were read and not yet answered
    max_requests: int = 256  # under way at once
    body_timeout_s: float = 30.0
    dropped_headers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.allowed_hosts:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"allowed_hosts: {name!r} is no host name; write it as `name.example`, without a port")
        for origin in self.cors_origins:
            if normal_origin(origin) != origin:
                meant = normal_origin(origin.lower().rstrip("/")) or "https://app.example"
                raise ValueError(f"cors_origins: {origin!r} is no exact origin; write it as `{meant}`")


def normal_origin(text: str) -> str:
    """An origin as browsers write it, without its scheme's own port; "" for what is none."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return ""
    scheme, host, port = found.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS[scheme] else "")


def refusal(
    policy: DoorPolicy, method: str, path: str, scheme: str, headers: Sequence[tuple[bytes, bytes]]
) -> ApiError | None:
    """Why a request with this head is not let in; None where it is. `headers` have lower-case names, as in ASGI."""
    said: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in said and name in _ONCE:
            return ApiError(400, f"the header {name} is there twice: send it once", name, "repeated_header")
        said[name] = value.decode("latin-1").strip()
    if path in OPEN_PATHS and method in ("GET", "HEAD"):
        return None
    return _host_refusal(policy, said) or _origin_refusal(policy, method, scheme, said)


def _host_refusal(policy: DoorPolicy, said: dict[str, str]) -> ApiError | None:
    host = said.get("host", "").lower()
    found = _HOST.fullmatch(host)
    name = found.group(1) if found else ""
    if name in LOOPBACK_NAMES or name in policy.allowed_hosts or _is_address(name):
        return None
    wanted = name or "name.example"
    return ApiError(
        403, f"Host is {name or 'missing or malformed'}, neither an address nor an allowed name; if it is yours, "
        f'add this line to tuneloop.toml: allowed_hosts = ["{wanted}"]', "Host", "host_not_allowed",
    )  # fmt: skip


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return False
    return True


def _origin_refusal(policy: DoorPolicy, method: str, scheme: str, said: dict[str, str]) -> ApiError | None:
    """By what only browsers send, and no page can change: Origin and Sec-Fetch-*."""
    origin, site = said.get("origin"), said.get("sec-fetch-site", "none")
    if origin in policy.cors_origins:
        return None
    if site in ("none", "same-origin") and origin in (None, _own_origin(scheme, said["host"])):
        return None
    navigates = (said.get("sec-fetch-mode"), said.get("sec-fetch-dest")) == ("navigate", "document")
    if navigates and origin is None and method == "GET":
        return None  # a link that somebody followed: the page that has it does not see the answer
    page = normal_origin(origin or "")
    return ApiError(
        403, f"a web page of {page or 'another site'} may not ask here; if it is yours, add this line to "
        f'tuneloop.toml: cors_origins = ["{page or "https://app.example"}"]', "Origin", "origin_not_allowed",
    )  # fmt: skip


def _own_origin(scheme: str, host: str) -> str:
    return normal_origin(f"{ {'ws': 'http', 'wss': 'https'}.get(scheme, scheme)}://{host.lower()}")


def body_refusal(policy: DoorPolicy, method: str, headers: Sequence[tuple[bytes, bytes]]) -> ApiError | None:
    """Why the body that this head announces is not read; None where it is, or where none is announced."""
    said = {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in headers}
    length, kind = said.get("content-length", "0"), said.get("content-type")
    if not (length.isascii() and length.isdigit()):
        return ApiError(400, "Content-Length is no number of bytes", "Content-Length", "invalid_header")
    has_body = length.lstrip("0") != "" or "transfer-encoding" in said
    if method not in ("GET", "HEAD", "OPTIONS") and (kind is not None or has_body):
        essence = (kind or "").partition(";")[0].strip().lower()
        if essence not in policy.content_types:
            return ApiError(
                415, f"the header Content-Type is {_shown(kind)}; send `Content-Type: {policy.content_types[0]}`",
                "Content-Type", "unsupported_media_type",
            )  # fmt: skip
    if len(length) > 18 or int(length) > policy.max_body_bytes:
        return too_large(policy.max_body_bytes)
    return None


def _shown(kind: str | None) -> str:
    return "missing" if kind is None else repr(kind[:64])


class Doors:
    """The ASGI middleware: who comes in, then what is read of it, then `app`."""

    def __init__(self, app: ASGIApp, policy: DoorPolicy) -> None:
        from starlette.middleware.cors import CORSMiddleware

        self._policy, self._app, self._bodies = policy, app, Bodies(policy)
        self._inner: Any = self._read
        if policy.cors_origins:
            self._inner = CORSMiddleware(
                self._read, policy.cors_origins, METHODS, ["*"], allow_private_network=True,
                expose_headers=["Retry-After", "X-Request-ID"],
            )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        policy, is_socket = self._policy, scope["type"] == "websocket"
        method = "GET" if is_socket else scope["method"]
        # A socket is no page: a probe's path opens none, and nobody navigates to it.
        path = "" if is_socket else scope["path"]
        error = refusal(policy, method, path, scope["scheme"], scope["headers"])
        if is_socket:
            if error is not None or not policy.websockets:
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        if error is not None:
            await self._bodies.refuse(error, scope, receive, send)
            return
        await self._inner(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = body_refusal(self._policy, scope["method"], scope["headers"])
        if error is not None:
            await self._bodies.refuse(error, scope, receive, send)
            return
        if dropped := self._policy.dropped_headers:
            kept = [pair for pair in scope["headers"] if pair[0].decode("latin-1").replace("-", "_") not in dropped]
            scope = {**scope, "headers": kept}
        await self._bodies.read(self._app, scope, receive, send, probe=scope["path"] in OPEN_PATHS)
