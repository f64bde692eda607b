"""Blotting a subject's id out of text: of logs on this machine, of an error before it is logged.

No line of ours says whose a record is. But a library's error may quote a statement or an address with the id in it. An
id is overwritten where it stands, by as many asterisks: whoever appends to the file meanwhile is not disturbed.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

from streams.erase.subject import spellings

log = logging.getLogger(__name__)
_LOG = re.compile(r"\.(log|out|err)(\.\d+)?$")
CHUNK_BYTES = 4 * 1024 * 1024
_OVERLAP_BYTES = 64 * 1024
# An id as short as this may be any word: it counts in quotes, or behind an equals sign, alone.
_SHORT = 4
_WORD = rb"\w\x80-\xff@-"


def blot_out(folders: Iterable[Path], subject_id: str) -> int:
    """Overwrite the id in every file below these folders; returns in how many places it stood."""
    pattern = _pattern(subject_id)
    return sum(_blotted(path, pattern) for folder in folders for path in _files(folder))


def without(text: str, subject_id: str) -> str:
    """The text with asterisks for the id."""
    if not subject_id:
        return text
    return _pattern(subject_id).sub(b"*", text.encode(errors="replace")).decode(errors="replace")


def _pattern(subject_id: str) -> re.Pattern[bytes]:
    addressed = {re.escape(form(subject_id, safe="").encode()) for form in (quote, quote_plus)}
    ways = b"|".join([spellings(subject_id), *sorted(addressed)])
    if len(subject_id) <= _SHORT:
        return re.compile(rb"(?<=[\"'=])(?:" + ways + rb")(?=[\"'&\\\s])")
    return re.compile(rb"(?<![" + _WORD + rb"])(?:" + ways + rb")(?![" + _WORD + rb"])")


def _files(folder: Path) -> Iterator[Path]:
    """Logs alone: Ray keeps sockets, links and the state of what runs beside its own."""
    for path in sorted(folder.rglob("*")):
        try:
            if _LOG.search(path.name) and stat.S_ISREG(path.lstat().st_mode):
                yield path
        except FileNotFoundError:  # a log that was just rotated away
            continue


def _blotted(path: Path, pattern: re.Pattern[bytes]) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):  # somebody else's, or a link by now: no reason to go no further
            log.error("%s could not be looked through: %s", path, error.strerror)
        return 0
    places, start = 0, 0
    try:
        while data := os.pread(file, CHUNK_BYTES + _OVERLAP_BYTES, start):
            for found in pattern.finditer(data):
                begin, end = start + found.start(), start + found.end()
                if end <= os.fstat(file).st_size:  # else it was cut meanwhile, and what stood there is gone
                    places += os.pwrite(file, b"*" * (end - begin), begin) > 0
            start += CHUNK_BYTES
    finally:
        os.close(file)
    return places
