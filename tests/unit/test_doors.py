"""Who is let in and who is not, decided from a request's head; and what the policy itself refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec
import pytest

from deploy.local.ports import free_ports
from serving import proxy
from serving.doors import DoorPolicy, Doors, body_refusal, normal_origin, refusal
from tests.asgi import Reply, head, request

APP = "https://app.example"
POLICY = DoorPolicy(allowed_hosts=("tuneloop.example",), cors_origins=(APP, "http://localhost:3000"), max_body_bytes=1000)
JSON = {"content_type": "application/json"}
OWN = {"host": "127.0.0.1:8000"}
MARKED = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors", "sec_fetch_dest": "empty"}
NAVIGATING = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}


def code(method: str, headers: dict[str, str], path: str = "/v1/models") -> str | None:
    error = refusal(POLICY, method, path, "http", head(**headers))
    return error.code if error else None


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000", "10.1.2.3", "[fe80::1]", "tuneloop.example:443",
     "Tuneloop.Example"],
)  # fmt: skip
def test_an_address_a_loopback_name_and_an_allowed_name_are_let_in(host: str) -> None:
    assert code("POST", {"host": host}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl, an SDK
        {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},  # typed in
        {"sec_fetch_site": "same-origin"},
        {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": APP, **MARKED},
        {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
    ],
)
def test_programs_its_own_pages_and_allowed_ones_are_let_in(headers: dict[str, str]) -> None:
    assert code("POST", {**OWN, **headers}) is None


def test_a_followed_link_shows_a_page_and_does_nothing_else() -> None:
    assert code("GET", {**OWN, **NAVIGATING}) is None
    assert code("POST", {**OWN, **NAVIGATING}) == "origin_not_allowed"
    assert code("GET", {**OWN, **NAVIGATING, "sec_fetch_dest": "iframe"}) == "origin_not_allowed"
    assert code("GET", {**OWN, **NAVIGATING, "host": "evil.example"}) == "host_not_allowed"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_are_asked_nothing(path: str) -> None:
    foreign = {"host": "any.example", "origin": "https://evil.example", "sec_fetch_site": "cross-site"}
    assert code("GET", foreign, path) is None and code("HEAD", foreign, path) is None
    assert code("POST", foreign, path) == "host_not_allowed"
    assert code("GET", foreign, path + "/") == "host_not_allowed"


def test_a_refusal_holds_the_line_to_add() -> None:
    error = refusal(POLICY, "POST", "/v1/x", "http", head(host="gpu-box:8000"))
    assert error and error.status == 403 and 'allowed_hosts = ["gpu-box"]' in error.message
    assert DoorPolicy(allowed_hosts=("gpu-box",))
    error = refusal(POLICY, "POST", "/v1/x", "http", head(**OWN, origin="https://b.example:443", **MARKED))
    assert error and error.status == 403 and 'cors_origins = ["https://b.example"]' in error.message
    assert DoorPolicy(cors_origins=("https://b.example",))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=x"])
def test_json_is_json(kind: str) -> None:
    assert body_refusal(POLICY, "POST", head(content_length="10", content_type=kind)) is None


def test_what_has_no_body_needs_no_type() -> None:
    assert body_refusal(POLICY, "POST", head(content_length="0")) is None
    assert body_refusal(POLICY, "POST", head()) is None
    assert body_refusal(POLICY, "GET", head(content_type="text/plain")) is None


@pytest.mark.parametrize(("length", "status"), [("1000", None), ("1001", 413), ("9" * 18, 413), ("9" * 30, 413), ("x", 400),
                                                ("-1", 400), ("1_0", 400), ("", 400), ("٣", 400)])  # fmt: skip
def test_an_announced_length_is_bounded(length: str, status: int | None) -> None:
    headers = [*head(**JSON), (b"content-length", length.encode())]
    error = body_refusal(POLICY, "POST", headers)
    assert (error.status if error else None) == status


def test_an_origin_as_browsers_write_it() -> None:
    assert normal_origin("https://a.b:443") == "https://a.b" and normal_origin("http://a:80") == "http://a"
    assert normal_origin("http://[::1]:3000") == "http://[::1]:3000"
    for text in ("null", "*", "https://a/", "https://a b", "file://x", "https://A", "https://a,https://b", ""):
        assert normal_origin(text) == ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cors_origins": ("*",)}, "cors_origins: '\\*'"),
        ({"cors_origins": ("null",)}, "cors_origins: 'null'"),
        ({"cors_origins": ("https://App.example/",)}, "write it as `https://app.example`"),
        ({"cors_origins": ("https://a.example:443",)}, "write it as `https://a.example`"),
        ({"cors_origins": ("a.example",)}, "cors_origins"),
        ({"allowed_hosts": ("*",)}, "allowed_hosts: '\\*'"),
        ({"allowed_hosts": ("Name.example",)}, "allowed_hosts"),
        ({"allowed_hosts": ("name.example:80",)}, "without a port"),
    ],
)
def test_a_policy_that_lets_in_anybody_or_nobody_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DoorPolicy(**values)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the headers it got and the length of the body."""
    length = len((await receive())["body"])
    names = [name.decode() for name, _ in scope["headers"]]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-names", ",".join(names).encode())]})
    await send({"type": "http.response.body", "body": str(length).encode(), "more_body": False})


def ask(policy: DoorPolicy, headers: dict[str, str], method: str = "POST", **more: Any) -> Reply:
    return asyncio.run(request(Doors(echo, policy), method, "/v1/x", head(**{**OWN, **headers}), **more))


def test_the_body_comes_whole_however_it_was_sent() -> None:
    reply = ask(POLICY, JSON, parts=[b"a" * 400, b"", b"b" * 600])
    assert (reply.status, reply.body) == (200, b"1000")
    assert ask(POLICY, JSON, parts=[b"a" * 400, b"b" * 601]).error["code"] == "request_too_large"


def test_headers_that_steer_ray_stop_at_the_door() -> None:
    policy = DoorPolicy(dropped_headers=proxy.RAYS_HEADERS)
    sent = {**JSON, "x_request_timeout_seconds": "-1", "serve_multiplexed_model_id": "x", "x_request_id": "mine"}
    assert ask(policy, sent).headers["x-names"] == "host,content-type,x-request-id"


def test_an_allowed_page_may_read_answers_and_refusals() -> None:
    page = {"origin": APP, **MARKED}
    for reply, status in ((ask(POLICY, {**page, **JSON}), 200), (ask(POLICY, {**page, "content_type": "text/plain"}), 415)):
        assert reply.status == status and reply.headers["access-control-allow-origin"] == APP
        assert "Origin" in reply.headers["vary"]
    assert "access-control-allow-origin" not in ask(POLICY, JSON).headers


def test_a_preflight_names_the_one_origin_that_asks() -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    reply = ask(POLICY, {"origin": APP, **asked}, "OPTIONS")
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == APP
    assert "access-control-allow-credentials" not in reply.headers
    assert "authorization" in reply.headers["access-control-allow-headers"] and "Origin" in reply.headers["vary"]
    foreign = ask(POLICY, {"origin": "https://evil.example", **asked}, "OPTIONS")
    assert foreign.error["code"] == "origin_not_allowed" and "access-control-allow-origin" not in foreign.headers


def test_the_policy_travels_to_the_proxy_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = DoorPolicy(allowed_hosts=("a.example",), cors_origins=(APP,), max_requests=7)
    for name, value in proxy.environment(policy).items():
        monkeypatch.setenv(name, value)
    (middleware,) = proxy.middlewares()
    (arrived,) = middleware.args
    assert middleware.cls is Doors
    assert arrived == msgspec.structs.replace(policy, dropped_headers=proxy.RAYS_HEADERS)
    monkeypatch.delenv(proxy.VARIABLE)
    with pytest.raises(KeyError):
        proxy.middlewares()


@pytest.fixture
def open_house() -> Iterator[HTTPServer]:
    """A server that lets in every name, as Ray's proxy does where the doors are missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_proxy_without_the_doors_is_noticed(open_house: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"without the doors .status 200.*RAY_SERVE_HTTP_PROXY_CALLBACK"):
        proxy.check("127.0.0.1", open_house.server_port)
    monkeypatch.setattr(proxy, "STANDS_WITHIN_S", 0.0)
    with pytest.raises(RuntimeError, match="nothing answers"):
        proxy.check("127.0.0.1", free_ports(1)[0])
