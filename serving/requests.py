"""What clients may send: OpenAI's chat form and the feedback form, checked field by field.

Pure: bytes in, a checked request or an `ApiError` out. Unknown fields pass, as OpenAI's clients send many.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from schemas.events import FeedbackGiven, Message
from schemas.identity import content_hash
from schemas.policy import ModelPolicy
from serving.errors import bad_request, too_large
from streams.join.rules import TEXTS, fits, kind_of

# With labels, answer and feedback beside it, what a request says still fits into a record of Kafka's 1 MiB.
MAX_BODY_BYTES = 768 * 1024
# As OpenAI bounds them, where it does.
MAX_STOPS, MAX_PAIRS, MAX_KEY, MAX_VALUE, MAX_ID = 4, 16, 64, 512, 64
MAX_STOP, MAX_MESSAGES, MAX_NAME, MAX_ROLE = 64, 2_048, 256, 16
MAX_INFERENCE_ID = 128
# Beyond this no rule of `streams.prepare` takes an answer.
MAX_FEEDBACK_TEXT = 32_000
MAX_SCORE = 1e9
# Unix times in ms: what is smaller was meant as seconds (this is 2001), what is larger is in no calendar.
FIRST_MS, LAST_MS = 10**12, 253_402_300_799_999
SEED_BITS = 63


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

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

    def whole_turns(self) -> list[Message]:
        """The turns as they are recorded, with the calls that stand in them."""
        return [
            Message(
                role=turn.role, content=turn.text(), name=turn.name or "", tool_call_id=turn.tool_call_id or "",
                tool_calls=msgspec.json.encode(turn.tool_calls).decode() if turn.tool_calls else "",
            )
            for turn in self.messages
        ]

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def conversation(self) -> str:
        return (self.metadata or {}).get("conversation_id", "")


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a user said of one answer; `author` says it, where that is not the user, at `said_ms` (Unix; 0 = now)."""

    inference_id: str
    metric_name: str
    value: bool | int | float | str
    feedback_id: str = ""
    user: str = ""
    tags: dict[str, str] = {}
    author: str = ""
    said_ms: int = 0
    episode: str = ""

    def event(self, now_ms: int) -> FeedbackGiven:
        """What is published. Without an id it is the one opinion on this answer by this metric: sent again, a retry."""
        given = self.feedback_id or f"feedback-{content_hash(self.inference_id, self.metric_name)}"
        return FeedbackGiven(
            inference_id=self.inference_id, metric_name=self.metric_name, value=self.value, feedback_id=given,
            subject_id=self.user, tags=self.tags, author=self.author, said_ms=self.said_ms or now_ms,
            episode=self.episode,
        )


_chat = msgspec.json.Decoder(ChatRequest)
_feedback = msgspec.json.Decoder(FeedbackRequest)


def parse_chat(body: bytes) -> ChatRequest:
    """Raises `ApiError` (400, 413) that names the field."""
    request: ChatRequest = _decode(_chat, body)
    if not request.messages:
        raise bad_request("messages is empty: send at least one message", "messages", "empty_prompt")
    _check_text(request.model, MAX_NAME, "model")
    if len(request.messages) > MAX_MESSAGES:
        raise bad_request(f"there are {len(request.messages)} messages; at most {MAX_MESSAGES} are read", "messages")
    for index, message in enumerate(request.messages):
        _check_text(message.role, MAX_ROLE, f"messages[{index}].role")
        if message.role not in ("system", "developer", "user", "assistant", "tool"):
            raise bad_request(f"unknown role {message.role!r}", f"messages[{index}].role")
        _check_text(message.name or "", MAX_NAME, f"messages[{index}].name")
        _check_text(message.tool_call_id or "", MAX_NAME, f"messages[{index}].tool_call_id")
    if not request.messages[-1].text().strip():
        where = f"messages[{len(request.messages) - 1}].content"
        raise bad_request("the last message is empty: there is nothing to answer", where, "empty_prompt")
    _check_numbers(request)
    _check_stops(request)
    for name, value in (("user", request.user), ("safety_identifier", request.safety_identifier)):
        _check_text(value or "", MAX_ID, name)
    _check_pairs(request.metadata or {}, "metadata")
    _check_text(request.conversation(), MAX_ID, "metadata.conversation_id")
    return request


def _check_text(value: str, longest: int, where: str) -> None:
    if len(value) > longest:
        raise bad_request(f"{where} has {len(value)} characters; at most {longest} are taken", where, "too_long")


def _check_pairs(pairs: dict[str, str], where: str) -> None:
    if len(pairs) > MAX_PAIRS:
        raise bad_request(f"{where} has {len(pairs)} pairs; at most {MAX_PAIRS} are taken", where, "too_many")
    for key, value in pairs.items():
        if len(key) > MAX_KEY:
            message = f"{where} has a key of {len(key)} characters; at most {MAX_KEY} are taken"
            raise bad_request(message, where, "too_long")
        _check_text(value, MAX_VALUE, f"{where}.{key}")


def _check_stops(request: ChatRequest) -> None:
    stops = request.stops()
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop has {len(stops)} strings; at most {MAX_STOPS} are taken", "stop", "too_many")
    for index, stop in enumerate(stops):
        where = "stop" if isinstance(request.stop, str) else f"stop[{index}]"
        if not stop:
            raise bad_request(f"{where} is empty: every answer would end before it began", where)
        _check_text(stop, MAX_STOP, where)


def _check_numbers(request: ChatRequest) -> None:
    if request.n not in (None, 1):
        raise bad_request("one answer per request is given: n must be 1", "n")
    if request.temperature is not None and not 0 <= request.temperature <= 2:
        raise bad_request(f"temperature is {request.temperature}; expected 0 to 2", "temperature")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise bad_request(f"top_p is {request.top_p}; expected above 0 and at most 1", "top_p")
    if request.seed is not None and not -(2**SEED_BITS) <= request.seed < 2**SEED_BITS:
        raise bad_request("seed is no integer of 64 bits", "seed")
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise bad_request(f"{name} is {value}; expected at least 1", name)


def parse_feedback(body: bytes, policies: dict[str, ModelPolicy]) -> FeedbackRequest:
    """Raises `ApiError` (400, 413) for a metric that no model configures or a value of another type."""
    request: FeedbackRequest = _decode(_feedback, body)
    for name, longest in (("inference_id", MAX_INFERENCE_ID), ("metric_name", MAX_NAME), ("feedback_id", MAX_ID),
                          ("user", MAX_ID), ("author", MAX_ID), ("episode", MAX_ID)):  # fmt: skip
        _check_text(getattr(request, name), longest, name)
    _check_pairs(request.tags, "tags")
    if isinstance(request.value, str):
        _check_text(request.value, MAX_FEEDBACK_TEXT, "value")
    elif not -MAX_SCORE <= request.value <= MAX_SCORE:
        raise bad_request(f"value is not within {-MAX_SCORE:.0f} and {MAX_SCORE:.0f}", "value", "out_of_range")
    if request.said_ms and not FIRST_MS <= request.said_ms <= LAST_MS:
        raise bad_request(f"said_ms is {request.said_ms}; expected Unix time in ms", "said_ms", "out_of_range")
    metrics = {name: kind for policy in policies.values() for name, kind in policy.metrics.items()}
    kind = kind_of(request.metric_name, metrics)
    if not kind:
        known = ", ".join(sorted({*TEXTS, *metrics}))
        message = f"no metric {request.metric_name!r} is configured; known: {known}"
        raise bad_request(message, "metric_name", "unknown_metric")
    if not fits(request.value, kind):
        shown = request.value[:MAX_NAME] if isinstance(request.value, str) else request.value
        raise bad_request(f"{request.metric_name} takes a {kind}, got {shown!r}", "value", "wrong_type")
    return request


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    if len(body) > MAX_BODY_BYTES:
        raise too_large(MAX_BODY_BYTES)
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
