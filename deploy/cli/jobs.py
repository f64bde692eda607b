"""`tuneloop jobs`: what is training, what is waited for, and asking for a job."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.cli.commands import publish
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, show
from schemas.events import TrainingRequested
from schemas.policy import NO_WORSE
from streams.clickhouse import rows

app = typer.Typer(no_args_is_help=True, help="Fine-tuning jobs.")

_JOBS = """
SELECT j.ts AS requested_at, j.model AS model, j.reason AS reason, j.job_id AS job,
    multiIf(d.decision != '', d.decision, e.outcome IN ('failed', 'void'), e.outcome,
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
    """Every job with its state, heartbeat, time left and outcome; then the drifts that still wait."""
    client = context.clickhouse()
    show(rows(client, _JOBS), format, "no job yet: the first runs when a model has enough examples")
    waiting = rows(
        client,
        "SELECT model, drift_id, waits_for, ts AS said_at FROM tuneloop.job_deferred FINAL "
        "WHERE drift_id NOT IN (SELECT causation_id FROM tuneloop.job_requested) "
        "ORDER BY ts DESC LIMIT 1 BY model, drift_id",
    )
    if waiting and format is Format.table:
        show(waiting, format)


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
        model=model, reason=reason, from_base=from_base, accept=NO_WORSE if no_worse else "",
    ))  # fmt: skip
    err.print(f"asked for ({identity}); follow it with `tuneloop jobs ls` or `tuneloop why {identity}`")
