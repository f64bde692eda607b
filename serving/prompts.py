"""From chat messages to token ids: the one place where a prompt is rendered.

Training, the gate and the serving engine all call `encode_prompt`, so a model is trained, judged and
served on the same tokens. What people wrote cannot hold the model's control tokens: only the template gives these.
Reads a Hugging Face tokenizer; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from serving.control_tokens import ControlTokenError, controls_of, without_controls

__all__ = ["DEFAULT_TEMPLATE", "ROLES", "ControlTokenError", "encode_completion", "encode_prompt"]

# For bases that bring no chat template of their own: plain, readable, and the same everywhere. A turn begins at the
# start of a line, and the further lines of a message are indented, so that none of them can begin one. Templates of
# others that open turns with plain words ("### User:") have no such guard: their turns can be forged.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | replace('\n', '\n ') }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# A role becomes part of the control text in some templates, so nobody may invent one.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
Message = dict[str, str]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` followed by the opening of the assistant's turn.

    `messages` is a non-empty sequence of `{"role": str, "content": str}`. The answer's own tokens follow
    directly and end with the tokenizer's end-of-sequence token. Text without control tokens gives the ids of
    `apply_chat_template`; where it holds some, they are broken. Raises `ControlTokenError` where that is not possible.
    """
    unknown = [message.get("role") for message in messages if message.get("role") not in ROLES]
    if unknown:
        raise ControlTokenError(f"unknown role {unknown[0]!r}; known: {', '.join(ROLES)}")
    template = tokenizer.chat_template or DEFAULT_TEMPLATE
    controls = controls_of(tokenizer, template)

    def render(change: Callable[[str], str]) -> tuple[list[int], tuple[list[int], list[int]]]:
        changed = [{key: text if key == "role" else change(text) for key, text in one.items()} for one in messages]
        text = tokenizer.apply_chat_template(
            changed, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer.encode(text, add_special_tokens=False)
        return ids, controls.frame(text, ids)

    _, expected = render(_harmless)
    ids, frame = render(lambda text: text)
    if frame != expected:
        ids, frame = render(lambda text: without_controls(tokenizer, controls, text))
    if frame != expected:
        raise ControlTokenError("the messages would act as control tokens of the model: leave these out")
    return ids


def _harmless(text: str) -> str:
    """Text that no template and no tokenizer takes for anything; empty where the text is."""
    return "x" if text.strip() else text


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Token ids of an answer as the model is taught to give it: the text without control tokens, then end of sequence.

    Raises `ControlTokenError` where control tokens in it cannot be broken.
    """
    controls = controls_of(tokenizer, tokenizer.chat_template or DEFAULT_TEMPLATE)
    ids = tokenizer.encode(text, add_special_tokens=False)
    tokens, marks = controls.frame(text, ids)
    if tokens or any(marks):
        ids = tokenizer.encode(without_controls(tokenizer, controls, text), add_special_tokens=False)
    return [*ids, tokenizer.eos_token_id]
