"""From tokens to text, one token at a time, for streaming.

A character can be cut between tokens and a stop string between deltas, so a delta is held back until it
cannot change any more: the deltas of an answer always join to its text. Reads a tokenizer; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

CUT_CHARACTER = "�"  # what a decoder puts where bytes do not form a character (yet)


class TextStream:
    """The text of one answer as it grows. `decode` turns token ids into text."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._window = 0  # first token decoded again each time: some decoders treat a first token specially
        self._read = 0  # tokens before this one are fully in the text
        self._held = ""  # text that may turn out to begin a stop string
        self._parts: list[str] = []
        self.stopped = False  # a stop string was found; no delta follows

    @property
    def text(self) -> str:
        """All deltas so far, joined."""
        return "".join(self._parts)

    def feed(self, token: int) -> str:
        """Take the next token; return the text that is now certain (often empty)."""
        self._tokens.append(token)
        return self._emit(self._complete_text(final=False), final=False)

    def finish(self) -> str:
        """Return what was still held back: no token follows."""
        return self._emit(self._complete_text(final=True), final=True)

    def _complete_text(self, *, final: bool) -> str:
        if self._read == len(self._tokens):
            return ""
        seen = self._decode(self._tokens[self._window : self._read]) if self._read else ""
        whole = self._decode(self._tokens[self._window :])
        if whole.endswith(CUT_CHARACTER) and not final:
            return ""
        self._window, self._read = self._read, len(self._tokens)
        return whole[len(seen) :]

    def _emit(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text, self._held = self._held + new, ""
        if self._stop and text:
            ends = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
            if ends:
                self.stopped = True
                text = text[: min(ends)]
            elif not final:
                keep = max(_overlap(text, stop) for stop in self._stop)
                text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if text:
            self._parts.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
