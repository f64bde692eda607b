"""An answer in OpenAI's form: whole, or as the chunks of a stream. Pure: values in, JSON bodies out."""

from __future__ import annotations

import json
import time
from typing import Any

from serving.ticket import Generated


def whole(inference_id: str, model: str, generated: Generated) -> dict[str, Any]:
    """A chat completion of `model` (NAME@VERSION)."""
    choice = {
        "index": 0, "finish_reason": generated.finish_reason, "logprobs": None,
        "message": {"role": "assistant", "content": generated.text},
    }  # fmt: skip
    return {**_head(inference_id, model, "chat.completion"), "choices": [choice], "usage": _usage(generated)}


def chunk(inference_id: str, model: str, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    """One part of a stream, as a server-sent event."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return event({**_head(inference_id, model, "chat.completion.chunk"), "choices": [choice]})


def usage_chunk(inference_id: str, model: str, generated: Generated) -> bytes:
    """The last part of a stream whose client asked for the usage."""
    return event({**_head(inference_id, model, "chat.completion.chunk"), "choices": [], "usage": _usage(generated)})


def event(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def _head(inference_id: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": inference_id, "object": kind, "created": int(time.time()), "model": model}


def _usage(generated: Generated) -> dict[str, int]:
    return {
        "prompt_tokens": generated.input_tokens, "completion_tokens": generated.output_tokens,
        "total_tokens": generated.input_tokens + generated.output_tokens,
    }  # fmt: skip
