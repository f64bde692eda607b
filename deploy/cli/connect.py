"""`tuneloop connect`: a snippet that connects another program, ready to paste.

The snippets are `deploy.snippets`; one more kind of client is one more function there.
"""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.addresses import kafka_config
from deploy.cli.context import context
from deploy.cli.output import CommandError
from deploy.clickhouse_login import analyst
from deploy.snippets import KAFKA_SNIPPETS, SNIPPETS, Access, KafkaAccess, openai, password_of
from streams.kafka_security import security

CLIENTS = (*SNIPPETS, *KAFKA_SNIPPETS, "openai")


def register(app: typer.Typer) -> None:
    app.command()(connect)


def connect(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help=", ".join(CLIENTS))],
    show: Annotated[bool, typer.Option("--show", help="put the secret itself into the snippet")] = False,
) -> None:
    """Print what to paste so that CLIENT talks to Tuneloop.

    curl, python, jdbc and grafana read ClickHouse's tables, as a user who may only read; kafka and kafkajs send a
    training record; openai asks a question and says how the answer was. The snippet reads the secret from its file when
    it runs. e.g. `tuneloop connect curl | bash`, `tuneloop connect grafana > tuneloop.yaml`
    """
    if client not in CLIENTS:
        raise CommandError(f"no snippet for {client!r}; there are: {', '.join(CLIENTS)}")
    settings = context.settings
    where, model = context.addresses, next(iter(settings.models))
    if client == "openai":
        print(openai(f"{where.http}/v1", model), end="")
    elif client in KAFKA_SNIPPETS:
        known = security() if show else None  # raises what says that there is no such file
        kafka = KafkaAccess(where.bootstrap, str(kafka_config(settings) or ""), model, known)
        print(KAFKA_SNIPPETS[client](kafka), end="")
    else:
        login = analyst(settings)
        try:
            password = password_of(login.password_file)
        except OSError as error:
            message = f"no password at {login.password_file} ({error.strerror}): `tuneloop up` makes it"
            raise CommandError(message) from error
        access = Access(where.clickhouse, login.user or "default", login.password_file, password if show else None)
        print(SNIPPETS[client](access), end="")
