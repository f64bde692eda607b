"""`tuneloop`: the command line. Each noun has a module; this one holds the global flags and the way out.

Only the modules of commands that are named are imported: with all of them each call would cost a second.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any

import typer

from deploy.cli.context import context
from deploy.cli.output import err, fail
from deploy.local.folders import keep_private
from deploy.shown import without_secrets

# In the order of `--help`.
VERBS = {
    "lifecycle": ("up", "down", "status", "logs", "rebuild", "run"), "ask": ("sql", "why"), "connect": ("connect",),
    "forget": ("forget",),
}  # fmt: skip
# The first module has the noun's application, which others add to.
NOUNS = {
    "models": ("models",), "base": ("bases",), "data": ("data", "synthesize"), "jobs": ("jobs",), "dlq": ("dlq",),
    "config": ("config",),
}  # fmt: skip
# Errors that are one line for whoever meets them, by the module that has the class.
EXPECTED = {
    "deploy.cli.output": "CommandError", "deploy.settings": "SettingsError", "deploy.bases.add": "BaseError",
    "deploy.local.supervise": "SupervisorError", "deploy.local.errors": "LocalPartError",
    "deploy.version_lineage": "LineageError", "deploy.exporting": "ExportError", "streams.artifacts": "ArtifactError",
    "streams.replay": "ReplayError", "streams.kafka_security": "KafkaConfigError",
    "streams.object_store": "ObjectStoreError",
}  # fmt: skip


def command_line(words: Sequence[str] = ()) -> typer.Typer:
    """The commands that `words` name (one too many does no harm); all of them where none is named."""
    app = typer.Typer(
        name="tuneloop", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
        rich_markup_mode=None, help="Your app's feedback, streamed back into the model.",
    )
    app.callback()(flags)
    known = {*NOUNS, *(verb for verbs in VERBS.values() for verb in verbs)}
    wanted = known.intersection(words) or known
    for module, verbs in VERBS.items():
        if wanted.intersection(verbs):
            importlib.import_module(f"deploy.cli.{module}").register(app)
    for noun, modules in NOUNS.items():
        if noun in wanted:
            first, *_ = [importlib.import_module(f"deploy.cli.{module}") for module in modules]
            app.add_typer(first.app, name=noun)
    return app


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


def expected(error: Exception) -> str | None:
    """What to say of an error that may happen; None for any other. Whoever raised it has its module loaded."""
    for module, name in EXPECTED.items():
        if isinstance(error, _loaded(module, name)):
            return str(error)
    if isinstance(error, _loaded("confluent_kafka", "KafkaException")):
        return f"Kafka: {error.args[0].str()}; is it up? (`tuneloop status`)"
    if isinstance(error, _loaded("clickhouse_connect.driver.exceptions", "ClickHouseError")):
        return f"ClickHouse: {str(error).splitlines()[0]}"
    return None


def _loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, ())


def main() -> None:
    """Run a command; an expected error is one line and exit status 1."""
    keep_private()
    sys.excepthook = tell_defect
    try:
        command_line(sys.argv[1:])()
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        said = expected(error)
        if said is None:
            raise
        fail(said)


def tell_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody expected, as Python tells it, but in plain words."""
    err.print(without_secrets("".join(traceback.format_exception(kind, error, trace))))


if __name__ == "__main__":
    main()
