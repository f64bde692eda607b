"""What is shown to people: addresses without what is secret in them, words without what a terminal would obey.

Pure. Whatever prints, logs or raises goes through here: `deploy/cli/output.py` for the command line.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from ipaddress import ip_address
from urllib.parse import urlsplit

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
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # A password with an unescaped slash ends the authority too early: what stands behind its colon is then no port.
    cut_short = "@" not in authority and re.search(r":(?!\d*$)", re.sub(r"\[[^\]]*\]", "", authority)) is not None
    if "@" in authority:
        rest = authority.rpartition("@")[2] + rest[len(authority) :]
    elif cut_short and "@" in rest:
        rest = rest.rpartition("@")[2]
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
        return split.scheme == "file" or split.hostname == "localhost" or ip_address(split.hostname or "").is_loopback
    except ValueError:  # a name, or no address at all
        return False


def readable(text: str) -> str:
    """Words without what a terminal obeys or hides: control characters, turned directions, what has no width.

    Each becomes U+FFFD, any blank a space, and marks beyond MOST_MARKS on one letter are left out. Line breaks and tabs
    stay.
    """
    if text.isascii() and text.isprintable():
        return text
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in "\n\t" or (character.isprintable() and character not in _UNSEEN):
            if marks <= MOST_MARKS:
                kept.append(character)
        else:
            kept.append(" " if category == "Zs" else REPLACEMENT)
    return "".join(kept)


def escaped(json_text: str) -> str:
    """JSON that says the same, with \\u escapes for all that `readable` would replace."""
    if json_text.isascii() and json_text.isprintable():
        return json_text
    return "".join(
        character if character == "\n" or (character.isprintable() and character not in _UNSEEN) else _escape(character)
        for character in json_text
    )


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
