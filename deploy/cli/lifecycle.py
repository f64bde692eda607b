"""`up`, `down`, `status`, `logs`, `run`: the life of the processes."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy import live_quality, local_run, waiting
from deploy.addresses import metrics_urls
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from deploy.lag import lags
from deploy.local import supervise
from deploy.processes import CONSUMERS, run
from deploy.scrape import Said, scrape
from deploy.settings import Settings
from deploy.shown import readable


def register(app: typer.Typer) -> None:
    for command in (up, down, status, logs, rebuild):
        app.command()(command)
    app.command(name="run")(run_process)


def up(timeout_s: Annotated[float, typer.Option(help="how long to wait until all is ready")] = 180.0) -> None:
    """Start every part that has no address of its own, and wait until all are ready."""
    settings = context.settings
    began = time.monotonic()
    for line in local_run.in_force(settings):
        err.print(line)
    with local_run.StartDisplay(err) as display:
        local_run.up(settings, display.on_state, display.on_note, timeout_s)
    where = local_run.where(settings)
    rows = [
        {"part": "OpenAI endpoint", "address": where["serve"]},
        {"part": "Kafka", "address": where["kafka"]},
        {"part": "ClickHouse", "address": where["clickhouse"]},
        {"part": "data", "address": str(settings.data)},
    ]
    err.print(f"up in {time.monotonic() - began:.0f} s; next: `tuneloop status`, `tuneloop data add FILE --model NAME`")
    show(rows, Format.table)


def down() -> None:
    """End what `up` started, and nothing else."""
    settings = context.settings
    with local_run.StartDisplay(err, verb="stopping") as display:
        supervise.stop(settings.data, display.on_state)
    err.print(f"down; all data stays in {settings.data}, `tuneloop up` resumes there")


def status(format: Format = Format.table) -> None:
    """What runs, where, since when, how fast, what it dropped or refused, how far it lags; what each model waits for.

    `records_per_s` is over the last ten seconds (`serve`: requests); `dropped` and `dead` since the process started.
    """
    settings = context.settings
    states = supervise.status(settings.data)
    if not states:
        raise CommandError(f"nothing was started in {settings.data}; start it with `tuneloop up`")
    said = _figures(settings, states)
    silent = [state.name for state in states if state.name not in said or said[state.name].lag is None]
    behind = lags(context.addresses.bootstrap, silent)
    where = local_run.where(settings)
    rows = [status_row(settings, state, where, said.get(state.name, NOTHING_SAID), behind) for state in states]
    show(rows if format is Format.json else as_table(rows), format)
    for row in rows:
        if row["reason"]:
            err.print(f"{row['process']} ended: {row['reason']}")
    if any(state.name == "monitor" and state.status == "ready" for state in states):
        lines = live_quality.in_time(
            lambda: context.clickhouse(writes=False),
            lambda client: waiting.told(client, settings.models, context.store),
            lambda client: live_quality.unknown(client, settings.models),
        )  # fmt: skip
        for line in lines:
            err.print(line)
    if any(state.status not in ("ready",) for state in states):
        raise SystemExit(3)


def rebuild() -> None:
    """Fill ClickHouse again from the topics' beginnings, after rows were lost. What is there stays as it is."""
    from streams.monitor.land import REBUILDS

    context.clickhouse().command(f"INSERT INTO {REBUILDS} VALUES (now64(3))")
    settings = context.settings
    if any(state.name == "monitor" and state.pid is not None for state in supervise.status(settings.data)):
        supervise.restart(settings.data, "monitor")
        err.print("monitor reads all topics anew; `tuneloop status` shows how far it lags behind")
    else:
        err.print("monitor reads all topics anew once it starts again: restart it")


COLOURS = re.compile(r"\x1b\[[0-9;]*m")
NOTHING_SAID = Said(None, None, None, None)


def _figures(settings: Settings, states: list[supervise.State]) -> dict[str, Said]:
    """What each running process says of itself."""
    running = {state.name for state in states if state.pid is not None}
    if settings.serve_replicas > 1:
        running.discard("serve")  # one replica answers, and nobody knows which
    return scrape({name: url for name, url in metrics_urls(settings).items() if name in running})


def status_row(
    settings: Settings, state: supervise.State, where: dict[str, str], said: Said, behind: dict[str, int | None]
) -> dict[str, Any]:
    """One process's line of `status`."""
    up_s = round(time.time() - state.started_at) if state.started_at and state.status == "ready" else None
    return {
        "process": state.name, "status": state.status, "pid": state.pid, "address": where.get(state.name),
        "up_s": up_s, "restarts": state.restarts, "records_per_s": said.records_per_s, "dropped": said.dropped,
        "dead": said.dead, "lag": behind.get(state.name) if said.lag is None else said.lag,
        "log": str(supervise.log_path(settings.data, state.name)),
        "reason": supervise.why_ended(settings.data, state) if state.status != "ready" else "",
    }  # fmt: skip


def as_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `status` that a table has room for: `tuneloop logs PROCESS` finds the log, and reasons are told below."""
    return [{name: value for name, value in row.items() if name not in ("log", "reason")} for row in rows]


def logs(
    process: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as it grows")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n")] = 100,
) -> None:
    """The log of one process."""
    path = Path(supervise.log_path(context.settings.data, process))
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.log"))) or "none yet"
        raise CommandError(f"no log of {process!r} at {path}; there are: {names}")
    command = ["tail", f"-n{lines}", *(["-F"] if follow else []), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="replace") as tail:
        assert tail.stdout is not None
        try:
            for line in tail.stdout:
                print(readable(COLOURS.sub("", line)), end="", flush=follow)
        finally:
            tail.terminate()  # whoever reads has gone: it would wait for the log to grow


def run_process(
    process: Annotated[str, typer.Argument(help=", ".join(CONSUMERS))],
    metrics_port: Annotated[int | None, typer.Option(help="serve /metrics there; 0: nowhere (the default)")] = None,
) -> None:
    """Run one process in the foreground, as a container does."""
    if process not in CONSUMERS:
        raise CommandError(f"no process {process!r}; there are: {', '.join(CONSUMERS)}")
    context.flags["metrics_port"] = metrics_port
    run(process, context.settings)
