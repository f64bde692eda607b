"""`tuneloop sql` and `tuneloop why`: asking ClickHouse, in SQL or by an id."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from deploy.why import chain
from streams.clickhouse import rows


def register(app: typer.Typer) -> None:
    app.command()(sql)
    app.command()(why)


def sql(
    query: Annotated[str, typer.Argument(help="e.g. \"SELECT * FROM tuneloop.lineage\"")],
    format: Format = Format.table,
) -> None:
    """Run a query against ClickHouse (database tuneloop: usage_daily, live_quality, lineage, and a table an event)."""
    client = context.clickhouse()
    client.database = "tuneloop"
    found: list[dict[str, Any]] = rows(client, query)
    show(found, format, "no rows")


def why(
    identity: Annotated[str, typer.Argument(metavar="ID", help="a drift's, job's, version's or event's id")],
    format: Format = Format.table,
) -> None:
    """What led to something and what followed from it, oldest first."""
    found = chain(context.clickhouse(), identity)
    if not found:
        raise CommandError(
            f"nothing is known of {identity!r}; give a drift's or job's id, MODEL@VERSION, or an event's ce_id "
            "(`tuneloop jobs ls`, `tuneloop models ls`)"
        )
    show(found, format)
    if format is Format.table:
        err.print("each line was caused by one above it; `--format json` has the ids in full")
