"""What a text must be to teach anything, whatever its language: repaired, not empty, not noise, not a loop."""

from __future__ import annotations

import re
import zlib
from operator import eq

import ftfy

# Shares and counts below which only noise was seen; a short text is never judged by them.
LEAST_LETTERS = 0.4
LONG_ENOUGH = 24
LEAST_DIFFERENT_WORDS = 0.2
MOST_COMPRESSED = 6.0
_RUN = re.compile(r"(\S)\1{29}")
# What is a letter, a digit or space in ASCII, where most texts are looked through byte by byte.
_PLAIN = bytes(code for code in range(128) if chr(code).isalnum() or chr(code).isspace())


# Letters and signs that ftfy leaves as they are wherever they stand by themselves: no encoding that it knows has one as
# the first byte of a longer character (which a space or a question mark after it might stand for the rest of).
_SOUND = frozenset("ÄÖÜäöüßéèêëáàíìóòúùñçøæœïîôûÉÈÇØ€—·°§£¿¡«»½¼²³µ")
_BEYOND_ASCII = re.compile("[^ -~]")


def repair(text: str) -> str:
    """Mended encoding, NFC, no control characters, trimmed."""
    if (text.isascii() and text.isprintable()) or _sound(text):
        return text.strip()
    for _ in range(5):  # what one pass mends or trims can change how the rest reads
        mended = ftfy.fix_text(text, normalization="NFC").strip()
        if mended == text:
            break
        text = mended
    return text


def _sound(text: str) -> bool:
    """Whether a text is sound for sure: to have ftfy find that takes it ten times as long.

    Text that was decoded wrongly has characters beyond ASCII side by side, or with one other between them.
    """
    line = text.replace("\n", " ").replace("\t", " ")
    if "&" in line or not line.isprintable():
        return False
    last = -4
    for match in _BEYOND_ASCII.finditer(line):
        if match.group() not in _SOUND or match.start() - last < 4:
            return False
        last = match.start()
    return True


def repetitive(text: str) -> bool:
    """True where few different words, one character or one phrase make up a long text."""
    # A run of 30 holds both ends of one of these stretches of 15: without such a stretch there is none to look for.
    if any(map(eq, text[::15], text[14::15])) and _RUN.search(text):
        return True
    words = text.split()
    if len(words) >= 30 and len(set(words)) / len(words) < LEAST_DIFFERENT_WORDS:
        return True
    if len(text) < 400:
        return False
    data = text.encode()
    return len(data) / len(zlib.compress(data, 1)) > MOST_COMPRESSED


def noise(text: str) -> bool:
    """True where a text is mostly neither letters, digits nor space, in any script."""
    if len(text) < LONG_ENOUGH:
        return False
    if text.isascii():
        plain = len(text) - len(text.encode().translate(None, _PLAIN))
    else:
        plain = sum(character.isalnum() or character.isspace() for character in text)
    return plain < LEAST_LETTERS * len(text)
