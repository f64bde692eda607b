"""The gateway behind the real Ray Serve proxy: who comes in, and what endless requests leave in memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import openai
import psutil
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from deploy.bases.add import SHIPPED
from deploy.local.ports import free_ports
from schemas.events import BaseRegistered
from serving.metrics import ReplicaMetrics
from serving.recorder import PRODUCER, Recorder
from serving.requests import MAX_BODY_BYTES
from streams import kafka
from streams.artifacts import ArtifactStore
from tests.broker import fresh, fresh_topic, publish, since, until
from tests.ids import keep
from tests.parts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = "support"
APP = "https://app.example"
QUESTION = [{"role": "user", "content": "what is a list?"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
ENDLESS_BYTES = 2 * 1024**3
ENDLESS_S = 20.0
MOST_GROWTH_BYTES = 200 << 20  # a tenth of what is offered; what Ray's own processes do meanwhile takes half of it
MOST_OF_ONE_BYTES = 64 * 1024**2
ZEROS = bytes(1024 * 1024)


@dataclass(frozen=True)
class Served:
    """One `serve` process as `up` starts it, with a base and no adapter."""

    bootstrap: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, trust_env=False, timeout=60, **more)

    def rss_bytes(self) -> dict[int, int]:
        """By process: this one and all of Ray's below it."""
        main = psutil.Process(self.process.pid)
        found = {}
        for one in (main, *main.children(recursive=True)):
            try:
                found[one.pid] = one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return found


# Ray gives itself 30 s to start, which a busy machine may exceed more than once.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def served(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, base, port = tmp_path_factory.mktemp("serve"), fresh("base"), free_ports(1)[0]
    data = folder / "data"
    keep(data)
    path, digest = ArtifactStore(str(data / "artifacts")).put_folder("bases", SHIPPED["pydoc-4m"])
    event = BaseRegistered(
        model=base, path=path, digest=digest, architecture="LlamaForCausalLM", parameters=4, context_tokens=1024
    )
    publish(kafka_bootstrap, [kafka.out(event, source="register", subject=base)])
    config = folder / "tuneloop.toml"
    config.write_text(
        f'data_dir = "{data}"\nkafka_bootstrap = "{kafka_bootstrap}"\nclickhouse_url = "http://127.0.0.1:1"\n'
        f'http_port = {port}\ncors_origins = ["{APP}"]\nserve_slots = 4\n[models.{MODEL}]\nbase = "{base}"\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TUNELOOP_CONFIG": str(config)}
    said = folder / "out"

    def start() -> Served:
        with said.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "deploy.processes", "serve"], env=environment, cwd=folder, stdout=out, stderr=out
            )
        return Served(kafka_bootstrap, port, process)

    one = start()

    def ready() -> bool:
        nonlocal one
        if one.process.poll() is not None:  # Ray gives up where a busy machine takes long; the supervisor starts it anew
            assert "timed out during startup" in said.read_text(), said.read_text()[-3000:]
            one = start()
        try:
            return one.ask("GET", "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, 400, "the gateway to be ready")
        yield one
    finally:
        one.process.send_signal(signal.SIGTERM)
        try:
            one.process.wait(30)
        except subprocess.TimeoutExpired:
            one.process.kill()


def error_of(reply: httpx.Response, status: int, code: str) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == code
    return str(error["message"])


def test_openais_client_is_answered_and_the_answer_is_on_record(served: Served) -> None:
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="any", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as client:
        done = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]
        parts = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4, stream=True))  # type: ignore[call-overload]
    assert "".join(part.choices[0].delta.content or "" for part in parts) == done.choices[0].message.content
    said = served.ask("POST", "/v1/feedback", json={"inference_id": done.id, "metric_name": "correct", "value": True})
    assert said.status_code == 200, said.text
    keys = {record.key for record in since(served.bootstrap, "usage.inferences")}
    assert {done.id.encode(), parts[0].id.encode()} <= keys


def test_a_streams_client_that_leaves_early_is_on_record_too(served: Served) -> None:
    body = {**CHAT, "stream": True, "max_tokens": 64}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, trust_env=False, timeout=60) as reply:
        lines = (line for line in reply.iter_lines() if '"content"' in line and '"content": ""' not in line)
        heard = json.loads(next(lines).removeprefix("data: "))

    def record() -> dict[str, Any] | None:
        found = [r.value for r in since(served.bootstrap, "usage.inferences") if r.key == heard["id"].encode()]
        return json.loads(found[0] or b"") if found else None

    event = until(record, 20, "what the client had of the answer")
    assert event["answer"].startswith(heard["choices"][0]["delta"]["content"])
    assert event["input_tokens"] > 0 and event["output_tokens"] > 0


def test_a_page_elsewhere_and_a_name_that_points_here_stay_outside(served: Served) -> None:
    page = {"Origin": "https://evil.example"}
    said = error_of(served.ask("POST", "/v1/chat/completions", json=CHAT, headers=page), 403, "origin_not_allowed")
    assert 'cors_origins = ["https://evil.example"]' in said
    rebound = served.ask("POST", "/v1/chat/completions", json=CHAT, headers={"Host": f"evil.example:{served.port}"})
    assert 'allowed_hosts = ["evil.example"]' in error_of(rebound, 403, "host_not_allowed")
    form = served.ask("POST", "/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"})
    assert "Content-Type" in error_of(form, 415, "unsupported_media_type")
    assert served.ask("GET", "/metrics", headers={"Host": "scraper.example", **page}).status_code == 200


def test_an_allowed_page_is_let_in_by_name_and_its_preflight_is_answered(served: Served) -> None:
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    preflight = served.ask("OPTIONS", "/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200 and preflight.headers["Access-Control-Allow-Origin"] == APP
    assert "x-stainless-lang" in preflight.headers["Access-Control-Allow-Headers"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"] and "Origin" in preflight.headers["Vary"]
    page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    done = served.ask("POST", "/v1/chat/completions", json=CHAT, headers=page)
    assert done.status_code == 200 and done.headers["Access-Control-Allow-Origin"] == APP
    assert "Origin" in done.headers["Vary"]
    other = served.ask("OPTIONS", "/v1/chat/completions", headers={**asked, "Origin": "https://app.example.evil"})
    assert other.status_code == 403 and "Access-Control-Allow-Origin" not in other.headers


def test_a_body_over_the_bound_is_refused_with_a_reason_that_can_be_read(served: Served) -> None:
    body = b'{"x": "' + b"a" * (2 * MAX_BODY_BYTES) + b'"}'
    typed = {"Content-Type": "application/json"}
    whole = served.ask("POST", "/v1/chat/completions", content=body, headers=typed)
    error_of(whole, 413, "request_too_large")
    chunked = served.ask("POST", "/v1/chat/completions", content=iter([body]), headers=typed)
    error_of(chunked, 413, "request_too_large")


def a_length(send: Callable[[bytes], None]) -> None:
    send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Content-Length: %d\r\n\r\n" % (10 * 1024**3))  # fmt: skip
    while True:
        send(ZEROS)


def chunks(send: Callable[[bytes], None]) -> None:
    send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    while True:
        send(b"%x\r\n%b\r\n" % (len(ZEROS), ZEROS))


def a_get_with_a_body(send: Callable[[bytes], None]) -> None:
    send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"%x\r\n%b\r\n" % (len(ZEROS), ZEROS))


def a_header(send: Callable[[bytes], None]) -> None:
    send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
    while True:
        send(b"a" * len(ZEROS))


def headers(send: Callable[[bytes], None]) -> None:
    send(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
    while True:
        send(b"X-Another: one\r\n" * 65_536)


def a_foreign_path(send: Callable[[bytes], None]) -> None:
    send(b"POST /-/routes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
    while True:
        send(b"%x\r\n%b\r\n" % (len(ZEROS), ZEROS))


@contextmanager
def watched(served: Served) -> Iterator[None]:
    """No process may be larger, at any moment within, than before by more than the bound."""
    before, most = served.rss_bytes(), {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            for pid, rss in served.rss_bytes().items():
                most[pid] = max(most.get(pid, 0), rss)

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
    grown = {pid: rss - before.get(pid, rss) for pid, rss in most.items()}
    assert max(grown.values()) < MOST_GROWTH_BYTES, grown


@pytest.mark.parametrize("endless", [a_length, chunks, a_get_with_a_body, a_header, headers, a_foreign_path])
def test_what_never_ends_is_cut_off_and_leaves_memory_flat(
    served: Served, endless: Callable[[Callable[[bytes], None]], None]
) -> None:
    sent, deadline = 0, time.monotonic() + ENDLESS_S
    with watched(served):
        while sent < ENDLESS_BYTES and time.monotonic() < deadline:  # one connection after another, each cut off early
            sent += sent_until_cut_off(served.port, endless)
    assert sent > ENDLESS_BYTES / 20, "hardly anything was sent: this shows nothing"
    assert served.ask("POST", "/v1/chat/completions", json=CHAT).status_code == 200


def sent_until_cut_off(port: int, endless: Callable[[Callable[[bytes], None]], None]) -> int:
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:

        def send(data: bytes) -> None:
            nonlocal sent
            for start in range(0, len(data), 65_536):
                connection.sendall(data[start : start + 65_536])
                sent += len(data[start : start + 65_536])
            assert sent < MOST_OF_ONE_BYTES, "one connection was read without end"

        with contextlib.suppress(ConnectionError):
            endless(send)
    return sent


def test_many_bodies_at_once_are_held_within_one_bound(served: Served) -> None:
    """1,000 connections of 700 kB that wait for their last byte: 700 MB if all were kept."""
    head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 700000\r\n\r\n")  # fmt: skip
    held: list[socket.socket] = []
    try:
        with watched(served):
            for _ in range(1000):
                try:
                    connection = socket.create_connection(("127.0.0.1", served.port), timeout=10)
                    held.append(connection)
                    connection.sendall(head + b" " * 699_999)
                except OSError:  # refused and cut off
                    continue
            until(lambda: sum(map(still_open, held)) < 100, 20, "most of them to be turned away")
    finally:
        for one in held:
            one.close()
    until(lambda: served.ask("POST", "/v1/chat/completions", json=CHAT).status_code == 200, 10, "room for others")


def still_open(connection: socket.socket) -> bool:
    """Whether the gateway still waits for more of this request."""
    connection.setblocking(False)
    try:
        connection.recv(64)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_an_event_that_the_broker_refuses_is_kept_until_it_is_taken(kafka_bootstrap: str) -> None:
    topic = fresh_topic(kafka_bootstrap, "small", **{"max.message.bytes": "500"})
    metrics = ReplicaMetrics("r")
    recorder = Recorder(lambda: kafka.producer(kafka_bootstrap, **PRODUCER), metrics)

    def figure(name: str) -> float:
        return metrics.registry.get_sample_value(f"tuneloop_events_{name}_total", {"replica": "r", "topic": topic}) or 0.0

    def polled(holds: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: (recorder.poll(0.05), holds())[1]

    words = os.urandom(2_000)
    recorder.record(kafka.Out(topic, b"small", b"fits"))
    recorder.record(kafka.Out(topic, b"large", words))
    until(polled(lambda: figure("refused") >= 1), 30, "the broker to refuse it")
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[
        ConfigEntry("max.message.bytes", "5000", incremental_operation=AlterConfigOpType.SET)
    ])  # fmt: skip
    admin = kafka.admin(kafka_bootstrap)
    admin.incremental_alter_configs([resource])[resource].result(30)
    waiting = partial(metrics.registry.get_sample_value, "tuneloop_unsent_records", {"replica": "r"})
    until(polled(lambda: waiting() == 0), 30, "the broker to take it")
    assert {record.value for record in since(kafka_bootstrap, topic)} == {b"fits", words}
    assert figure("lost") == 0
