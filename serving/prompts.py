"""From chat messages to token ids: the one place where a prompt is rendered.

Training, the gate and the serving engine all call `encode_prompt`, so a model is trained, judged and
served on the same tokens. Reads a Hugging Face tokenizer; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# For bases that bring no chat template of their own: plain, readable, and the same everywhere.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def encode_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of `messages` followed by the opening of the assistant's turn.

    `messages` is a non-empty sequence of `{"role": str, "content": str}`. The answer's own tokens follow
    directly and end with the tokenizer's end-of-sequence token.
    """
    template = tokenizer.chat_template or DEFAULT_TEMPLATE
    text = tokenizer.apply_chat_template(
        list(messages), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return tokenizer.encode(text, add_special_tokens=False)


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Token ids of an answer as the model is taught to give it: the text, then end of sequence."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
