"""The preparation rules: pure functions from a submitted record to a row of a shard, or a reason to drop it.

Order: shape → length → subject → text repair → emptiness, noise and repetition → scrubbing → identity and split. What
needs to know other rows (duplicates, contradictions, caps) stands in `streams.prepare.admit`. Any change here, there or
in what these import changes `RULES_VERSION`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from schemas.codec import Envelope
from schemas.events import Message, RecordSubmitted
from schemas.identity import content_hash, normalise, split_of, subject_of_record
from schemas.policy import ModelPolicy
from streams.prepare.near import signature
from streams.prepare.pii import scrub
from streams.prepare.text import noise, repair, repetitive

RULES_VERSION = "5"
MAX_CHARACTERS = 32_000
KINDS = ("sft", "preference", "kto")
# What no person wrote teaches, but never judges.
MADE_UP = ("synthetic", "augmented")


@dataclass(frozen=True)
class Dropped:
    """A record that makes no row, and why; `reason` is one of a few words that are counted."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """A row of `schemas.shards.SHARD_SCHEMA` (without its origin offsets) and what was masked in it."""

    row: dict[str, Any]
    masked: dict[str, int]


def prepare(event: RecordSubmitted, envelope: Envelope, policy: ModelPolicy, key: bytes) -> Prepared | Dropped:
    """One submitted record as a row, or the reason why it makes none. `key` splits (`schemas.identity.split_key`)."""
    context, answer = _conversation(event)
    if event.kind not in KINDS:
        return Dropped("unknown kind")
    if not context or context[-1].role != "user":
        return Dropped("no user turn to answer")
    answers = {"completion": answer, "chosen": event.chosen, "rejected": event.rejected}
    if sum(map(len, [*answers.values(), *(turn.content for turn in context)])) > MAX_CHARACTERS:
        return Dropped("too long")
    subject = event.subject_id or subject_of_record(context)
    turns = [{"role": turn.role, "content": repair(turn.content)} for turn in context]
    answers = {name: repair(text) for name, text in answers.items()}
    reason = _missing_answer(event, answers) or _unfit([turn["content"] for turn in turns], answers)
    if reason:
        return Dropped(reason)
    masked: Counter[str] = Counter()
    regions = policy.phone_regions
    turns = [{**turn, "content": _scrubbed(turn["content"], regions, masked)} for turn in turns]
    answers = {name: _scrubbed(text, regions, masked) for name, text in answers.items()}
    return Prepared(_row(event, envelope, policy, key, subject, turns, answers), dict(masked))


def _conversation(event: RecordSubmitted) -> tuple[list[Message], str]:
    """Context and answer, whichever of the accepted forms the record has."""
    turns = list(event.messages) or [Message(role="user", content=event.prompt)]
    if not event.completion and turns[-1].role == "assistant":
        return turns[:-1], turns[-1].content
    return turns, event.completion


def _missing_answer(event: RecordSubmitted, answers: dict[str, str]) -> str:
    if event.kind == "preference":
        return "" if answers["chosen"] and answers["rejected"] else "no pair of answers"
    if not answers["completion"]:
        return "no answer"
    return "no label" if event.kind == "kto" and event.label is None else ""


def _unfit(context: list[str], answers: dict[str, str]) -> str:
    if not context[-1]:
        return "empty prompt"
    texts = [*context, *answers.values()]
    if any(map(repetitive, texts)):
        return "repetitive"
    return "noise" if any(map(noise, texts)) else ""


def _scrubbed(text: str, phone_regions: list[str], masked: Counter[str]) -> str:
    if not text:
        return text
    clean, found = scrub(text, phone_regions)
    if found:
        masked.update(found)
    return clean


def _row(
    event: RecordSubmitted, envelope: Envelope, policy: ModelPolicy, key: bytes, subject: str,
    turns: list[dict[str, str]], answers: dict[str, str],
) -> dict[str, Any]:
    context = [normalise(turn["content"]) for turn in turns]
    said = [normalise(text) for text in answers.values()]
    split = split_of(subject, key, policy.validation_share, policy.test_share)
    return {
        "record_id": event.record_id or envelope.id,
        "subject_id": subject,
        "conversation_id": event.conversation_id,
        "inference_id": event.inference_id,
        "model": event.model,
        "kind": event.kind,
        "split": "train" if event.origin in MADE_UP else split,
        "messages": turns,
        **answers,
        "label": event.label,
        "origin": event.origin,
        "input_hash": content_hash(event.model, event.kind, context),
        "content_hash": content_hash(event.model, event.kind, event.label, context + said),
        "answer_hash": content_hash(event.model, event.kind, event.label, said),
        "minhash": signature(" ".join(context)),
        "submitted_ms": envelope.time_ms,
    }
