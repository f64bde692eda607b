"""How commands speak: tables or JSON on stdout, progress and errors on stderr, none of it off a terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO, NoReturn, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from deploy.shown import escaped, readable, without_secrets


class PlainConsole(Console):
    """A console for which words are words: no markup, no emoji codes, nothing that a terminal obeys.

    Colours come as `Text` from our own code alone, and that is made of `readable` words too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(readable(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    def status(self, status: RenderableType, **options: Any) -> Status:
        return super().status(Text(readable(status)) if isinstance(status, str) else status, **options)


err = PlainConsole(stderr=True, soft_wrap=True)  # a pipe has no width: a line stays a line
out = PlainConsole()


class Format(StrEnum):
    table = "table"
    json = "json"


class CommandError(RuntimeError):
    """A command cannot be done: one line that says what, where and what next."""


def fail(message: str, code: int = 1) -> NoReturn:
    err.print(Text.assemble(("error:", "bold red"), " ", readable(without_secrets(message))), soft_wrap=True)
    raise SystemExit(code)


def show(rows: Sequence[Mapping[str, Any]], format: Format, empty: str = "nothing to show") -> None:
    """Rows as a table of plain words, or as one JSON array, exact but escaped."""
    if format is Format.json:
        print(escaped(json.dumps([dict(row) for row in rows], default=str, ensure_ascii=False, indent=2)))
        return
    if not rows:
        err.print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(Text(readable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(readable(_cell(value))) for value in row.values()))
    if out.is_terminal:
        out.print(table)
    else:  # a pipe has no width: do not fold what a program will read
        PlainConsole(width=10_000).print(table)


class _Terminal(io.RawIOBase):
    """JSON Lines for a person's eyes: the same values, with what a terminal would obey escaped."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        sys.stdout.write(escaped(bytes(data).decode()))
        return len(data)


def stdout() -> BinaryIO:
    """Where JSON Lines go: bytes as they are, but for a terminal."""
    return cast(BinaryIO, _Terminal()) if sys.stdout.isatty() else sys.stdout.buffer


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Any]:
    """A progress bar on stderr; yields `update(done, total=None, note=None)`."""
    columns = [
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        task = bars.add_task(readable(description), total=total)

        def update(done: float, total: float | None = None, note: str | None = None) -> None:
            bars.update(task, completed=done, total=total, description=readable(note or description))

        yield update
