"""What an HTTP request asks of ClickHouse, read from its bytes: which statement, which format, where data begins.

Pure. A client may send the SQL of an INSERT and its data, binary or not, as one run of bytes: only a look at the
tokens says where one ends and the other begins. Leaves the parsing of SQL proper to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
       |(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`)
       |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
       |(?P<open>[(\[{])|(?P<close>[)\]}])
       |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_READING = {"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "FROM"}
_HARMLESS = _READING - {"CHECK"} | {"USE", "SET"}
# Before these words of an INSERT no data of a named format follows: it carries its rows or reads them elsewhere.
_ROWS_WITHIN = {"VALUES", "SELECT", "WITH", "INFILE"}


@dataclass(frozen=True)
class Statement:
    """One statement. `data` is None unless it is an INSERT with a FORMAT clause; then `sql` ends before FORMAT."""

    verb: str
    sql: bytes
    format: str | None = None
    data: bytes | None = None

    @property
    def answers(self) -> bool:
        """True when it produces a result set, even an empty one."""
        return self.verb in _READING or self.verb == "("

    @property
    def harmless(self) -> bool:
        """True when GET may carry it."""
        return self.verb in _HARMLESS or self.verb == "("


@dataclass(frozen=True)
class _Word:
    text: str  # in upper case
    raw: str
    start: int
    end: int
    after_dot_or_into: bool


def read_statement(body: bytes) -> Statement:
    """Reads the head of `body`: as far as its FORMAT clause for an INSERT, to its end for anything else."""
    words = _outer_words(body)
    first = next(words, None)
    if first is None:
        return Statement("", body)
    if first.text == "INSERT":
        return _read_insert(body, words)
    return Statement(first.text, body, _last_format(words))


def _read_insert(body: bytes, words: Iterator[_Word]) -> Statement:
    previous = None
    for word in words:
        if previous is not None:
            data_at = _skip_line_end(body, word.end)
            return Statement("INSERT", body[: previous.start], word.raw, body[data_at:])
        if word.text in _ROWS_WITHIN and not word.after_dot_or_into:
            break
        if word.text == "FORMAT" and not word.after_dot_or_into:
            previous = word
    return Statement("INSERT", body)


def _last_format(words: Iterator[_Word]) -> str | None:
    found, previous = None, None
    for word in words:
        if previous == "FORMAT":
            found = word.raw
        previous = word.text
    return found


def _outer_words(body: bytes) -> Iterator[_Word]:
    """The words outside brackets, quotes and comments, in upper case; an opening bracket first counts as one."""
    depth, previous, position, seen = 0, b"", 0, False
    while position < len(body):
        token = _TOKEN.match(body, position)
        if token is None:
            return
        position = token.end()
        kind, text = token.lastgroup, token.group()
        if kind == "blank":
            continue
        if kind == "open":
            if not seen:
                yield _Word("(", "(", token.start(), token.end(), False)
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif kind == "word" and depth == 0:
            named = previous == b"." or previous.upper() in (b"INTO", b"TABLE")
            yield _Word(text.decode().upper(), text.decode(), token.start(), token.end(), named)
        seen, previous = True, text


def _skip_line_end(body: bytes, position: int) -> int:
    """Past blanks and one line end after the format's name, where ClickHouse too lets the data begin."""
    while body[position : position + 1] in (b" ", b"\t", b"\f"):
        position += 1
    if body[position : position + 1] == b";":
        position += 1
    if body[position : position + 2] == b"\r\n":
        return position + 2
    return position + 1 if body[position : position + 1] == b"\n" else position
