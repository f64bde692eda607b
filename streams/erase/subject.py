"""Recognising what belongs to one subject: by what a record says, in any spelling that JSON allows.

JSON has many spellings of one id: `jörg`, `j\\u00f6rg`, `j\\u00F6rg`; `a/b`, `a\\/b`. So a record is parsed, and the id
is compared with what the parser read. Only what is no JSON is searched by bytes, for every spelling at once. A look at
the bytes comes first: most records hold the id in no spelling at all, and are not parsed a second time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from schemas.events import Message
from schemas.identity import ANSWER_ID, subject_of_record
from schemas.personal import PERSON_FIELDS
from streams.kafka import Record

_INFERENCE = re.compile(ANSWER_ID.encode())
# Fields of these names hold what people say or what things are called, never whose a record is.
_WORDS = frozenset(
    ("role", "content", "prompt", "completion", "chosen", "rejected", "answer", "value", "model", "kind", "origin",
     "metric_name")
)  # fmt: skip
# An id of digits may come as a number, but a number under any other name is no id.
_SUBJECT_FIELDS = frozenset((*PERSON_FIELDS, "user", "user_id", "safety_identifier", "customer_id"))
# JSON within a JSON string is looked into this often; each time doubles its backslashes, and adds one.
_DEEPEST = 4
# What is larger than any record may be (a letter can be, where the record was squeezed) is searched, not parsed: a list
# of empty lists takes 20 times its bytes.
LARGEST_PARSED = 4 * 1024 * 1024
_SHORTEST = 40  # no answer's id is this short
_NAMING = [f'"{name}"'.encode() for name in (*PERSON_FIELDS, "inference_id")]
_OUR_HEADERS = ("ce_", "__connect.", "tuneloop.")
_ESCAPED_ASCII = re.compile(rb"\\{1,15}u00([2-7][0-9a-fA-F])")


class _Who(msgspec.Struct):
    """What any event with a person's words says of whose they are."""

    subject_id: str = ""
    author: str = ""
    requested_by: str = ""
    actor: str = ""
    inference_id: str = ""
    prompt: str = ""
    messages: list[Message] = []

    def names(self, subject_id: str) -> bool:
        return subject_id != "" and subject_id in (self.subject_id, self.author, self.requested_by, self.actor)


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs: of a name that comes twice, both values count."""


class _Number(str):
    """A number as it was written: one of a million digits is never computed."""


_decoder = msgspec.json.Decoder(_Who)


class Subject:
    """Recognises what belongs to one subject, given the inferences that are known to be theirs."""

    def __init__(self, subject_id: str, inferences: Iterable[str] = ()) -> None:
        self.subject_id = subject_id
        self.inferences = set(inferences)
        spelled = spellings(subject_id)
        self._quoted = re.compile(b'"' + spelled + rb'\\{0,15}"')
        # What is no JSON may be a table, a form, a line of Python, or JSON that was cut off.
        self._bare = re.compile(rb"(?:\A|[\"'=,;\t\n])\s{0,8}" + spelled + rb"\s{0,8}(?:\\{0,15}[\"'&,;\t\n]|\Z)")
        self._wide = [subject_id.encode(form, "surrogatepass") for form in ("utf-16-le", "utf-16-be")]

    def owns(self, record: Record) -> bool:
        """Whether a record is theirs by what it says, or, where it says nothing that can be read, by what it holds."""
        value = record.value or b""
        try:
            who = _decoder.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._holds(value) or self._in_headers(record)
        if who.names(self.subject_id) or who.inference_id in self.inferences:
            return True
        if who.subject_id:  # somebody else's, unless it names two
            return _may_repeat(value) and self._may_hold(value) and self._names(_parsed(value))
        held = self._may_hold(value) and self._holds(value)
        return held or self._asked(who.prompt, who.messages) or self._in_headers(record)

    def _may_hold(self, value: bytes) -> bool:
        """Whether a closer look is worth it: no id of theirs stands there in any spelling otherwise."""
        if self._quoted.search(value) or b"\0" in value or self.in_key(value):
            return True
        if self.subject_id.isdigit() and self.subject_id.encode() in value:
            return True
        return bool(self.inferences) and b"\\u00" in value

    def _names(self, said: Any) -> bool:
        """Whether one of the fields that say whose an event is names them, where a name comes more than once."""
        if not isinstance(said, _Object):
            return False
        return any(
            value in self.inferences if name == "inference_id" else name in PERSON_FIELDS and value == self.subject_id
            for name, value in said if isinstance(value, str)
        )  # fmt: skip

    def _holds(self, value: bytes) -> bool:
        """Whether their id stands under any name, or the id of one of their inferences anywhere."""
        if self.in_key(value):
            return True
        said = _parsed(value) if self._may_hold(value) or self._asks() or self._bare.search(value) else ""
        if said is None:
            return self.in_bytes(value)
        return self._within(said)

    def _within(self, said: Any) -> bool:
        if isinstance(said, _Object) and self._asks() and self._asked(*_question(said)):
            return True
        for name, value in _strings(said):
            if name not in _WORDS and value == self.subject_id:
                if not isinstance(value, _Number) or name in _SUBJECT_FIELDS:
                    return True
            elif len(value) >= _SHORTEST and self.in_key(value.encode(errors="surrogatepass")):
                return True
        return False

    def _asks(self) -> bool:
        """A row that came without a subject has that of its prompt."""
        return self.subject_id.startswith("prompt-")

    def _asked(self, prompt: str, messages: Sequence[Message]) -> bool:
        if not self._asks():
            return False
        return subject_of_record(messages, prompt) == self.subject_id

    def _in_headers(self, record: Record) -> bool:
        """Whether a header of the sender's own names them."""
        theirs = self.subject_id.encode(errors="surrogatepass")
        return any(
            said is not None and (said == theirs or self.in_key(said))
            for name, said in record.headers if name == "ce_subject" or not name.startswith(_OUR_HEADERS)
        )  # fmt: skip

    def in_bytes(self, value: bytes) -> bool:
        """Whether the subject's id stands there by itself, in any spelling, or the id of one of their inferences."""
        if self._quoted.search(value) or self._bare.search(value) or self.in_key(value):
            return True
        plain = _ESCAPED_ASCII.sub(lambda found: bytes([int(found[1], 16)]), value)
        return self.in_key(plain) or (b"\0" in value and any(form in value for form in self._wide))

    def in_key(self, value: bytes) -> bool:
        """Whether the id of one of their inferences stands there."""
        return any(match.group().decode() in self.inferences for match in _INFERENCE.finditer(value))


def _may_repeat(value: bytes) -> bool:
    """Whether a field that says whose a record is may stand there twice; a cheap look, for it is taken of most."""
    return any(value.count(name) > 1 for name in _NAMING) or b"\\u" in value


def spellings(text: str) -> bytes:
    """A regular expression for a text as a JSON string may spell it, also where that string stands in another one.

    No two branches of it begin alike, so that a search takes time in proportion to what is searched.
    """
    return b"".join(_spellings_of(letter) for letter in text)


_SHORT = {"/": b"/", "\b": b"b", "\f": b"f", "\n": b"n", "\r": b"r", "\t": b"t", '"': b'"'}


def _spellings_of(letter: str) -> bytes:
    units = letter.encode("utf-16-be", "surrogatepass")
    codes = [units[place : place + 2].hex() for place in range(0, len(units), 2)]
    escaped = b"".join(rb"\\{1,15}u" + _either_case(code) for code in codes)
    if letter == "\\":
        return rb"(?:\\{1,15}u" + _either_case(codes[0]) + rb"|\\{1,15})"
    ways = [escaped]
    if letter in _SHORT:
        ways.append(rb"\\{1,15}" + re.escape(_SHORT[letter]))
    ways.append(re.escape(letter.encode(errors="surrogatepass")))
    return b"(?:" + b"|".join(ways) + b")"


def _either_case(code: str) -> bytes:
    return "".join(digit if digit.isdigit() else f"[{digit}{digit.upper()}]" for digit in code).encode()


def _parsed(value: bytes | str) -> Any | None:
    """Plain values with `_Object` for objects; None for what is no JSON (or `null`)."""
    if len(value) > LARGEST_PARSED:
        return None
    try:
        return json.loads(
            value, object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except (ValueError, RecursionError):
        return None


def _question(said: _Object) -> tuple[str, list[Message]]:
    """The prompt and the turns of a record whose fields are not what they should be."""
    fields = dict(said)
    turns = fields.get("messages")
    found = []
    for turn in turns if isinstance(turns, list) and not isinstance(turns, _Object) else []:
        pairs = dict(turn) if isinstance(turn, _Object) else {}
        if isinstance(pairs.get("role"), str) and isinstance(pairs.get("content"), str):
            found.append(Message(role=pairs["role"], content=pairs["content"]))
    prompt = fields.get("prompt")
    return prompt if isinstance(prompt, str) else "", found


def _strings(said: Any) -> Iterator[tuple[str, str]]:
    """Every string with the name that it stands under, in whatever depth; of JSON within a string, its strings too."""
    left: list[tuple[str, Any, int]] = [("", said, 0)]
    while left:
        name, value, depth = left.pop()
        if isinstance(value, _Object):
            left += [(inner, one, depth) for inner, one in value]
        elif isinstance(value, list):
            left += [(name, one, depth) for one in value]
        elif isinstance(value, str):
            yield name, value
            if '"' in value and name not in _WORDS and depth < _DEEPEST:
                left.append((name, _parsed(value), depth + 1))
