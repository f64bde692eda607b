"""Reading training files: JSONL in TRL's forms or CSV with named columns, row by row, into records.

Pure but for reading the file. A row that does not fit is a `Refusal` that names row, field and what was
expected; the others go on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from schemas.events import Message, RecordSubmitted
from schemas.identity import content_hash


@dataclass(frozen=True)
class Columns:
    """Which CSV columns (or JSON fields) hold what. `subject` "" = nobody's; `time` says when a row was said."""

    prompt: str = "prompt"
    completion: str = "completion"
    subject: str = ""
    time: str = "time"

    def has_label(self, row: dict[str, Any]) -> bool:
        """Whether the row is one of KTO's: a column `label` that is not named as something else."""
        return "label" in row and "label" not in (self.prompt, self.completion, self.subject)


_LABELS = {"true": True, "false": False}  # as a CSV spells them


@dataclass(frozen=True)
class Refusal:
    """A row that makes no record. `row` counts from 1 as an editor shows it (a CSV's header is row 1)."""

    row: int
    field: str
    expected: str


class FileError(ValueError):
    """The file cannot be read at all."""


def read(path: Path, model: str, columns: Columns) -> Iterator[RecordSubmitted | Refusal]:
    """Every row of a file. Raises `FileError` for a missing file, an unknown form or missing columns."""
    if not path.is_file():
        raise FileError(f"no file at {path}")
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        yield from _read_jsonl(path, model, columns)
    elif path.suffix.lower() == ".csv":
        yield from _read_csv(path, model, columns)
    else:
        raise FileError(f"{path.name}: expected a .jsonl or .csv file")


def _read_csv(path: Path, model: str, columns: Columns) -> Iterator[RecordSubmitted | Refusal]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as handle:
        reader = csv.DictReader(handle)
        have = reader.fieldnames or []
        for option, name in (("--prompt-column", columns.prompt), ("--completion-column", columns.completion),
                             ("--subject-column", columns.subject)):
            if name and name not in have:
                raise FileError(f"{path.name} has no column {name!r}, it has {', '.join(have)}; name it with {option}")
        try:
            for row in reader:
                if columns.has_label(row):
                    row["label"] = _LABELS.get((row["label"] or "").strip().lower(), row["label"])
                yield _record(reader.line_num, row, model, columns)
        except csv.Error as error:
            raise FileError(f"{path.name}, line {reader.line_num + 1}: not readable as CSV: {error}") from error


def _read_jsonl(path: Path, model: str, columns: Columns) -> Iterator[RecordSubmitted | Refusal]:
    decoder = msgspec.json.Decoder()
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield Refusal(number, "-", f"a JSON object on one line ({error})")
                continue
            if isinstance(row, dict):
                yield _record(number, row, model, columns)
            else:
                yield Refusal(number, "-", f"a JSON object, got {type(row).__name__}")


def _record(number: int, row: dict[str, Any], model: str, columns: Columns) -> RecordSubmitted | Refusal:
    context = "messages" if "messages" in row else columns.prompt
    turns = _turns(row.get(context))
    if not turns:
        return Refusal(number, context, "text, or a list of {role, content} (or a field `messages`)")
    sources = {"completion": columns.completion, "chosen": "chosen", "rejected": "rejected"}
    answer = {name: _answer(row.get(source)) for name, source in sources.items()}
    wrong = [sources[name] for name, text in answer.items() if text is None]
    if wrong:
        return Refusal(number, wrong[0], "text, or a list with one assistant turn")
    if turns[-1].role == "assistant" and not answer["completion"]:
        answer["completion"], turns = turns[-1].content, turns[:-1]
    kind = "preference" if answer["chosen"] or answer["rejected"] else "kto" if columns.has_label(row) else "sft"
    missing = _missing(kind, row, answer, columns)
    if missing:
        return Refusal(number, *missing)
    prompt = turns[-1].content if turns and turns[-1].role == "user" else ""
    if not prompt.strip():
        return Refusal(number, context, "a user's turn at the end that is not empty")
    subject = str(row.get(columns.subject) or "") if columns.subject else ""
    said_ms = _time_ms(row.get(columns.time)) if columns.time else 0
    if said_ms is None:
        return Refusal(number, columns.time, "a time as 2026-11-21T08:00:00Z or 2026-11-21, or Unix time in seconds")
    content = [model, kind, [[turn.role, turn.content] for turn in turns], answer, row.get("label")]
    return RecordSubmitted(
        model=model, kind=kind, messages=turns, label=row.get("label") if kind == "kto" else None, origin="import",
        subject_id=subject, record_id="import-" + content_hash(*content), said_ms=said_ms,
        completion=answer["completion"] or "", chosen=answer["chosen"] or "", rejected=answer["rejected"] or "",
    )


def _time_ms(said: Any) -> int | None:
    """Unix time in ms of an ISO 8601 time (without an offset: UTC) or of Unix seconds; 0 for nothing, None for what is
    none of these."""
    if said in (None, ""):
        return 0
    if isinstance(said, bool):
        return None
    try:
        if isinstance(said, int | float) or str(said).replace(".", "", 1).isdigit():
            moment = datetime.fromtimestamp(float(said), UTC)
        else:
            moment = datetime.fromisoformat(str(said).strip())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        return None


def _missing(
    kind: str, row: dict[str, Any], answer: dict[str, str | None], columns: Columns
) -> tuple[str, str] | None:
    if kind == "preference":
        for name in ("chosen", "rejected"):
            if not answer[name]:
                return name, "an answer that is not empty"
        return None
    if not (answer["completion"] or "").strip():
        return columns.completion, "an answer that is not empty"
    if kind == "kto" and not isinstance(row.get("label"), bool):
        return "label", f"true or false, got {row.get('label')!r}"
    return None


def _turns(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [Message(role="user", content=value)] if value.strip() else []
    try:
        return msgspec.convert(value, list[Message])
    except msgspec.ValidationError:
        return []


def _answer(value: Any) -> str | None:
    """The text of an answer in either of TRL's forms; "" where there is none, None where it is malformed."""
    if value is None or isinstance(value, str):
        return value or ""
    turns = _turns(value)
    return turns[-1].content if turns and turns[-1].role == "assistant" else None
