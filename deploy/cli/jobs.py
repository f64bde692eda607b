"""`tuneloop jobs`: what is training, what is waited for, and asking for a job."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.commands import actor, publish
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from deploy.waiting import open_triggers
from schemas.events import TrainingRequested, TriggerCloseRequested
from schemas.policy import NO_WORSE
from streams.clickhouse import rows

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")

_JOBS = """
SELECT j.ts AS requested_at, j.model AS model, j.reason AS reason, j.job_id AS job,
    multiIf(d.decision != '', d.decision, e.outcome NOT IN ('', 'succeeded'), e.outcome,
            e.outcome = 'succeeded', 'being judged', p.phase != '', p.phase, 'queued') AS state,
    p.step AS step, p.steps AS steps, p.loss AS loss, p.time_left_s AS time_left_s,
    multiIf(d.reason != '', d.reason, e.reason) AS why, dateDiff('second', p.said_at, now64(3)) AS heartbeat_age_s
FROM (SELECT * FROM tuneloop.job_requested FINAL) AS j
LEFT JOIN (SELECT job_id, phase, step, steps, loss, time_left_s, ts AS said_at
           FROM tuneloop.job_progressed FINAL ORDER BY ts DESC LIMIT 1 BY job_id) AS p ON p.job_id = j.job_id
LEFT JOIN (SELECT * FROM tuneloop.job_ended FINAL) AS e ON e.job_id = j.job_id
LEFT JOIN (SELECT * FROM tuneloop.decision_made FINAL WHERE job_id != '') AS d ON d.job_id = j.job_id
ORDER BY j.ts
"""


@app.command("ls")
def ls(format: Format = Format.table) -> None:
    """Every job with its state, heartbeat, time left and outcome; then what asks for a job, and what that waits for."""
    client = context.clickhouse()
    show(rows(client, _JOBS), format, "no job yet: the first runs when a model has enough examples")
    if format is Format.table:
        show(open_triggers(client), format, "nothing asks for a job")


@app.command("triggers")
def triggers(format: Format = Format.table) -> None:
    """What asks for a job now, and what its job waits for or how it does."""
    show(open_triggers(context.clickhouse()), format, "nothing asks for a job")


@app.command("close")
def close(trigger: str, because: Annotated[str, typer.Option(help="the reason, for the history")]) -> None:
    """Close a trigger: it asks no more. One of the same kind may open again when another version serves."""
    found = [row for row in open_triggers(context.clickhouse()) if row["trigger"] == trigger]
    if not found:
        raise CommandError(f"no trigger {trigger!r} is open; `tuneloop jobs triggers` lists those that are")
    publish(context.bootstrap, TriggerCloseRequested(
        model=found[0]["model"], trigger_id=trigger, reason=because, actor=actor(),
    ))  # fmt: skip
    err.print(f"{trigger} ({found[0]['kind']} of {found[0]['model']}) is closed")


@app.command("request")
def request(
    model: str,
    reason: str = "asked for on the command line",
    from_base: Annotated[bool, typer.Option(help="train anew on all data, not from the production adapter")] = False,
    no_worse: Annotated[bool, typer.Option(help="a candidate that is no worse than what serves will do")] = False,
) -> None:
    """Ask for a job now, whatever the drift detector says; it starts once its other conditions hold."""
    if model not in context.settings.models:
        raise CommandError(f"no model {model!r} is configured; known: {', '.join(context.settings.models)}")
    identity = publish(context.bootstrap, TrainingRequested(
        model=model, reason=reason, from_base=from_base, accept=NO_WORSE if no_worse else "", actor=actor(),
    ))  # fmt: skip
    err.print(f"asked for ({identity}); follow it with `tuneloop jobs ls` or `tuneloop why {identity}`")
