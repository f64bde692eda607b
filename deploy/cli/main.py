"""`tuneloop`: the command line. Each noun has a module; this one holds the global flags and the way out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException

from deploy.bases.add import BaseError
from deploy.cli import ask, bases, config, data, dlq, forget, jobs, lifecycle, models
from deploy.cli.context import context
from deploy.cli.output import CommandError, fail
from deploy.exporting import ExportError
from deploy.local.errors import LocalPartError
from deploy.local.supervise import SupervisorError
from deploy.settings import SettingsError
from deploy.version_lineage import LineageError
from streams.artifacts import ArtifactError
from streams.replay import ReplayError

app = typer.Typer(
    name="tuneloop", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, help="Your app's feedback, streamed back into the model.",
)
lifecycle.register(app)
ask.register(app)
app.command()(forget.forget)
app.add_typer(models.app, name="models")
app.add_typer(bases.app, name="base")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(dlq.app, name="dlq")
app.add_typer(config.app, name="config")


@app.callback()
def flags(
    config: Annotated[str | None, typer.Option(help="settings file (default: tuneloop.toml)")] = None,
    data_dir: Annotated[str | None, typer.Option(help="where all data and run files lie")] = None,
    kafka_bootstrap: Annotated[str | None, typer.Option(help="HOST:PORT of a Kafka; none is started then")] = None,
    clickhouse_url: Annotated[str | None, typer.Option(help="URL of a ClickHouse; none is started then")] = None,
    http_port: Annotated[int | None, typer.Option(help="port of the OpenAI-compatible endpoint")] = None,
) -> None:
    context.flags = {
        "config": config, "data_dir": data_dir, "kafka_bootstrap": kafka_bootstrap,
        "clickhouse_url": clickhouse_url, "http_port": http_port,
    }  # fmt: skip


def main() -> None:
    """Run a command; an expected error is one line and exit status 1."""
    try:
        app()
    except (CommandError, SettingsError, SupervisorError, LocalPartError, BaseError, ReplayError,
            LineageError, ExportError, ArtifactError) as error:
        fail(str(error))
    except KafkaException as error:
        fail(f"Kafka: {error.args[0].str()}; is it up? (`tuneloop status`)")
    except ClickHouseError as error:
        fail(f"ClickHouse: {str(error).splitlines()[0]}")
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        fail("interrupted", 130)


if __name__ == "__main__":
    main()
