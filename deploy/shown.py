"""What is shown to people: addresses without what is secret in them, words without what a terminal would obey.

Pure. Whatever prints, logs or raises goes through here: `deploy/cli/output.py` for the command line.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import urlsplit

from deploy.local.ports import is_loopback

# Parameters of an address that are no secrets; the values of all others are left out.
HARMLESS = frozenset({"region", "scheme", "endpoint_override", "database", "secure", "verify", "compression"})
_PARAMETER = re.compile(r"([?&;])([^=&;?]*)=([^&;]*)")
_URL = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^\s'\"<>`]+")
# Shown as nothing, or as a blank, by most terminals, though Unicode calls them letters, marks or symbols: two texts
# that differ look alike, and whole texts can be hidden in them (variation selectors).
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xE0100, 0xE01F0)}
_UNSEEN |= {chr(code) for code in range(0xFE00, 0xFE0F)}
REPLACEMENT = "\ufffd"
MOST_MARKS = 4  # on one letter: Vietnamese takes two, Thai three; a hundred of them write over the lines above


def shown(address: str) -> str:
    """An address, or several with commas, without user, password and secret parameters."""
    return _shown(address) if "://" in address else ",".join(map(_shown, address.split(",")))


def _shown(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    if not separator:
        if "@" not in address or address.startswith(("/", ".", "~")):
            return address
        scheme, rest = "", address
    # To the last @, not to the end of what a URL's authority is by the book: a password may hold a slash that somebody
    # forgot to escape. Without a colon before it there is no password.
    before, at, after = rest.rpartition("@")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if at and ("@" in authority or ":" in before):
        rest = after
    return scheme + separator + _PARAMETER.sub(_parameter, rest)


def _parameter(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}={found[3] if found[2].lower() in HARMLESS else '…'}"


def without_secrets(text: str) -> str:
    """A text with every URL in it as `shown`."""
    return _URL.sub(lambda found: shown(found[0]), text) if "://" in text else text


class WithoutSecrets(logging.Formatter):
    """A log's lines, tracebacks included, with every URL as `shown`."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def is_local(address: str) -> bool:
    """Whether an address (URL, HOST, HOST:PORT, or several with commas) leads to this machine alone."""
    return all(_loopback(part.strip()) for part in address.split(","))


def _loopback(address: str) -> bool:
    try:
        split = urlsplit(address if "://" in address else f"//{address}")
        return split.scheme == "file" or is_loopback(split.hostname or "")
    except ValueError:  # a name, or no address at all
        return False


def readable(text: str) -> str:
    """Words without what a terminal obeys or hides: control characters, turned directions, what has no width.

    Each becomes U+FFFD, any blank a space, and marks beyond MOST_MARKS on one letter are left out. Line breaks and tabs
    stay.
    """
    return "".join(
        character if plain or character in "\n\t" else _instead(character) for character, plain in _seen(text)
    )


def escaped(json_text: str) -> str:
    """JSON that says the same, with \\u escapes for all that `readable` would replace."""
    return "".join(
        character if plain or character == "\n" else _escape(character) for character, plain in _seen(json_text)
    )


def _seen(text: str) -> Iterable[tuple[str, bool]]:
    """Each character, and whether it is shown as what it is."""
    if text.isascii() and text.isprintable():
        return [(text, True)]
    seen, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        seen.append((character, character.isprintable() and character not in _UNSEEN and marks <= MOST_MARKS))
    return seen


def _instead(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "
    return "" if character.isprintable() and character not in _UNSEEN else REPLACEMENT


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
