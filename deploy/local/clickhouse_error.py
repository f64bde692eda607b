"""ClickHouse's errors as its clients know them: a code, and a text that starts with it. Pure."""

from __future__ import annotations


class EngineError(Exception):
    """ClickHouse's own error: its code and its text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def denied(what: str) -> EngineError:
    """The refusal of a request that the engine itself would carry out."""
    return EngineError(497, f"Code: 497. DB::Exception: {what}. (ACCESS_DENIED)")


def too_large(what: str) -> EngineError:
    """The refusal of a request that is larger than this server reads."""
    return EngineError(307, f"Code: 307. DB::Exception: {what}. (TOO_MANY_BYTES)")
