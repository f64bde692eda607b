"""Which training record one piece of feedback on one answer makes, and which of several counts.

Plain functions over plain values. A record's id is derived from the answer and the kind of lesson, so a later
correction replaces the earlier record; a `Mark` remembers which feedback made the current one, so that an older
one that comes late or again never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import FeedbackGiven, InferenceServed, Message, RecordSubmitted
from schemas.identity import content_hash, record_id


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Which feedback made a record (its time and id), and a hash of what the record says."""

    time_ms: int
    id: str
    digest: str

    @property
    def order(self) -> tuple[int, int, str]:
        """By time, then by id; the shorter id first, so that offset 9 comes before offset 10."""
        return self.time_ms, len(self.id), self.id


@dataclass(frozen=True)
class Lesson:
    """A training record and the feedback that makes it."""

    record: RecordSubmitted
    cause: Envelope

    @property
    def mark(self) -> Mark:
        return Mark(self.cause.time_ms, self.cause.id, content_hash(msgspec.to_builtins(self.record)))


def label_of(feedback: FeedbackGiven, metrics: Mapping[str, str], thresholds: Mapping[str, float]) -> bool | None:
    """Whether a thumb or a score calls the answer good; None where it is neither, or has no threshold."""
    name, value = feedback.metric_name, feedback.value
    if metrics.get(name) == "boolean":
        return value if isinstance(value, bool) else None
    score = isinstance(value, int | float) and not isinstance(value, bool)
    if metrics.get(name) == "float" and score and name in thresholds:
        return float(value) >= thresholds[name]
    return None


def training_record(
    inference: InferenceServed, feedback: FeedbackGiven, metrics: Mapping[str, str], thresholds: Mapping[str, float]
) -> RecordSubmitted | None:
    """The record that one piece of feedback on one answer makes; None where it teaches nothing.

    A demonstration makes an SFT record, a preferred answer a preference pair, a thumb or a score a KTO record.
    """
    common: dict[str, Any] = {
        "model": inference.model, "messages": [Message(role=m.role, content=m.content) for m in inference.messages],
        "subject_id": inference.subject_id, "conversation_id": inference.conversation_id,
        "inference_id": inference.inference_id, "origin": "feedback",
    }
    name, value = feedback.metric_name, feedback.value
    if name == "demonstration" and isinstance(value, str):
        identity = record_id(inference.inference_id, "sft")
        return RecordSubmitted(kind="sft", completion=value, record_id=identity, **common)
    if name == "preferred" and isinstance(value, str):
        identity = record_id(inference.inference_id, "preference")
        return RecordSubmitted(
            kind="preference", chosen=value, rejected=inference.answer, record_id=identity, **common
        )
    label = label_of(feedback, metrics, thresholds)
    if label is None:
        return None
    identity = record_id(inference.inference_id, f"kto-{name}")
    return RecordSubmitted(kind="kto", completion=inference.answer, label=label, record_id=identity, **common)


def to_write(made: Mapping[str, Mark], lessons: Iterable[Lesson]) -> tuple[list[Lesson], dict[str, Mark]]:
    """Of these lessons on one answer those to be written now, and the marks (by record id) once that is done.

    The newest of each kind counts, if it is newer than what made the current record; where it says the same as
    the current record only the mark moves on.
    """
    newest: dict[str, Lesson] = {}
    for lesson in sorted(lessons, key=lambda lesson: lesson.mark.order):
        newest[lesson.record.record_id] = lesson
    written, marks = [], dict(made)
    for identity, lesson in newest.items():
        current = made.get(identity)
        if current is not None and lesson.mark.order <= current.order:
            continue
        marks[identity] = lesson.mark
        if current is None or current.digest != lesson.mark.digest:
            written.append(lesson)
    return written, marks
