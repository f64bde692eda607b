"""`tuneloop config show`: every setting, its value, and where it came from."""

from __future__ import annotations

from typing import Any

import msgspec
import typer

from deploy.cli.context import context
from deploy.cli.output import Format, show
from deploy.settings import SCALARS
from deploy.shown import readable, shown

app = typer.Typer(no_args_is_help=True, help="The settings in force.")


@app.command("show")
def show_config(format: Format = Format.table) -> None:
    """Every setting, its value and its source: flag > environment > file > default."""
    settings = context.settings
    rows = [
        {"setting": name, "value": _value(getattr(settings, name)), "source": settings.sources.get(name, "default")}
        for name in SCALARS
    ]
    for name, policy in settings.models.items():
        source = settings.sources.get("models", "default")
        for key, value in msgspec.to_builtins(policy).items():
            rows.append({"setting": f"models.{name}.{key}", "value": value, "source": source})
    show(rows, format)


def _value(value: Any) -> Any:
    return shown(value) if isinstance(value, str) else value


@app.command("path")
def path() -> None:
    """Where the data directory is."""
    print(readable(str(context.settings.data)))
