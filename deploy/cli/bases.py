"""`tuneloop base`: the base models that adapters stand on."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.bases.add import take_in
from deploy.cli.commands import decision_on, publish
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from streams.register import read_registry

app = typer.Typer(no_args_is_help=True, help="Base models.")


@app.command("ls")
def ls(format: Format = Format.table) -> None:
    """The registered bases."""
    _, bases = read_registry(context.bootstrap)
    rows = [
        {
            "base": base.model, "architecture": base.architecture, "parameters": base.parameters,
            "context_tokens": base.context_tokens, "digest": base.digest[:12], "path": base.path,
        }
        for base in bases.values()
    ]  # fmt: skip
    show(rows, format, "no base is registered yet; add one with `tuneloop base add NAME SOURCE`")


@app.command("add")
def add(
    name: str,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="folder in Hugging Face layout, or hf:ORG/NAME@REVISION")
    ],
) -> None:
    """Check a base, copy it into the artifact store and register it."""
    with err.status(f"taking {source} in"):
        command = take_in(name, source, context.store)
    _, known = read_registry(context.bootstrap)
    if name in known and known[name].digest == command.digest:
        err.print(f"{name} is registered already, with the same files (digest {command.digest[:12]})")
        return
    decision = decision_on(context.clickhouse(), publish(context.bootstrap, command))
    if decision["decision"] != "base-added":
        raise CommandError(decision["reason"])
    err.print(f"{name}: {command.architecture}, {command.parameters:,} parameters, digest {command.digest[:12]}")
    err.print(f"next: set `base = \"{name}\"` under [models.NAME] in tuneloop.toml")
