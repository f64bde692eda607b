"""What clients may send, and the error an OpenAI client reads when they send something else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from schemas.events import FeedbackGiven, Message
from schemas.policy import ModelPolicy
from serving.errors import ApiError
from serving.requests import MAX_BODY_BYTES, field_of, parse_chat, parse_feedback
from streams import kafka
from tests.ids import answer

TURN = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "support", "messages": [TURN]}
POLICIES = {"support": ModelPolicy()}
NOW = 1_790_000_000_000


def refused(parse: Any, body: Any, *more: Any) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), *more)
    error = caught.value.body()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert error["type"] == "invalid_request_error"
    return {"status": caught.value.status, "param": error["param"], "code": error["code"]}


def test_a_request_as_openai_clients_send_it() -> None:
    request = parse_chat(json.dumps({
        "model": "support@2", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.3, "top_p": 1,
        "max_completion_tokens": 9, "stop": ["\n", "END"], "n": 1, "user": "u", "metadata": {"conversation_id": "c1"},
        "frequency_penalty": 0.1, "tools": [], "response_format": {"type": "text"},
        "messages": [{"role": "system", "content": "be brief", "name": "x"}, {"role": "assistant", "content": None},
                     {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"},
                                                  {"type": "image_url", "image_url": {"url": "x"}}]}],
    }).encode())  # fmt: skip
    assert request.turns() == [
        {"role": "system", "content": "be brief"}, {"role": "assistant", "content": ""},
        {"role": "user", "content": "Hello"},
    ]  # fmt: skip
    assert request.stops() == ("\n", "END") and request.conversation() == "c1"
    assert request.stream_options is not None and request.stream_options.include_usage


def test_turns_are_recorded_whole() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "track", "arguments": '{"order": 7}'}}]
    request = parse_chat(json.dumps({**CHAT, "messages": [
        {"role": "user", "content": "where is it"}, {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "on its way", "tool_call_id": "1", "name": "track"},
    ]}).encode())  # fmt: skip
    asked, called, told = request.whole_turns()
    assert asked == Message(role="user", content="where is it") and called.content == ""
    assert json.loads(called.tool_calls) == calls
    assert told == Message(role="tool", content="on its way", tool_call_id="1", name="track")
    assert [turn["content"] for turn in request.turns()] == ["where is it", "", "on its way"]


def test_what_is_left_out_or_null_has_its_default() -> None:
    request = parse_chat(json.dumps({**CHAT, "stop": None, "n": None, "metadata": None, "stream": None}).encode())
    assert (request.stops(), request.conversation(), request.temperature) == ((), "", None)
    assert parse_chat(json.dumps({**CHAT, "stop": "x"}).encode()).stops() == ("x",)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_prompt"),
        ({"messages": [TURN, {"role": "user", "content": " "}]}, "messages[1].content", "empty_prompt"),
        ({"messages": [TURN, {"role": "user"}]}, "messages[1].content", "empty_prompt"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", None),
        ({"messages": [TURN, {"content": "x"}]}, "messages[1].role", "invalid_field"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "invalid_field"),
        ({"messages": "hi"}, "messages", "invalid_field"),
        ({"model": None}, "model", "invalid_field"),
        ({"temperature": "hot"}, "temperature", "invalid_field"),
        ({"temperature": 2.1}, "temperature", None),
        ({"temperature": -0.1}, "temperature", None),
        ({"top_p": 0}, "top_p", None),
        ({"top_p": 1.1}, "top_p", None),
        ({"max_tokens": 0}, "max_tokens", None),
        ({"max_completion_tokens": -1}, "max_completion_tokens", None),
        ({"n": 2}, "n", None),
        ({"metadata": {"a": 1}}, "metadata[...]", "invalid_field"),
        ({"stop": [1]}, "stop[0]", "invalid_field"),
    ],
)
def test_a_refused_field_is_named(change: dict[str, Any], param: str, code: str | None) -> None:
    assert refused(parse_chat, {**CHAT, **change}) == {"status": 400, "param": param, "code": code}


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    body = {key: value for key, value in CHAT.items() if key != name}
    assert refused(parse_chat, body) == {"status": 400, "param": name, "code": "invalid_field"}


@pytest.mark.parametrize("body", [b"", b"{", b'{"x":"\xff"', b'{"model":"a","x":' + b"[" * 100_000])
def test_what_is_no_json_is_a_bad_request(body: bytes) -> None:
    assert refused(parse_chat, body) == {"status": 400, "param": None, "code": "invalid_json"}
    assert refused(parse_feedback, body, POLICIES) == {"status": 400, "param": None, "code": "invalid_json"}


def test_json_of_another_shape_is_a_bad_request() -> None:
    assert refused(parse_chat, []) == {"status": 400, "param": None, "code": "invalid_field"}


def test_a_body_is_bounded() -> None:
    body = json.dumps(CHAT).encode()
    assert parse_chat(body.ljust(MAX_BODY_BYTES)).model == "support"
    assert refused(parse_chat, body.ljust(MAX_BODY_BYTES + 1))["status"] == 413


@pytest.mark.parametrize(
    ("metric", "value"),
    [("correct", True), ("correct", False), ("rating", 4), ("rating", 4.5), ("demonstration", "x"), ("preferred", "y")],
)
def test_feedback_that_fits_its_metric(metric: str, value: Any) -> None:
    body = {"inference_id": "i", "metric_name": metric, "value": value, "tags": {"a": "b"}}
    request = parse_feedback(json.dumps(body).encode(), POLICIES)
    assert request.value == value and type(request.value) is type(value) and request.tags == {"a": "b"}


@pytest.mark.parametrize(
    ("metric", "value"),
    [("correct", 1), ("correct", "true"), ("rating", True), ("rating", "4"), ("demonstration", " "), ("preferred", 1)],
)
def test_feedback_of_another_type_is_refused(metric: str, value: Any) -> None:
    body = {"inference_id": "i", "metric_name": metric, "value": value}
    assert refused(parse_feedback, body, POLICIES) == {"status": 400, "param": "value", "code": "wrong_type"}


def event(body: dict[str, Any], now_ms: int) -> FeedbackGiven:
    said = {"inference_id": answer("a"), "metric_name": "correct", "value": True, **body}
    return parse_feedback(json.dumps(said).encode(), POLICIES).event(now_ms)


def test_feedback_is_passed_on_with_who_says_it_when_and_of_what() -> None:
    body = {"feedback_id": "1", "user": "anna", "author": "agent-7", "said_ms": NOW - 5, "episode": "refund-1", "tags": {"a": "b"}}
    said = event(body, NOW)
    assert (said.feedback_id, said.subject_id, said.author) == ("1", "anna", "agent-7")
    assert (said.said_ms, said.episode, said.tags) == (NOW - 5, "refund-1", {"a": "b"})
    assert event({}, NOW).said_ms == NOW, "when it came"


def test_feedback_without_an_id_is_the_same_opinion_when_it_is_sent_again() -> None:
    first, again = event({}, NOW), event({"value": False, "author": "agent-7"}, NOW + 9)
    assert first.feedback_id == again.feedback_id and "agent-7" not in again.feedback_id
    others = [event({"metric_name": "rating", "value": 3}, NOW), event({"inference_id": answer("b")}, NOW)]
    assert len({first.feedback_id, *(other.feedback_id for other in others)}) == 3


def test_no_two_words_of_feedback_have_one_key() -> None:
    """Compaction keeps one record of a key: a first time, and what was corrected, must outlive what was said after."""
    words: list[dict[str, Any]] = [{"feedback_id": "1"}, {"feedback_id": "1", "inference_id": answer("b")}, {"feedback_id": "2"},
             {"feedback_id": "1", "metric_name": "rating", "value": 2}, {"feedback_id": "1", "said_ms": NOW - 1}]  # fmt: skip
    keys = [key(event(word, NOW)) for word in words]
    assert len(set(keys)) == len(words)
    assert keys[0] == f"{answer('a')}/1/correct/{NOW}".encode() == key(event({"feedback_id": "1", "value": False}, NOW))
    unnamed = FeedbackGiven(inference_id=answer("a"), metric_name="correct", value=True)
    assert kafka.out(unnamed, source="t", event_id="x").key == f"{answer('a')}/x/correct/0".encode()


def key(said: FeedbackGiven) -> bytes | None:
    return kafka.out(said, source="serve").key


@pytest.mark.parametrize("said_ms", [1_763_700_000, -1, 10**15, 2**70])
def test_a_time_that_is_no_unix_time_in_ms_is_refused(said_ms: int) -> None:
    body = {"inference_id": "i", "metric_name": "correct", "value": True, "said_ms": said_ms}
    assert refused(parse_feedback, body, POLICIES) == {"status": 400, "param": "said_ms", "code": "out_of_range"}


@pytest.mark.parametrize("field", ["author", "episode", "user", "feedback_id"])
def test_ids_are_bounded_and_named(field: str) -> None:
    body = {"inference_id": "i", "metric_name": "correct", "value": True, field: "x" * 65}
    assert refused(parse_feedback, body, POLICIES) == {"status": 400, "param": field, "code": "too_long"}


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    body = {"inference_id": "i", "metric_name": "mood", "value": True}
    assert refused(parse_feedback, body, POLICIES) == {"status": 400, "param": "metric_name", "code": "unknown_metric"}
    with pytest.raises(ApiError, match="known: correct, demonstration, preferred, rating"):
        parse_feedback(json.dumps(body).encode(), POLICIES)
    del body["inference_id"]
    assert refused(parse_feedback, body, POLICIES)["param"] == "inference_id"


def test_the_field_of_a_message() -> None:
    assert field_of("Expected `str`, got `int` - at `$.a[0].b`") == "a[0].b"
    assert field_of("Object missing required field `role` - at `$.messages[1]`") == "messages[1].role"
    assert field_of("Object missing required field `model`") == "model"
    assert field_of("Expected `object`, got `array`") is None


def test_server_errors_are_told_apart_and_say_when_to_come_back() -> None:
    error = ApiError(503, "no broker", retry_after_s=2)
    assert error.body()["error"]["type"] == "server_error" and error.headers() == {"Retry-After": "2"}
    assert ApiError(400, "x").headers() == {}
