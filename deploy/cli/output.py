"""How commands speak: tables or JSON on stdout, progress and errors on stderr, none of it off a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

err = Console(stderr=True, soft_wrap=True)  # a pipe has no width: a line stays a line
out = Console()


class Format(StrEnum):
    table = "table"
    json = "json"


class CommandError(RuntimeError):
    """A command cannot be done: one line that says what, where and what next."""


def fail(message: str, code: int = 1) -> NoReturn:
    err.print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def show(rows: Sequence[Mapping[str, Any]], format: Format, empty: str = "nothing to show") -> None:
    """Rows as a table, or as one JSON array."""
    if format is Format.json:
        json.dump([dict(row) for row in rows], sys.stdout, default=str, ensure_ascii=False, indent=2)
        print()
        return
    if not rows:
        err.print(empty)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(_cell(value)) for value in row.values()))
    if out.is_terminal:
        out.print(table)
    else:  # a pipe has no width: do not fold what a program will read
        Console(width=10_000).print(table)


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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        task = bars.add_task(description, total=total)

        def update(done: float, total: float | None = None, note: str | None = None) -> None:
            bars.update(task, completed=done, total=total, description=note or description)

        yield update
