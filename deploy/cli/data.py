"""`tuneloop data`: feeding a model with examples, following them, and taking them out again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from clickhouse_connect.driver.client import Client
from confluent_kafka import Producer

from deploy import exporting, lineage
from deploy.cli.context import context
from deploy.cli.output import CommandError, Format, err, progress, show, stdout
from deploy.exporting import Chosen, FileFormat, Kind, SftForm, Split, Wanted, whole
from deploy.importing import Columns, FileError, Refusal, read
from schemas.events import RecordSubmitted
from schemas.identity import partition_of, subject_of_record
from schemas.policy import ModelPolicy
from schemas.topics import BY_NAME
from streams import kafka
from streams.artifacts import ArtifactStore
from streams.clickhouse import rows
from streams.prepare.people import TEST_BY

app = typer.Typer(no_args_is_help=True, help="Training data.")
SHOWN_REFUSALS = 20
_PARTITIONS = BY_NAME["training.raw"].partitions


@app.command("add")
def add(
    file: Path,
    model: Annotated[str, typer.Option(help="the model that learns from it")],
    prompt_column: Annotated[str, typer.Option(help="column or field with the question")] = "prompt",
    completion_column: Annotated[str, typer.Option(help="column or field with the right answer")] = "completion",
    subject_column: Annotated[str, typer.Option(help="column or field that says whose words a row holds")] = "",
    time_column: Annotated[str, typer.Option(help="column or field that says when; without it a row is old")] = "time",
    format: Format = Format.table,
) -> None:
    """Submit a file: JSONL with `messages` or `prompt`/`completion`, or CSV with named columns.

    Adding a file again changes nothing: a row's id is the hash of its content.
    """
    if model not in context.settings.models:
        raise CommandError(f"no model {model!r} is configured; known: {', '.join(context.settings.models)}")
    columns = Columns(prompt_column, completion_column, subject_column, time_column)
    try:
        sent, refused = _submit(file, model, columns)
    except FileError as error:
        raise CommandError(str(error)) from error
    for refusal in refused[:SHOWN_REFUSALS]:
        err.print(f"row {refusal.row}: {refusal.field}: expected {refusal.expected}")
    if len(refused) > SHOWN_REFUSALS:
        err.print(f"… and {len(refused) - SHOWN_REFUSALS} more refused rows")
    show([{"model": model, "submitted": sent, "refused": len(refused)}], format)
    if refused:
        raise SystemExit(1 if not sent else 2)


def _submit(file: Path, model: str, columns: Columns) -> tuple[int, list[Refusal]]:
    client = kafka.producer(context.bootstrap, linger_ms=20)
    refused: list[Refusal] = []
    failed: list[str] = []
    sent = 0
    with progress(f"submitting {file.name}") as update:
        for sent_or_not, item in enumerate(read(file, model, columns), 1):
            if isinstance(item, Refusal):
                refused.append(item)
            else:
                submit(client, item, failed)
                sent += 1
            update(sent_or_not)
        left = client.flush(60)
    if left or failed:
        raise CommandError(
            f"{left + len(failed)} of {sent} rows were not taken by Kafka ({failed[0] if failed else 'no answer'}); "
            "run the same command again: rows that arrived are not doubled"
        )
    return sent, refused


def submit(client: Producer, record: RecordSubmitted, failed: list[str]) -> None:
    """Produce one record to the partition of its subject; what the broker refuses is appended to `failed`."""

    def on_delivery(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(str(error))

    partition = partition_of(record.subject_id or subject_of_record(record.messages, record.prompt), _PARTITIONS)
    out = kafka.out(record, source="tuneloop", partition=partition, subject=record.model)
    kafka.produce(client, out, on_delivery)


@app.command("ls")
def ls(format: Format = Format.table) -> None:
    """What is in the repository: committed shards by model, with kinds, splits and what was dropped and why."""
    found = rows(
        context.clickhouse(),
        "SELECT model, count() AS shards, sum(rows) AS rows, "
        "sumMap(JSONExtract(rows_by_kind, 'Map(String, Int64)')) AS kinds, "
        "sumMap(JSONExtract(rows_by_split, 'Map(String, Int64)')) AS sft_splits, sum(asked) AS asked_again, "
        "sumMap(JSONExtract(dropped, 'Map(String, Int64)')) AS dropped, "
        "sumMap(JSONExtract(masked, 'Map(String, Int64)')) AS masked "
        "FROM (SELECT * FROM tuneloop.shard_written FINAL ORDER BY _offset DESC LIMIT 1 BY shard_id) GROUP BY model",
    )
    for row in found:
        policy = context.settings.models.get(row["model"], ModelPolicy())
        row["contested"] = contested(context.clickhouse(), context.store, row["model"], policy)
        row["warnings"] = warnings(row)
    show(found, format, "no shard yet; add data with `tuneloop data add FILE --model NAME`")


def contested(client: Client, store: ArtifactStore, model: str, policy: ModelPolicy) -> int:
    """Questions to which two answers stand; none where the newest holds whoever says it."""
    if policy.corrections == "anyone":
        return 0
    from trainers.rows import read_rows  # a third of a second for whoever asks for something else

    return len(read_rows(store, exporting.committed(client, model), (), policy.corrections).contested)


def warnings(row: dict[str, Any]) -> list[str]:
    """What is wrong with a model's data as a whole: a split that stays empty, one reason that takes most of it."""
    said = []
    splits, dropped = row["sft_splits"], row["dropped"]
    for split in ("train", "test"):
        if sum(splits.values()) >= TEST_BY and not splits.get(split):
            said.append(f"no row is in the {split} split")
    submitted = row["rows"] + sum(dropped.values())
    for reason, count in dropped.items():
        if 2 * count > submitted:
            said.append(f"{count} of {submitted} records were dropped: {reason}")
    return said


@app.command("show")
def show_record(
    record: Annotated[str, typer.Argument(help="a record's or an answer's id, or topic/partition/offset")],
    format: Format = Format.table,
) -> None:
    """Where a record went: raw offsets, shards, jobs, candidates, and the versions that learned from it."""
    found = lineage.trace(context.clickhouse(), context.store, record)
    show([found] if format is Format.json else lineage.lines(found), format)


@app.command("export")
def export(
    model: Annotated[str, typer.Option(help="whose data")],
    kind: Kind = Kind.sft,
    split: Annotated[Split, typer.Option(help="test is for judging: leave it out of training")] = Split.train,
    format: FileFormat = FileFormat.jsonl,
    out: Annotated[Path | None, typer.Option(help="the file to write (default: stdout)")] = None,
    version: Annotated[str, typer.Option(help="MODEL@N: what that version was made from")] = "",
    since: Annotated[str, typer.Option(help="MODEL@N: what it was not made from; or a date, 2026-11-21[T08:00]")] = "",
    sft_form: Annotated[SftForm, typer.Option(help="which of TRL's two forms for sft")] = SftForm.messages,
) -> None:
    """Committed rows as a file that TRL reads: of a record its latest row, and of answers those that stand."""
    if format is FileFormat.parquet and out is None:
        raise CommandError("Parquet is not for a terminal: name a file with --out")
    if version and since:
        raise CommandError("--version and --since: give one of them")
    corrections = context.settings.models.get(model, ModelPolicy()).corrections
    chosen = exporting.choose(context.clickhouse(), context.store, model, version, since, corrections)
    wanted = Wanted(kind, split, sft_form, chosen.since_ms)
    count = _export(chosen, wanted, format, out)
    err.print(f"{count} rows ({kind}, {split}) of {len(chosen.refs)} shards" + (f" in {out}" if out else ""))


def _export(chosen: Chosen, wanted: Wanted, format: FileFormat, out: Path | None) -> int:
    """Returns how many rows. Raises `CommandError` where there is none: an empty file would teach nothing."""
    with progress(f"exporting {wanted.kind}", len(chosen.refs)) as update, ExitStack() as stack:
        target = stack.enter_context(whole(out)) if out else stdout()
        batches = exporting.examples(context.store, chosen.refs, chosen.rows, wanted)
        count = exporting.write(target, batches, wanted, format, lambda done: update(done, len(chosen.refs)))
        if not count:
            raise CommandError(f"no committed row is {wanted.kind} and {wanted.split}: see `tuneloop data ls`")
    return count
