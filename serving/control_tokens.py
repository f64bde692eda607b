"""A model's control tokens, and text of people without them.

A control token opens or closes a turn, or has another meaning that only the template may give it. What people write
can hold its text; it is broken by a space there, so that the tokenizer finds no token in it. All other text stays as
it is. Pure: reads a Hugging Face tokenizer, writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from jinja2 import Environment, TemplateError

# Marks of a template that are plain text to its tokenizer, such as [INST], <<SYS>> or <start_of_turn>.
_MARK = re.compile(r"<<?[/|]?[A-Za-z_][^<>\s]{0,60}>>?|\[/?[A-Z][A-Z_]+\]")
# Tokens for words, for runs of spaces and for single bytes: text, not control.
_WORDS, _BYTE = re.compile(r"[\w\s.,'-]*"), re.compile("<0x[0-9A-F]{2}>")
_BREAKS, _REMOVALS = 3, 3


class ControlTokenError(ValueError):
    """Text of people would act as control tokens, and cannot be broken so that it does not."""


@dataclass(frozen=True)
class Controls:
    """Ids of a tokenizer's control tokens, their texts, and the marks of the template that are no tokens."""

    ids: frozenset[int]
    texts: tuple[str, ...]
    marks: tuple[str, ...]

    def frame(self, text: str, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The control tokens in `ids`, in their order, and how often each mark stands in `text`."""
        return [token for token in ids if token in self.ids], [text.count(mark) for mark in self.marks]

    def spans(self, tokenizer: Any, text: str) -> list[tuple[int, int]]:
        """Where control tokens and marks stand in `text`: (start, end) in characters, as the tokenizer finds them."""
        found = [(hit.start(), hit.end()) for mark in self.marks for hit in re.finditer(re.escape(mark), text)]
        if getattr(tokenizer, "is_fast", False):  # it may find them in other spellings, which it normalises
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            found += [tuple(span) for token, span in pairs if token in self.ids]
        else:
            found += [(hit.start(), hit.end()) for one in self.texts for hit in re.finditer(re.escape(one), text)]
        return sorted(set(found), reverse=True)


_known: WeakKeyDictionary[Any, tuple[str, Controls]] = WeakKeyDictionary()


def controls_of(tokenizer: Any, template: str) -> Controls:
    """The control tokens of a tokenizer under a chat template."""
    template_then, found = _known.get(tokenizer, (None, None))
    if found is None or template_then != template:
        found = _read(tokenizer, template)
        _known[tokenizer] = template, found
    return found


def _read(tokenizer: Any, template: str) -> Controls:
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    # Characters that a tokenizer does not know become its unknown token: that is text.
    special = set(tokenizer.all_special_ids)
    added = {token: str(one) for token, one in tokenizer.added_tokens_decoder.items()}
    named = added | dict(zip(sorted(special), tokenizer.convert_ids_to_tokens(sorted(special)), strict=True))
    controls = {
        token: text for token, text in named.items()
        if (token != tokenizer.unk_token_id or token in ends) and not _BYTE.fullmatch(text)
        and (token in special or not _WORDS.fullmatch(text))
    }  # fmt: skip
    texts = set(controls.values())
    marks = {mark for text in _shown(tokenizer, template) for mark in _MARK.findall(text)} - texts
    return Controls(frozenset(controls), tuple(sorted(texts)), tuple(sorted(marks)))


def _shown(tokenizer: Any, template: str) -> list[str]:
    """What a template adds of its own: the text in it, and what it makes of a role."""
    shown = []
    with suppress(TemplateError):  # rendering a prompt will say so
        shown += [value for _, kind, value in Environment().lex(template) if kind in ("data", "string")]
    for roles in (["user"], ["system", "user"], ["user", "assistant"]):
        with suppress(TemplateError, TypeError, ValueError, KeyError):  # not every template takes every role
            turns = [{"role": role, "content": "x"} for role in roles]
            shown.append(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False))
    return shown


def without_controls(tokenizer: Any, controls: Controls, text: str) -> str:
    """`text` with a space in each control token it would hold; the same text where it holds none.

    Raises `ControlTokenError` where tokens form again and again.
    """
    for attempt in range(_BREAKS + _REMOVALS):
        spans = controls.spans(tokenizer, text)
        if not spans:
            return text
        for start, end in spans:
            piece = text[start:end]
            visible = start + len(piece) - len(piece.lstrip()) + 1
            # What a space does not break, such as a token of one character, goes.
            text = f"{text[:visible]} {text[visible:]}" if attempt < _BREAKS else f"{text[:start]} {text[end:]}"
    if controls.spans(tokenizer, text):
        raise ControlTokenError("the text holds control tokens of the model that cannot be broken: leave them out")
    return text
