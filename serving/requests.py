"""What clients may send: OpenAI's chat form and the feedback form, checked field by field.

Pure: bytes in, a checked request or an `ApiError` out. Unknown fields pass, as OpenAI's clients send many.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from schemas.policy import ModelPolicy
from serving.errors import ApiError, bad_request

MAX_BODY_BYTES = 1_000_000


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[ContentPart] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a chat completion that are understood here."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = 1
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None

    def turns(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.text()} for message in self.messages]

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def conversation(self) -> str:
        return (self.metadata or {}).get("conversation_id", "")


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a user said of one answer."""

    inference_id: str
    metric_name: str
    value: bool | int | float | str
    feedback_id: str = ""
    user: str = ""
    tags: dict[str, str] = {}


_chat = msgspec.json.Decoder(ChatRequest)
_feedback = msgspec.json.Decoder(FeedbackRequest)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises `ApiError` (400, 413) that names the field."""
    request: ChatRequest = _decode(_chat, body)
    if not request.messages:
        raise bad_request("messages is empty: send at least one message", "messages", "empty_prompt")
    for index, message in enumerate(request.messages):
        if message.role not in ("system", "developer", "user", "assistant", "tool"):
            raise bad_request(f"unknown role {message.role!r}", f"messages[{index}].role")
    if not request.messages[-1].text().strip():
        where = f"messages[{len(request.messages) - 1}].content"
        raise bad_request("the last message is empty: there is nothing to answer", where, "empty_prompt")
    _check_numbers(request)
    return request


def _check_numbers(request: ChatRequest) -> None:
    if request.n not in (None, 1):
        raise bad_request("one answer per request is given: n must be 1", "n")
    if request.temperature is not None and not 0 <= request.temperature <= 2:
        raise bad_request(f"temperature is {request.temperature}; expected 0 to 2", "temperature")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise bad_request(f"top_p is {request.top_p}; expected above 0 and at most 1", "top_p")
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise bad_request(f"{name} is {value}; expected at least 1", name)


def parse_feedback(body: bytes, policies: dict[str, ModelPolicy]) -> FeedbackRequest:
    """Raises `ApiError` (400, 413) for a metric that no model configures or a value of another type."""
    request: FeedbackRequest = _decode(_feedback, body)
    kinds = {"demonstration": "text", "preferred": "text"}
    for policy in policies.values():
        kinds |= policy.metrics
    kind = kinds.get(request.metric_name)
    if kind is None:
        known = ", ".join(sorted(kinds))
        message = f"no metric {request.metric_name!r} is configured; known: {known}"
        raise bad_request(message, "metric_name", "unknown_metric")
    if not _fits(request.value, kind):
        raise bad_request(f"{request.metric_name} takes a {kind}, got {request.value!r}", "value", "wrong_type")
    return request


def _fits(value: Any, kind: str) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool)


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    if len(body) > MAX_BODY_BYTES:
        message = f"the request has {len(body)} bytes; the limit is {MAX_BODY_BYTES}"
        raise ApiError(413, message, None, "request_too_large")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise bad_request(str(error), field_of(str(error)), "invalid_field") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {error}", None, "invalid_json") from error


def field_of(message: str) -> str | None:
    """The field that a msgspec message is about: its `$.path`, else the missing field's name."""
    path = re.search(r"`\$\.?([^`]*)`", message)
    missing = re.search(r"missing required field `([^`]+)`", message)
    parts = [path.group(1) if path else "", missing.group(1) if missing else ""]
    return ".".join(part for part in parts if part) or None
