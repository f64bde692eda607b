"""What a web page, a rebound name, a greedy client or a broker that refuses can do to the gateway: nothing."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Producer

from deploy.settings import Settings, SettingsError
from schemas.events import BaseRegistered
from schemas.identity import InferenceIds
from schemas.policy import ModelPolicy
from serving.doors import DoorPolicy, Doors
from serving.engine import Engine, Ticket
from serving.errors import ApiError
from serving.follow import Follower
from serving.gateway import Gateway
from serving.metrics import ReplicaMetrics
from serving.recorder import ATTEMPTS, PRODUCER, Recorder
from serving.requests import MAX_BODY_BYTES, parse_chat, parse_feedback
from streams.artifacts import ArtifactStore
from streams.kafka import Out
from tests.asgi import Reply, head, request
from tests.tiny_model import make_tiny_base

APP = "https://app.example"
TURN = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "support", "messages": [TURN]}
POLICIES = {"support": ModelPolicy(base="tiny", max_prompt_tokens=200, max_tokens=50)}
JSON = {"host": "127.0.0.1:8000", "content_type": "application/json"}
LIMIT = 10_000
BOUNDS = {"max_body_bytes": LIMIT, "max_held_bytes": 3 * LIMIT, "max_requests": 8, "body_timeout_s": 0.3}
NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


class Behind:
    """What stands behind the doors: counts who reached it, and holds them until let go."""

    def __init__(self, holds: bool = False) -> None:
        self.reached, self.let_go = 0, asyncio.Event()
        if not holds:
            self.let_go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached += 1
        await receive()
        await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def knock(headers: Any, method: str = "POST", path: str = "/v1/chat/completions", **more: Any) -> tuple[Reply, int]:
    """The reply, and how often the application behind was reached."""

    async def run() -> tuple[Reply, int]:
        behind = Behind()
        doors = Doors(behind, DoorPolicy(cors_origins=(APP,), **BOUNDS))
        return await request(doors, method, path, headers, **more), behind.reached

    return asyncio.run(run())


# -- a web page, a rebound name -----------------------------------------------------------------------

EVIL = {"origin": "https://evil.example", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
IMAGE = {"host": "127.0.0.1:8000", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}
PAGES: dict[str, tuple[str, dict[str, str], int]] = {
    "fetch without asking": ("POST", {**JSON, "content_type": "text/plain", **EVIL}, 403),
    "fetch of an old browser": ("POST", {**JSON, "origin": "https://evil.example"}, 403),
    "a page of another local port": ("POST", {**JSON, "origin": "http://127.0.0.1:3000", "sec_fetch_site": "same-site"}, 403),
    "another port, Origin alone": ("POST", {**JSON, "origin": "http://127.0.0.1:3000"}, 403),
    "the same port, encrypted": ("POST", {**JSON, "origin": "https://127.0.0.1:8000"}, 403),
    "a sandboxed frame": ("POST", {**JSON, "origin": "null"}, 403),
    "its own origin, from elsewhere": ("POST", {**JSON, "origin": "http://127.0.0.1:8000", "sec_fetch_site": "cross-site"}, 403),
    "begins like an allowed origin": ("POST", {**JSON, "origin": APP + ".evil.example"}, 403),
    "ends like an allowed origin": ("POST", {**JSON, "origin": "https://evilapp.example"}, 403),
    "an allowed origin without encryption": ("POST", {**JSON, "origin": "http://app.example"}, 403),
    "two origins in one": ("POST", {**JSON, "origin": f"{APP}, https://evil.example"}, 403),
    "an image": ("GET", IMAGE, 403),
    "a script": ("GET", {**IMAGE, "sec_fetch_dest": "script"}, 403),
    "a frame": ("GET", {**IMAGE, "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
    "a form that is sent": ("POST", {**IMAGE, "content_type": "application/x-www-form-urlencoded", "sec_fetch_mode": "navigate",
                                     "sec_fetch_dest": "document", "origin": "https://evil.example"}, 403),
    "a Sec-Fetch-Site nobody knows": ("GET", {**IMAGE, "sec_fetch_site": "same-universe"}, 403),
    "a preflight": ("OPTIONS", {**EVIL, "host": "127.0.0.1", "access_control_request_method": "POST"}, 403),
    "a rebound name": ("POST", {**JSON, "host": "evil.example:8000", "origin": "http://evil.example:8000",
                                "sec_fetch_site": "same-origin"}, 403),
    "a rebound name, read": ("GET", {"host": "evil.example:8000", "sec_fetch_site": "same-origin"}, 403),
    "a rebound name, followed": ("GET", {**IMAGE, "host": "evil.example", "sec_fetch_mode": "navigate",
                                         "sec_fetch_dest": "document"}, 403),
    "begins like an address": ("POST", {**JSON, "host": "127.0.0.1.evil.example"}, 403),
    "begins like localhost": ("POST", {**JSON, "host": "localhost.evil.example"}, 403),
    "an address as one number": ("POST", {**JSON, "host": "2130706433"}, 403),
    "somebody at an address": ("POST", {**JSON, "host": "127.0.0.1@evil.example"}, 403),
    "a port that is none": ("POST", {**JSON, "host": "127.0.0.1:80.evil.example"}, 403),
    "no Host": ("POST", {"content_type": "application/json"}, 403),
    "an empty Host": ("POST", {**JSON, "host": ""}, 403),
    "text as JSON": ("POST", {**JSON, "content_type": "text/plain; x=application/json"}, 415),
    "a form as JSON": ("POST", {**JSON, "content_type": "application/x-www-form-urlencoded"}, 415),
    "two types in one": ("POST", {**JSON, "content_type": "text/plain, application/json"}, 415),
    "a body without a type": ("POST", {"host": "127.0.0.1", "content_length": "9"}, 415),
    "chunks without a type": ("POST", {"host": "127.0.0.1", "transfer_encoding": "chunked"}, 415),
    "another method": ("PUT", {"host": "127.0.0.1", "content_length": "9", "content_type": "text/plain"}, 415),
}  # fmt: skip


@pytest.mark.parametrize("case", PAGES)
def test_no_page_reaches_the_gateway(case: str) -> None:
    method, headers, status = PAGES[case]
    reply, reached = knock(head(**headers), method)
    assert (reply.status, reached) == (status, 0)
    said = reply.error["message"]
    assert "Content-Type" in said if status == 415 else "tuneloop.toml" in said
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("name", ["Host", "Origin", "Content-Type", "Content-Length", "Sec-Fetch-Site"])
def test_a_header_that_is_there_twice_is_believed_by_nobody(name: str) -> None:
    first = {**JSON, "origin": APP, "content_length": "2", "sec_fetch_site": "cross-site"}
    reply, reached = knock([*head(**first), (name.lower().encode(), b"evil.example")])
    assert (reply.status, reply.error["code"], reached) == (400, "repeated_header", 0)


@pytest.mark.parametrize("headers", [EVIL, {"origin": "null"}, {"host": "evil.example"}, {}])
def test_no_socket_is_opened(headers: dict[str, str]) -> None:
    reply, reached = knock(head(**{"host": "127.0.0.1", **headers}), "GET", "/metrics", kind="websocket")
    assert (reply.status, reached) == (403, 0)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.7", "fe80::1", "gpu-box", "localhost.example", "127.0.0.1.example", "*"]
)
def test_nothing_listens_beyond_the_loopback_without_being_told_to(host: str) -> None:
    with pytest.raises(SettingsError, match="allow_unauthenticated = true") as said:
        Settings(http_host=host)
    assert "\n" not in str(said.value)
    assert Settings(http_host=host, allow_unauthenticated=True).http_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_the_loopback_needs_no_leave(host: str) -> None:
    assert Settings(http_host=host).http_host == host


# -- what one request may cost ------------------------------------------------------------------------


def endless(part: bytes = b" " * 1000) -> Iterator[bytes]:
    while True:
        yield part


ENDLESS: dict[str, tuple[dict[str, str], dict[str, Any], int]] = {
    "10 GB announced": ({"content_length": str(10 * 1024**3)}, {"parts": endless()}, 413),
    "10 GB announced, asked first": ({"content_length": str(10 * 1024**3), "expect": "100-continue"}, {"parts": endless()}, 413),
    "a length beyond all numbers": ({"content_length": "9" * 4000}, {"parts": endless()}, 413),
    "chunks without end": ({"transfer_encoding": "chunked"}, {"parts": endless()}, 413),
    "more than announced": ({"content_length": "10"}, {"parts": endless()}, 413),
    "one great chunk": ({"transfer_encoding": "chunked"}, {"parts": [b" " * (LIMIT + 1)]}, 413),
    "a byte at a time": ({"content_length": "9000"}, {"parts": endless(b" "), "pause_s": 0.05}, 408),
    "nothing after the head": ({"content_length": "9000"}, {"parts": endless(b""), "pause_s": 0.05}, 408),
    "a negative length": ({"content_length": "-1"}, {"parts": endless()}, 400),
    "a length in words": ({"content_length": "many"}, {"parts": endless()}, 400),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDLESS)
def test_a_body_is_bounded_before_anything_reads_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.body.DRAINED_BYTES", 2 * LIMIT)
    monkeypatch.setattr("serving.body.DRAIN_S", 0.2)
    headers, more, status = ENDLESS[case]
    reply, reached = knock(head(**JSON, **headers), **more)
    assert (reply.status, reached) == (status, 0)
    assert reply.taken_bytes <= 4 * LIMIT and reply.headers["connection"] == "close"
    if "expect" in headers:
        assert reply.taken_bytes == 0


@pytest.mark.parametrize(("path", "method"), [("/v1/models", "GET"), ("/metrics", "GET"), ("/healthz", "HEAD")])
def test_a_body_where_none_belongs_is_bounded_too(path: str, method: str) -> None:
    reply, reached = knock(head(**JSON, transfer_encoding="chunked"), method, path, parts=endless())
    assert (reply.status, reached) == (413, 0)


@pytest.mark.parametrize("n", [9, 20, 100])
def test_more_requests_than_the_bound_are_turned_away_and_probes_are_not(n: int) -> None:
    async def run() -> tuple[list[Reply], Reply, list[Reply]]:
        behind = Behind(holds=True)
        doors = Doors(behind, DoorPolicy(**BOUNDS))
        ask = lambda path="/v1/models": request(doors, "GET", path, head(host="localhost"))  # noqa: E731
        under_way = [asyncio.create_task(ask()) for _ in range(8)]
        await asyncio.sleep(0.01)
        refused = await asyncio.gather(*(ask() for _ in range(n - 8)))
        probe = asyncio.create_task(ask("/healthz"))
        await asyncio.sleep(0.01)
        behind.let_go.set()
        return refused, await probe, await asyncio.gather(*under_way)

    refused, probe, answered = asyncio.run(run())
    assert {reply.status for reply in answered} == {200} and probe.status == 200
    for reply in refused:
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "overloaded", "1")


def test_many_bodies_together_are_bounded_and_let_go_of() -> None:
    async def run() -> tuple[list[int], int]:
        behind = Behind()
        doors = Doors(behind, DoorPolicy(**BOUNDS))
        whole = lambda: request(doors, "POST", "/v1/x", head(**JSON), parts=[b" " * LIMIT, b""], pause_s=0.01)  # noqa: E731
        first = await asyncio.gather(*(whole() for _ in range(6)))
        again = await whole()
        return sorted(reply.status for reply in first), again.status

    first, again = asyncio.run(run())
    assert first == [200, 200, 200, 429, 429, 429] and again == 200


COSTLY: dict[str, tuple[dict[str, Any], str]] = {
    "100,000 stop strings": ({"stop": ["x"] * 100_000}, "stop"),
    "5 stop strings": ({"stop": list("abcde")}, "stop"),
    "a stop string of 65": ({"stop": ["a", "b" * 65]}, "stop[1]"),
    "one stop string of 65": ({"stop": "b" * 65}, "stop"),
    "an empty stop string": ({"stop": [""]}, "stop[0]"),
    "20,000 messages": ({"messages": [{"role": "user", "content": "a"}] * 20_000}, "messages"),
    "a role of 100,000": ({"messages": [{"role": "u" * 100_000, "content": "a"}]}, "messages[0].role"),
    "a model of 100,000": ({"model": "m" * 100_000}, "model"),
    "a seed of 90 bits": ({"seed": 2**90}, "seed"),
    # what makes a record of an answer too large to be taken
    "a conversation of 700,000": ({"metadata": {"conversation_id": "c" * 700_000}}, "metadata.conversation_id"),
    "a conversation of 65": ({"metadata": {"conversation_id": "c" * 65}}, "metadata.conversation_id"),
    "a value of 513": ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    "a key of 65": ({"metadata": {"k" * 65: "v"}}, "metadata"),
    "17 pairs": ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    "a person of 65": ({"safety_identifier": "p" * 65}, "safety_identifier"),
    "a user of 700,000": ({"user": "u" * 700_000}, "user"),
}


@pytest.mark.parametrize("case", COSTLY)
def test_a_field_is_bounded_and_named(case: str) -> None:
    change, param = COSTLY[case]
    with pytest.raises(ApiError) as refused:
        parse_chat(json.dumps({**CHAT, **change}).encode())
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(refused.value.message) < 1000


def test_what_openai_allows_is_allowed() -> None:
    parse_chat(json.dumps({
        **CHAT, "stop": ["s" * 64] * 4, "user": "u" * 64, "safety_identifier": "p" * 64, "seed": -(2**63),
        "metadata": {"conversation_id": "c" * 64, **{f"{n:064}": "v" * 512 for n in range(15)}},
    }).encode())  # fmt: skip


FEEDBACK = {"inference_id": "chatcmpl-1", "metric_name": "rating", "value": 1}
BAD_FEEDBACK: dict[str, tuple[dict[str, Any], str]] = {
    "an id of 700,000": ({"inference_id": "i" * 700_000}, "inference_id"),
    "a metric of 700,000": ({"metric_name": "m" * 700_000}, "metric_name"),
    "a feedback id of 65": ({"feedback_id": "f" * 65}, "feedback_id"),
    "a user of 65": ({"user": "u" * 65}, "user"),
    "17 tags": ({"tags": {str(n): "" for n in range(17)}}, "tags"),
    "a tag of 513": ({"tags": {"t": "v" * 513}}, "tags.t"),
    "a demonstration of 700,000": ({"metric_name": "demonstration", "value": "d" * 700_000}, "value"),
    "a rating that ends every average": ({"value": 1e308}, "value"),
    "a rating of 90 bits": ({"value": 2**90}, "value"),
    "text for a rating, 30,000 of it": ({"value": "d" * 30_000}, "value"),
}


@pytest.mark.parametrize("case", BAD_FEEDBACK)
def test_a_field_of_feedback_is_bounded_and_named(case: str) -> None:
    change, param = BAD_FEEDBACK[case]
    with pytest.raises(ApiError) as refused:
        parse_feedback(json.dumps({**FEEDBACK, **change}).encode(), POLICIES)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert len(refused.value.message) < 1000


# -- the gateway itself: a real engine, a real producer, no broker --------------------------------------


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Part:
    """A gateway with what tests ask of it."""

    gateway: Gateway
    recorder: Recorder
    metrics: ReplicaMetrics
    engine: Engine

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"tuneloop_{name}", {"replica": "r", **labels}) or 0.0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    one = Engine(make_tiny_base(tmp_path_factory.mktemp("tiny")), slots=2, max_length=250, threads=1)
    yield one
    one.close()


def recorder_of(metrics: ReplicaMetrics, clock: Callable[[], float] = time.monotonic, room: int = 10**6, **settings: Any) -> Recorder:
    return Recorder(lambda: Producer({**NOWHERE, **PRODUCER, **settings}), metrics, clock, room)


@pytest.fixture
def part(engine: Engine, tmp_path: Path) -> Part:
    return make_part(engine, tmp_path)


def make_part(engine: Engine, folder: Path, **more: Any) -> Part:
    path, digest = ArtifactStore(str(folder / "store")).put_folder("bases", make_folder(folder))
    follower = Follower(POLICIES, ArtifactStore(str(folder / "store")), "r", lambda _: None, lambda _: engine)
    follower.at_end()
    follower._take(BaseRegistered(model="tiny", path=path, digest=digest, architecture="x", parameters=1, context_tokens=512))
    metrics = ReplicaMetrics("r")
    recorder = recorder_of(metrics, room=more.pop("room", 10**6), **more.pop("settings", {}))
    return Part(Gateway(follower, POLICIES, InferenceIds(b"k" * 32), recorder, metrics, "r", **more), recorder, metrics, engine)


def make_folder(folder: Path) -> Path:
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    return folder / "base"


def body(**fields: Any) -> bytes:
    return json.dumps({**CHAT, **fields}).encode()


async def answer(part: Part, **fields: Any) -> dict[str, Any]:
    return await part.gateway.answer(await part.gateway.open(body(**fields)))


def test_an_answer_is_given_and_its_event_waits_for_the_broker(part: Part) -> None:
    done = asyncio.run(answer(part, max_tokens=3))
    assert done["usage"]["completion_tokens"] <= 3 and part.figure("unsent_records") == 1


async def longest_stall_s(work: Any) -> float:
    """How long the event loop did nothing else while `work` ran."""
    longest, last, over = 0.0, time.perf_counter(), asyncio.Event()

    async def tick() -> None:
        nonlocal longest, last
        while not over.is_set():
            await asyncio.sleep(0)
            longest, last = max(longest, time.perf_counter() - last), time.perf_counter()

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest = 0.0
    await work
    over.set()
    await ticking
    return longest


LONG = {
    "one message": [{"role": "user", "content": "a b c " * 100_000}],
    "one word": [{"role": "user", "content": "x" * 700_000}],
    "many messages": [{"role": "user", "content": "word " * 60}] * 2_000,
    "many scripts": [{"role": "user", "content": "é🙂字" * 70_000}],
    "white space": [{"role": "user", "content": "hi" + " \n\t" * 100_000}],
}


@pytest.mark.parametrize("case", LONG)
def test_a_long_prompt_is_refused_before_it_is_tokenised(part: Part, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenise(*_: Any) -> list[int]:
        raise AssertionError("was tokenised")

    monkeypatch.setattr("serving.engine.encode_prompt", tokenise)
    sent = json.dumps({"model": "support", "messages": LONG[case]}, ensure_ascii=False).encode()
    assert len(sent) <= MAX_BODY_BYTES

    async def run() -> ApiError:
        with pytest.raises(ApiError) as refused:
            await part.gateway.answer(await part.gateway.open(sent))
        return refused.value

    error = asyncio.run(run())
    assert (error.status, error.param, error.code) == (400, "messages", "context_length_exceeded")


def test_tokenising_leaves_the_event_loop(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import engine as module

    real, threads = module.encode_prompt, []

    def slow(*given: Any) -> list[int]:
        threads.append(threading.current_thread())
        time.sleep(0.5)
        return real(*given)

    monkeypatch.setattr(module, "encode_prompt", slow)
    stalled_s = asyncio.run(longest_stall_s(answer(part, max_tokens=2)))
    assert threads and threading.main_thread() not in threads
    assert stalled_s < 0.4


def test_somebody_who_leaves_while_tokenising_leaves_nothing_running(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving import engine as module

    real = module.encode_prompt
    monkeypatch.setattr(module, "encode_prompt", lambda *given: (time.sleep(0.2), real(*given))[1])
    submit = part.engine.submit
    tickets: list[Ticket] = []

    def kept(*given: Any) -> Ticket:
        tickets.append(submit(*given))
        return tickets[-1]

    monkeypatch.setattr(part.engine, "submit", kept)

    async def run() -> None:
        asking = asyncio.create_task(answer(part, max_tokens=50))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.3)

    asyncio.run(run())
    deadline = time.monotonic() + 2
    while (part.engine.pending() or not tickets) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [ticket.cancelled for ticket in tickets] == [True]
    assert part.engine.pending() == 0 and part.figure("unsent_records") == 0


def test_a_full_queue_is_429_with_retry_after(engine: Engine, tmp_path: Path) -> None:
    part = make_part(engine, tmp_path, most_pending=3)

    async def run() -> list[Any]:
        return await asyncio.gather(*(answer(part, max_tokens=40) for _ in range(12)), return_exceptions=True)

    found = asyncio.run(run())
    refused = [one for one in found if isinstance(one, ApiError)]
    answered = [one for one in found if isinstance(one, dict)]
    assert 1 <= len(answered) <= 3 and len(answered) + len(refused) == 12
    assert {(one.status, one.code, one.headers()["Retry-After"]) for one in refused} == {(429, "overloaded", "1")}
    assert refused[0].body()["error"]["type"] == "rate_limit_error"
    assert asyncio.run(answer(part, max_tokens=2))["object"] == "chat.completion"


# -- no answer without a record -------------------------------------------------------------------------


def test_no_answer_where_its_event_would_have_no_room(engine: Engine, tmp_path: Path) -> None:
    part = make_part(engine, tmp_path, room=1500)

    async def run() -> list[Any]:
        found: list[Any] = []
        for _ in range(8):
            try:
                found.append(await answer(part, max_tokens=2))
            except ApiError as error:
                found.append(error)
        return found

    found = asyncio.run(run())
    answers, refused = [x for x in found if isinstance(x, dict)], [x for x in found if isinstance(x, ApiError)]
    assert answers and refused and found == [*answers, *refused]
    assert {(one.status, one.code, one.retry_after_s) for one in refused} == {(503, "not_recorded", 5)}
    assert part.figure("unsent_records") == len(answers)


def test_a_producer_that_is_full_holds_nobody_up(engine: Engine, tmp_path: Path) -> None:
    part = make_part(engine, tmp_path, settings={"queue.buffering.max.messages": 2})

    async def run() -> None:
        for _ in range(6):
            await answer(part, max_tokens=2)

    stalled_s = asyncio.run(longest_stall_s(run()))
    assert stalled_s < 0.3
    assert part.figure("unsent_records") == 6  # two at the client, four kept here
    assert part.figure("events_refused_total", topic="usage.inferences") == 4
    assert part.figure("events_lost_total", topic="usage.inferences") == 0


def test_feedback_without_room_is_503_at_once(engine: Engine, tmp_path: Path) -> None:
    part = make_part(engine, tmp_path, room=100)
    part.recorder.record(Out("usage.inferences", b"k", b"v" * 200))
    said = {**FEEDBACK, "inference_id": InferenceIds(b"k" * 32).issue()}
    began = time.monotonic()
    with pytest.raises(ApiError) as refused:
        asyncio.run(part.gateway.feedback(json.dumps(said).encode()))
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "not_stored", 5)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("read", [2, 3, 4, 6, 9])
def test_who_leaves_a_stream_before_its_end_is_recorded_with_what_they_had(part: Part, read: int) -> None:
    kept: list[Out] = []
    real = part.recorder.record
    part.recorder.record = lambda out: (kept.append(out), real(out))[1]  # type: ignore[method-assign]

    async def run() -> str:
        chunks: AsyncIterator[bytes] = await part.gateway.stream(await part.gateway.open(body(max_tokens=40, stream=True)))
        heard = ""
        for _ in range(read):
            heard += json.loads((await anext(chunks)).removeprefix(b"data: "))["choices"][0]["delta"].get("content", "")
        await chunks.aclose()  # type: ignore[attr-defined]
        return heard

    heard = asyncio.run(run())
    (event,) = [json.loads(out.value or b"") for out in kept]
    assert heard and event["answer"] == heard and event["finish_reason"] == "cancelled"
    assert event["input_tokens"] > 0 and event["output_tokens"] >= len(event["answer"])
    deadline = time.monotonic() + 2
    while part.engine.pending() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert part.engine.pending() == 0


def test_an_event_that_is_refused_is_tried_again_at_growing_intervals_then_counted_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, clock = ReplicaMetrics("r"), Clock()
    recorder = recorder_of(metrics, clock, **{"message.max.bytes": 1000})
    recorder.record(Out("usage.inferences", b"key of jane", b"words of jane" * 1000))

    def figure(name: str) -> float:
        return metrics.registry.get_sample_value(f"tuneloop_events_{name}_total", {"replica": "r", "topic": "usage.inferences"}) or 0.0

    at = []
    for _ in range(400):
        before = figure("refused")
        clock.now += 1
        recorder.poll(0)
        if figure("refused") > before:
            at.append(clock.now)
    assert figure("refused") == ATTEMPTS and figure("lost") == 1
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert len(at) == ATTEMPTS - 1 and gaps == sorted(gaps) and gaps[-1] == 60
    assert recorder.has_room() and metrics.registry.get_sample_value("tuneloop_unsent_records", {"replica": "r"}) == 0
    assert "jane" not in caplog.text and "MSG_SIZE_TOO_LARGE" in caplog.text


def test_a_producer_that_failed_for_good_is_replaced_and_its_events_go_on() -> None:
    made: list[Producer] = []

    def make() -> Producer:
        made.append(Producer({**NOWHERE, **PRODUCER}))
        return made[-1]

    metrics, clock = ReplicaMetrics("r"), Clock()
    recorder = Recorder(make, metrics, clock)
    for _ in range(3):
        recorder.record(Out("usage.inferences", b"k", b"v"))
    recorder.send(Out("usage.feedback", b"k", b"v"), lambda error: heard.append(error))
    heard: list[KafkaError | None] = []
    recorder._failed_for_good = True  # as a delivery report says of a fenced or desynchronised producer
    recorder.poll(0)
    assert len(made) == 2
    assert [error is not None for error in heard] == [True], "who waits is told"
    assert metrics.registry.get_sample_value("tuneloop_unsent_records", {"replica": "r"}) == 3
    clock.now += 2
    recorder.poll(0)
    assert len(made[1]) >= 3  # a producer counts what it has to say of its broker as well


def test_what_metrics_say_is_of_nobody(part: Part) -> None:
    asyncio.run(answer(part, max_tokens=2, safety_identifier="jane", user="jane", metadata={"conversation_id": "jane"},
                       messages=[{"role": "user", "content": "i am jane"}]))  # fmt: skip
    with part.metrics.request("chat"):
        pass
    for model in ("jane", "support@jane"):
        with pytest.raises(ApiError), part.metrics.request("chat"):
            asyncio.run(answer(part, model=model))
    text = part.metrics.exposed().decode()
    assert "support@0" in text and "jane" not in text
