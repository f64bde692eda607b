"""The endpoint as applications meet it: OpenAI's own client, its errors, and feedback that is never lost quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from deploy.demo.stage import MODEL
from tests.broker import fresh, until
from tests.e2e.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
QUESTION = [{"role": "user", "content": "where is my order?"}]
# The gateway waits 10 s for the broker.
REFUSED_WITHIN_S = 12.0


@pytest.fixture
def client(system: System) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{system.where.http}/v1", api_key="any", max_retries=0, timeout=60, http_client=http
    ) as one:
        yield one


def post(system: System, path: str, body: Any, timeout_s: float = 60) -> httpx.Response:
    content: dict[str, Any] = {"json": body}
    if isinstance(body, bytes):
        content = {"content": body, "headers": {"Content-Type": "application/json"}}
    return httpx.post(f"{system.where.http}{path}", timeout=timeout_s, trust_env=False, **content)


def test_a_plain_question_is_answered_in_openais_form(system: System, client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=QUESTION)
    assert done.id.startswith("chatcmpl-") and done.object == "chat.completion"
    assert done.model == f"{MODEL}@2"
    assert done.choices[0].message.role == "assistant" and done.choices[0].message.content
    assert done.choices[0].finish_reason in ("stop", "length")
    assert done.usage is not None
    assert done.usage.prompt_tokens > 0 and 0 < done.usage.completion_tokens <= 24
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_the_snippet_of_connect_openai_works_as_it_stands(system: System) -> None:
    said = system.cli("connect", "openai")
    assert said.code == 0, said.err
    answered = subprocess.run([sys.executable, "-"], input=said.out, capture_output=True, text=True, timeout=60)
    assert answered.returncode == 0, answered.stderr[-2000:]
    assert "'feedback_id'" in answered.stdout.splitlines()[-1]


def test_a_stream_says_the_same_as_one_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id != whole.id
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


@pytest.mark.parametrize(("alias", "answers"), [("", 2), ("@champion", 2), ("@0", 0), ("@1", 1), ("@2", 2)])
def test_an_alias_is_answered_by_its_version(client: openai.OpenAI, alias: str, answers: int) -> None:
    assert client.chat.completions.create(model=MODEL + alias, messages=QUESTION).model == f"{MODEL}@{answers}"


def test_versions_side_by_side_do_not_mix(client: openai.OpenAI) -> None:
    def ask(model: str) -> tuple[str, str]:
        done = client.chat.completions.create(model=model, messages=QUESTION)
        return done.model, done.choices[0].message.content or ""

    names = [f"{MODEL}@{version}" for version in (0, 1, 2)]
    alone = dict(ask(name) for name in names)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, names * 8))
    assert [model for model, _ in together] == names * 8
    assert set(together) == set(alone.items())


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert names == {MODEL, f"{MODEL}@champion", *(f"{MODEL}@{version}" for version in (0, 1, 2))}


def test_what_was_served_is_on_record_as_it_was(system: System, client: openai.OpenAI) -> None:
    who, talk = fresh("customer"), fresh("conversation")
    done = client.chat.completions.create(
        model=f"{MODEL}@1", messages=QUESTION, safety_identifier=who, metadata={"conversation_id": talk}, max_tokens=3
    )
    query = "SELECT * FROM tuneloop.inference_served FINAL WHERE inference_id = {id:String}"
    (row,) = until(lambda: system.rows(query, id=done.id), 20, "the answer to land")
    assert (row["subject_id"], row["conversation_id"], row["version"]) == (who, talk, 1)
    assert row["answer"] == done.choices[0].message.content
    assert row["output_tokens"] == done.usage.completion_tokens <= 3  # type: ignore[union-attr]


def error_of(reply: httpx.Response, status: int, param: str | None) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["message"] and error["param"] == param, error
    return error


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": QUESTION, **fields}


BAD_CHATS: dict[str, tuple[Any, int, str | None]] = {
    "unknown model": (chat(model="nobody"), 404, "model"),
    "unknown version": (chat(model=f"{MODEL}@99"), 404, "model"),
    "not a version": (chat(model=f"{MODEL}@latest"), 404, "model"),
    "no messages": ({"model": MODEL}, 400, "messages"),
    "empty messages": (chat(messages=[]), 400, "messages"),
    "empty content": (chat(messages=[{"role": "user", "content": "  "}]), 400, "messages[0].content"),
    "no content": (chat(messages=[{"role": "user"}]), 400, "messages[0].content"),
    "unknown role": (chat(messages=[{"role": "oracle", "content": "x"}]), 400, "messages[0].role"),
    "oversized prompt": (chat(messages=[{"role": "user", "content": "order " * 5000}]), 400, "messages"),
    "oversized body": (chat(messages=[{"role": "user", "content": "x" * 1_100_000}]), 413, None),
    "malformed JSON": (b'{"model": "support", ', 400, None),
    "not an object": (b"[]", 400, None),
    "text for messages": (chat(messages="hello"), 400, "messages"),
    "text for temperature": (chat(temperature="hot"), 400, "temperature"),
    "temperature too high": (chat(temperature=3), 400, "temperature"),
    "no tokens": (chat(max_tokens=0), 400, "max_tokens"),
    "two answers": (chat(n=2), 400, "n"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_bad_chat_request_is_refused_by_field(system: System, case: str) -> None:
    body, status, param = BAD_CHATS[case]
    error_of(post(system, "/v1/chat/completions", body), status, param)


def test_a_bad_request_is_refused_before_a_stream_begins(system: System) -> None:
    error_of(post(system, "/v1/chat/completions", chat(model="nobody", stream=True)), 404, "model")
    long = [{"role": "user", "content": "order " * 5000}]
    error_of(post(system, "/v1/chat/completions", chat(messages=long, stream=True)), 400, "messages")


def test_openais_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as empty:
        client.chat.completions.create(model=MODEL, messages=[])
    assert empty.value.param == "messages"


def test_an_unknown_path_is_refused_in_the_same_form(system: System) -> None:
    error_of(post(system, "/v1/embeddings", {"input": "x"}), 404, None)


@pytest.fixture
def answered(client: openai.OpenAI) -> str:
    return client.chat.completions.create(model=f"{MODEL}@0", messages=QUESTION).id


def feedback(inference_id: str, **fields: Any) -> dict[str, Any]:
    return {"inference_id": inference_id, "metric_name": "rating", "value": 0.5, **fields}


def test_bad_feedback_is_refused_by_field(system: System, answered: str) -> None:
    forged = answered[:-1] + ("0" if answered[-1] != "0" else "1")
    cases: list[tuple[Any, int, str | None]] = [
        (feedback(forged), 404, "inference_id"),
        (feedback("chatcmpl-" + "0" * 44), 404, "inference_id"),
        (feedback("made up"), 404, "inference_id"),
        (feedback(answered, metric_name="charm"), 400, "metric_name"),
        (feedback(answered, value="good"), 400, "value"),
        (feedback(answered, value=True), 400, "value"),
        (feedback(answered, metric_name="correct", value=1), 400, "value"),
        (feedback(answered, metric_name="demonstration", value=" "), 400, "value"),
        ({"inference_id": answered, "metric_name": "rating"}, 400, "value"),
        (feedback(answered, value=[1]), 400, "value"),
        (b"{", 400, None),
    ]
    for body, status, param in cases:
        error_of(post(system, "/v1/feedback", body), status, param)
    query = "SELECT count() FROM tuneloop.feedback_given WHERE inference_id IN ({a:String}, {b:String})"
    assert post(system, "/v1/feedback", feedback(answered)).status_code == 200
    until(lambda: system.value(query, a=answered, b=forged) >= 1, 20, "the good feedback to land")
    assert system.value(query, a=answered, b=forged) == 1, "refused feedback was stored all the same"


@contextmanager
def stopped(system: System) -> Iterator[None]:
    """The broker frozen: it holds its sockets and answers nothing."""
    pid = system.states()["kafka"].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_feedback_without_a_broker_is_503_and_taken_when_said_again(system: System, answered: str) -> None:
    said = feedback(answered, metric_name="correct", value=True, feedback_id=fresh("feedback"))
    with stopped(system):
        began = time.monotonic()
        reply = post(system, "/v1/feedback", said, timeout_s=30)
        waited_s = time.monotonic() - began
        assert error_of(reply, 503, None)["code"] == "not_stored"
        assert int(reply.headers["Retry-After"]) > 0
        assert waited_s < REFUSED_WITHIN_S
        done = post(system, "/v1/chat/completions", chat())
        assert done.status_code == 200, "answers do not need the broker"
    until(lambda: post(system, "/v1/feedback", said, timeout_s=30).status_code == 200, 60, "feedback to be taken again")
    query = "SELECT inference_id, correct FROM tuneloop.scored_answers WHERE inference_id = {id:String}"
    until(lambda: system.rows(query, id=answered), 40, "the score to land")
    assert [bool(row["correct"]) for row in system.rows(query, id=answered)] == [True]
    late = done.json()["id"]
    query = "SELECT count() FROM tuneloop.inference_served FINAL WHERE inference_id = {id:String}"
    until(lambda: system.value(query, id=late) == 1, 40, "the answer given meanwhile to land")
