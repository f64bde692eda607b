"""What a text must be to teach anything, whatever its language: repaired, not empty, not noise, not a loop."""

from __future__ import annotations

import re
import unicodedata
import zlib

import ftfy

from schemas.identity import without_heaps

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
# No such encoding has these at all: Chinese, Japanese, Korean, pictures.
_NOWHERE = "、。「」ぁ-ゖァ-ヺー一-鿿가-힣\U0001f300-\U0001faff"
_DOUBTFUL = re.compile(f"[^ -~{_NOWHERE}]")


def repair(text: str) -> str:
    """Mended encoding, NFC, no control characters, trimmed."""
    if (text.isascii() and text.isprintable()) or _sound(text):
        return text.strip()
    for _ in range(5):  # what one pass mends or trims can change how the rest reads
        mended = ftfy.fix_text(text, normalization=None)
        mended = unicodedata.normalize("NFC", without_heaps(mended)).strip()
        if mended == text:
            break
        text = mended
    return text


def _sound(text: str) -> bool:
    """Whether a text is sound for sure, found sooner than by ftfy.

    Text that was decoded wrongly has doubtful characters side by side, or with one other between them.
    """
    line = text.replace("\n", " ").replace("\t", " ")
    if "&" in line or not line.isprintable():
        return False
    last = -4
    for match in _DOUBTFUL.finditer(line):
        if match.group() not in _SOUND or match.start() - last < 4:
            return False
        last = match.start()
    return True


def repetitive(text: str) -> bool:
    """True where few different words, one character or one phrase make up a long text."""
    # A run of 30 holds one of these stretches of 15: where none has the same ends and middle there is none to look for.
    same = any(one == other == third for one, other, third in zip(text[::15], text[7::15], text[14::15], strict=False))
    if same and _RUN.search(text):
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
