"""`tuneloop sql` and `tuneloop why`: asking ClickHouse, in SQL or by an id."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from deploy.why import chain


def register(app: typer.Typer) -> None:
    app.command()(sql)
    app.command()(why)


def sql(
    query: Annotated[str, typer.Argument(help="one statement, e.g. \"SELECT * FROM tuneloop.lineage\"")],
    write: Annotated[bool, typer.Option("--write", help="let it change tables; without this it only reads")] = False,
    format: Format = Format.table,
) -> None:
    """Run a query against ClickHouse (database tuneloop: usage_daily, live_quality, lineage, and a table an event).

    It only reads, and for `query_seconds` and `query_memory_mb` at most, unless --write is given. The local ClickHouse
    takes no files, addresses or programs but what `allow_sources` in the settings names.
    """
    client = context.clickhouse(writes=write)
    client.database = "tuneloop"
    found: list[dict[str, Any]] = list(client.query(query, settings=_bounds(write)).named_results())
    show(found, format, "no rows")


def _bounds(write: bool) -> dict[str, Any]:
    """A reader's rights, for a ClickHouse that knows no analyst of ours; the local one enforces them itself."""
    settings = context.settings
    if write:
        return {}
    memory = settings.query_memory_mb * 1_000_000
    return {"readonly": 2, "max_execution_time": settings.query_seconds, "max_memory_usage": memory}


def why(
    identity: Annotated[str, typer.Argument(metavar="ID", help="a drift's, job's, version's or event's id")],
    format: Format = Format.table,
) -> None:
    """What led to something and what followed from it, oldest first."""
    found = chain(context.clickhouse(writes=False), identity)
    if not found:
        raise CommandError(
            f"nothing is known of {identity!r}; give a drift's or job's id, MODEL@VERSION, or an event's ce_id "
            "(`tuneloop jobs ls`, `tuneloop models ls`)"
        )
    show(found, format)
    if format is Format.table:
        err.print("each line was caused by one above it; `--format json` has the ids in full")
