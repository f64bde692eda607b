"""`tuneloop data synthesize`: more training rows from a teacher model."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from deploy import exporting
from deploy.cli.context import context
from deploy.cli.data import app, submit
from deploy.cli.output import CommandError, Format, err, progress, show
from schemas.policy import ModelPolicy
from streams import kafka

KEY_VARIABLE = "TUNELOOP_TEACHER_API_KEY"
MOST_FAILURES = 5


@app.command("synthesize")
def synthesize(
    model: Annotated[str, typer.Option(help="whose data is varied")],
    teacher: Annotated[str, typer.Option(help="base URL of any OpenAI-compatible endpoint, with /v1")],
    teacher_model: Annotated[str, typer.Option(help="the model to ask there")],
    each: Annotated[int, typer.Option(help="how many variants of each question", min=1)] = 2,
    limit: Annotated[int, typer.Option(help="at most so many questions; 0 = all")] = 0,
    format: Format = Format.table,
) -> None:
    """Have a teacher model ask known questions in other words; they train and never judge.

    Its key is read from TUNELOOP_TEACHER_API_KEY. People's questions (scrubbed) are sent to the teacher.
    """
    from deploy import synthesis

    corrections = context.settings.models.get(model, ModelPolicy()).corrections
    chosen = exporting.choose(context.clickhouse(), context.store, model, corrections=corrections)
    rows = list(synthesis.sources(context.store, chosen))[: limit or None]
    if not rows:
        raise CommandError(f"{model} has no training row that a person wrote; see `tuneloop data ls`")
    from openai import OpenAI  # here, not above: it would take every other command half a second

    client = OpenAI(base_url=teacher, api_key=os.environ.get(KEY_VARIABLE, "unused"), max_retries=2)
    made, failures = _ask(client, teacher_model, rows, each)
    if failures:
        err.print(f"{len(failures)} questions got no variant; the first: {failures[0]}")
    show([{"model": model, "questions": len(rows), "submitted": made, "failed": len(failures)}], format)


def _ask(client: Any, teacher_model: str, rows: list[dict[str, object]], each: int) -> tuple[int, list[str]]:
    """Returns how many records were submitted and what went wrong. Raises `CommandError` where nothing goes right."""
    producer, refused = kafka.producer(context.bootstrap, linger_ms=20), []  # type: ignore[var-annotated]
    from deploy import synthesis

    failures: list[str] = []
    made = 0
    with progress("asking the teacher", len(rows)) as update:
        for number, row in enumerate(rows, 1):
            try:
                for text in synthesis.variants(client, teacher_model, row, each):
                    submit(producer, synthesis.synthetic(row, text), refused)
                    made += 1
            except synthesis.TeacherError as error:
                failures.append(str(error))
                if not made and len(failures) >= MOST_FAILURES:
                    raise CommandError(f"stopped after {len(failures)} failures in a row: {failures[-1]}") from error
            update(number)
        left = producer.flush(60)
    if left or refused:
        raise CommandError(f"{left + len(refused)} records were not taken by Kafka; run it again, none is doubled")
    return made, failures
