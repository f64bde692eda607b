"""`tuneloop connect`: a snippet that connects another program, ready to paste.

The snippets are `deploy.snippets`; one more kind of client is one more function there.
"""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.context import context
from deploy.cli.output import CommandError
from deploy.clickhouse_login import analyst
from deploy.snippets import SNIPPETS, Access, password_of


def register(app: typer.Typer) -> None:
    app.command()(connect)


def connect(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help=", ".join(SNIPPETS))],
    show: Annotated[bool, typer.Option("--show", help="put the password itself into the snippet")] = False,
) -> None:
    """Print what to paste so that CLIENT reads Tuneloop's tables, as a user who may only read.

    The snippet reads the password from its file when it runs. e.g. `tuneloop connect curl | bash`,
    `tuneloop connect grafana > /etc/grafana/provisioning/datasources/tuneloop.yaml`
    """
    if client not in SNIPPETS:
        raise CommandError(f"no snippet for {client!r}; there are: {', '.join(SNIPPETS)}")
    settings = context.settings
    login = analyst(settings)
    try:
        password = password_of(login.password_file)
    except OSError as error:
        missing = f"no password at {login.password_file} ({error.strerror}): `tuneloop up` makes it"
        raise CommandError(missing) from error
    shown = password if show else None
    access = Access(context.addresses.clickhouse, login.user or "default", login.password_file, shown)
    print(SNIPPETS[client](access), end="")
