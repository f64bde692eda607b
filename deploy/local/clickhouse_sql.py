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
# After these words of an INSERT no data follows: it reads its rows elsewhere.
_ROWS_ELSEWHERE = {"SELECT", "WITH", "INFILE"}
_TO_ELSEWHERE = {"INTO", "OUTFILE", "PARALLEL", "SETTINGS"}
_STRING = re.compile(rb"""'(?:[^'\\]|\\.|'')*'""", re.DOTALL)
# A bracket that opens a row, a tuple or an array follows another bracket, a comma, or nothing: others call something.
_CALL = re.compile(rb"[^\s(\[{,;)\]}]\s*\(|\bselect\b", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """One statement. `data` is None unless it is an INSERT with VALUES or FORMAT; then `sql` ends before that word."""

    verb: str
    sql: bytes
    format: str | None = None
    data: bytes | None = None

    @property
    def answers(self) -> bool:
        """True when it produces a result set, even an empty one."""
        return self.verb in _READING or self.verb == "("

    @property
    def head(self) -> bytes:
        """What can be parsed as a statement by itself: without the data."""
        return self.sql if self.data is None else self.sql + b" FORMAT " + (self.format or "").encode()

    @property
    def rows_compute(self) -> bool:
        """True when the data is VALUES of which one may be more than a literal: a call, a query."""
        if self.data is None or (self.format or "").lower() != "values":
            return False
        return _CALL.search(_STRING.sub(b"0", self.data)) is not None

    @property
    def goes_on(self) -> bool:
        """True when more follows the semicolon that ends the rows of VALUES."""
        in_values = self.data is not None and (self.format or "").lower() == "values"
        return in_values and re.search(rb";\s*\S", _STRING.sub(b"0", self.data or b"")) is not None


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
        if word.text == "VALUES" and not word.after_dot_or_into:
            return Statement("INSERT", body[: word.start], "Values", body[word.end :])
        if word.text in _ROWS_ELSEWHERE and not word.after_dot_or_into:
            break
        if word.text == "FORMAT" and not word.after_dot_or_into:
            previous = word
    return Statement("INSERT", body)


def names_only(sql: bytes) -> bool:
    """True when nothing but names, words and strings follow the verb, and none of them sends the answer elsewhere."""
    for token in _tokens(sql.rstrip().removesuffix(b";")):
        kind, text = token.lastgroup, token.group()
        if kind in ("open", "close") or (kind == "other" and text not in b".,=%*"):
            return False
        if kind == "word" and text.decode().upper() in _TO_ELSEWHERE:
            return False
    return True


def described(sql: bytes) -> bytes | None:
    """What a DESCRIBE describes, as a SELECT from it, which has the same names in it; None for another statement."""
    tokens = [token for token in _tokens(sql) if token.lastgroup != "blank"]
    words = [token.group().decode().upper() if token.lastgroup == "word" else "" for token in tokens[:2]]
    if not words or words[0] not in ("DESCRIBE", "DESC"):
        return None
    last = tokens[1] if len(tokens) > 2 and words[1] == "TABLE" else tokens[0]
    return b"SELECT * FROM " + sql[last.end() :]


def _tokens(sql: bytes) -> Iterator[re.Match[bytes]]:
    position = 0
    while position < len(sql):
        token = _TOKEN.match(sql, position)
        if token is None:
            return
        position = token.end()
        yield token


def _last_format(words: Iterator[_Word]) -> str | None:
    found, previous = None, None
    for word in words:
        if previous == "FORMAT":
            found = word.raw
        previous = word.text
    return found


def _outer_words(body: bytes) -> Iterator[_Word]:
    """The words outside brackets, quotes and comments, in upper case; an opening bracket first counts as one."""
    depth, previous, seen = 0, b"", False
    for token in _tokens(body):
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
