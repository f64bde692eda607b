"""Which training record one piece of feedback on one answer makes, and which of several counts.

Plain functions over plain values. A record's id is derived from the answer and the kind of lesson, so a later
correction replaces the earlier record. A piece of feedback is known by its own id: the same value again is a retry, and
the first time holds; another value is a correction, and the newest holds. `Mark`s remember what was said, so that
nothing that comes late or again displaces what is newer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import FeedbackGiven, InferenceServed, RecordSubmitted
from schemas.identity import content_hash, record_id

# Metrics of every model: a right answer, a better one.
TEXTS = ("demonstration", "preferred")
# How an application may say that it chose whose answers it has feedback on.
SAMPLED = ("random", "all", "bad", "unrated")
# How an answer ends that was cut off: nobody saw all of it, so nobody's praise makes it a right one.
CUT_OFF = ("cancelled", "error")
# Of feedback on one answer and metric under so many ids marks are kept, the newest.
MOST_MARKS = 16


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What one piece of feedback says last: since when (Unix ms), its id, and a hash of its value.

    `until_ms` is when it was last said again, `after_ms` when it last said something else (-1: never).
    """

    time_ms: int
    id: str
    digest: str
    until_ms: int = -1
    after_ms: int = -1

    @property
    def order(self) -> tuple[int, int, str]:
        """By time, then by id; the shorter id first, so that offset 9 comes before offset 10."""
        return self.time_ms, len(self.id), self.id

    def then(self, time_ms: int, digest: str) -> Mark:
        """The same feedback after one more word of it, which may have come late."""
        until_ms = max(self.until_ms, self.time_ms)
        if digest == self.digest:
            first = time_ms if self.after_ms < time_ms < self.time_ms else self.time_ms
            return msgspec.structs.replace(self, time_ms=first, until_ms=max(until_ms, time_ms))
        if time_ms >= until_ms:
            return Mark(time_ms, self.id, digest, time_ms, until_ms)
        if time_ms >= self.time_ms:  # said between a first time and a retry, which was none
            return msgspec.structs.replace(self, time_ms=until_ms, until_ms=until_ms, after_ms=time_ms)
        return msgspec.structs.replace(self, after_ms=max(self.after_ms, time_ms))


@dataclass(frozen=True)
class Lesson:
    """A training record, and the feedback that makes it with its envelope."""

    record: RecordSubmitted
    cause: Envelope
    said: FeedbackGiven

    @property
    def mark(self) -> Mark:
        identity, time_ms = self.said.feedback_id or self.cause.id, self.cause.time_ms
        return Mark(time_ms, identity, content_hash(self.said.value), time_ms)


def unfit(feedback: FeedbackGiven, metrics: Mapping[str, str]) -> str:
    """What is wrong with a value that does not fit its metric, in words; "" where nothing is, or the metric is none of
    this model's."""
    name, value = feedback.metric_name, feedback.value
    kind = kind_of(name, metrics)
    if not kind or fits(value, kind):
        return ""
    got = ("a text" if value.strip() else "blanks") if isinstance(value, str) else repr(value)
    return f"`value`: {name[:64]} takes a {kind}, got {got}"


def kind_of(metric_name: str, metrics: Mapping[str, str]) -> str:
    """What a metric takes: text | boolean | float; "" for one that is not configured."""
    return "text" if metric_name in TEXTS else metrics.get(metric_name, "")


def fits(value: Any, kind: str) -> bool:
    """Whether a value is of this kind: text (more than blanks) | boolean | float, which integers are too."""
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, int | float) and not isinstance(value, bool)


def label_of(feedback: FeedbackGiven, metrics: Mapping[str, str], thresholds: Mapping[str, float]) -> bool | None:
    """Whether a thumb or a score calls the answer good; None where it is neither, or has no threshold."""
    name, value = feedback.metric_name, feedback.value
    kind = metrics.get(name)
    if kind is None or not fits(value, kind):
        return None
    if isinstance(value, bool):
        return value
    return float(value) >= thresholds[name] if name in thresholds else None


def training_record(
    inference: InferenceServed, feedback: FeedbackGiven, metrics: Mapping[str, str], thresholds: Mapping[str, float]
) -> RecordSubmitted | None:
    """The record that one piece of feedback on one answer makes; None where it teaches nothing.

    A demonstration makes an SFT record, a preferred answer a preference pair, a thumb or a score a KTO record. Praise
    of an answer that was cut off teaches nothing.
    """
    common: dict[str, Any] = {
        "model": inference.model, "messages": inference.messages, "subject_id": inference.subject_id,
        "conversation_id": inference.conversation_id, "inference_id": inference.inference_id, "origin": "feedback",
        "sampled": _sampled(inference, feedback), "author": feedback.author,
    }  # fmt: skip
    name, value, cut_off = feedback.metric_name, feedback.value, inference.finish_reason in CUT_OFF
    if name in TEXTS and not fits(value, "text"):
        return None
    if name == "demonstration":
        right = not cut_off and str(value).strip() == inference.answer.strip()
        identity = record_id(inference.inference_id, "sft")
        return RecordSubmitted(kind="sft", completion=str(value), label=right, record_id=identity, **common)
    if name == "preferred":
        identity = record_id(inference.inference_id, "preference")
        return RecordSubmitted(
            kind="preference", chosen=str(value), rejected=inference.answer, record_id=identity, **common
        )
    label = label_of(feedback, metrics, thresholds)
    if label is None or (label and cut_off):
        return None
    identity = record_id(inference.inference_id, f"kto-{name}")
    return RecordSubmitted(kind="kto", completion=inference.answer, label=label, record_id=identity, **common)


def _sampled(inference: InferenceServed, feedback: FeedbackGiven) -> str:
    """How the application chose this answer, where it says so."""
    said = feedback.tags.get("sampled") or inference.labels.get("sampled", "")
    return said if said in SAMPLED else ""


def to_write(
    made: Mapping[str, list[Mark]], lessons: Iterable[Lesson]
) -> tuple[list[Lesson], dict[str, list[Mark]]]:
    """Of these lessons on one answer those to be written now, and the marks (by record id) once that is done.

    Marks are a record's, a mark for each piece of feedback; the newest, which stands last, made the current record.
    Where the same is said as by the current record only the marks move on.
    """
    latest: dict[str, list[Lesson]] = {}
    for lesson in sorted(lessons, key=lambda lesson: lesson.mark.order):
        latest.setdefault(lesson.record.record_id, []).append(lesson)
    written, marks = [], dict(made)
    for identity, said in latest.items():
        before = made.get(identity, [])
        after, counts = _marked(before, said)
        marks[identity] = after
        if counts is not None and (not before or before[-1].digest != after[-1].digest):
            written.append(counts)
    return written, marks


def _marked(before: list[Mark], said: list[Lesson]) -> tuple[list[Mark], Lesson | None]:
    """The marks of one record after these lessons, and the one of them that makes it now; None for none of them."""
    by_id = {mark.id: mark for mark in before}
    for lesson in said:
        new = lesson.mark
        known = by_id.get(new.id)
        by_id[new.id] = known.then(new.time_ms, new.digest) if known else new
    after = sorted(by_id.values(), key=lambda mark: mark.order)[-MOST_MARKS:]
    newest = after[-1]
    counts = [one for one in said if (one.mark.id, one.mark.digest) == (newest.id, newest.digest)]
    if not counts:  # a first time that came after its retry: what would count now is not kept, so the record stays
        return (after if before[-1].digest == newest.digest else before), None
    return after, next((one for one in counts if one.mark.time_ms == newest.time_ms), counts[-1])
