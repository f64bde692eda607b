"""The preparation rules: pure functions from a submitted record to a row of a shard, or a reason to drop it.

Order: shape → length → subject → text repair → emptiness, noise and repetition (of the last user turn and the answers:
what stands before them is the app's) → scrubbing → identity. What needs to know other rows (whose a row is, duplicates,
contradictions) stands in `streams.prepare.admit`. Any change here, there or in what these import changes
`RULES_VERSION`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.codec import Envelope
from schemas.events import Message, RecordSubmitted
from schemas.identity import content_hash, normalise, question_of, subject_of_record
from schemas.policy import ModelPolicy
from streams.prepare.answers import ScrubbedAnswers, scrub_answers
from streams.prepare.near import signature
from streams.prepare.people import MADE_UP
from streams.prepare.pii import scrub
from streams.prepare.text import noise, repair, repetitive

RULES_VERSION = "1"
MAX_CHARACTERS = 32_000
KINDS = ("sft", "preference", "kto", "document")
SPLITS = ("train", "validation", "test")
# How a row was chosen, where it may judge: the others show what somebody picked, not what people ask.
FAIRLY_CHOSEN = ("", "random", "all", "import")


@dataclass(frozen=True)
class Dropped:
    """A record that makes no row, and why; `reason` is one of a few words that are counted."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """A row of `schemas.shards.SHARD_SCHEMA` (without its origin offsets, its unit and its side), with `named` (whether
    it says its subject) and `open` (what it would say without masks); and what was masked in it."""

    row: dict[str, Any]
    masked: dict[str, int]


def prepare(event: RecordSubmitted, envelope: Envelope, policy: ModelPolicy, key: bytes) -> Prepared | Dropped:
    """One submitted record as a row, or the reason why it makes none. `key` hashes what is masked in answers."""
    context, answer = _conversation(event)
    if event.kind not in KINDS:
        return Dropped("unknown kind")
    asks = event.kind != "document"
    if asks and (not context or context[-1].role != "user"):
        return Dropped("no user turn to answer")
    answers = {"completion": answer, "chosen": event.chosen, "rejected": event.rejected}
    if sum(map(len, [*answers.values(), *(turn.content for turn in context)])) > MAX_CHARACTERS:
        return Dropped("too long")
    subject = event.subject_id or subject_of_record(context, answer)
    turns = [_turn(turn, repair(turn.content)) for turn in context]
    answers = {name: repair(text) for name, text in answers.items()}
    reason = _missing_answer(event, answers) or _unfit(turns[-1]["content"] if asks else None, answers)
    if reason:
        return Dropped(reason)
    masked: Counter[str] = Counter()
    regions = policy.phone_regions
    turns = [{**turn, "content": _scrubbed(turn["content"], regions, masked)} for turn in turns]
    said = scrub_answers(answers, policy, key, masked)
    return Prepared(_row(event, envelope, policy, subject, turns, said), dict(masked))


def _turn(turn: Message, content: str) -> dict[str, Any]:
    return {
        "role": turn.role, "content": content, "tool_calls": turn.tool_calls, "tool_call_id": turn.tool_call_id,
        "name": turn.name, "weight": turn.weight,
    }  # fmt: skip


def _conversation(event: RecordSubmitted) -> tuple[list[Message], str]:
    """Context and answer, whichever of the accepted forms the record has."""
    turns = list(event.messages) or ([Message(role="user", content=event.prompt)] if event.prompt else [])
    if turns and not event.completion and turns[-1].role == "assistant":
        return turns[:-1], turns[-1].content
    return turns, event.completion


def _missing_answer(event: RecordSubmitted, answers: dict[str, str]) -> str:
    if event.kind == "preference":
        return "" if answers["chosen"] and answers["rejected"] else "no pair of answers"
    if not answers["completion"]:
        return "no answer"
    return "no label" if event.kind == "kto" and event.label is None else ""


def _unfit(question: str | None, answers: dict[str, str]) -> str:
    """What is wrong with the last user turn (None: there is none) or an answer; what stands before it is the app's."""
    if question == "":
        return "empty prompt"
    texts = [question or "", *answers.values()]
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
    event: RecordSubmitted, envelope: Envelope, policy: ModelPolicy, subject: str, turns: list[dict[str, Any]],
    said: ScrubbedAnswers,
) -> dict[str, Any]:
    question = normalise(turns[-1]["content"]) if turns else ""
    before = [normalise(turn["content"]) for turn in turns[:-1] if turn["role"] != "system"]
    context = [*before, question]
    made_up = event.origin in MADE_UP
    by_import = event.origin == "import" and envelope.source == "tuneloop"
    row = {
        "record_id": event.record_id or envelope.id,
        "subject_id": subject,
        # The gateway names the answer itself where whoever asked said nothing of themselves.
        "named": event.subject_id not in ("", event.inference_id),
        "unit": "",
        "conversation_id": event.conversation_id,
        "inference_id": event.inference_id,
        "model": event.model,
        "kind": event.kind,
        "split": "train" if made_up else event.split if by_import and event.split in SPLITS else "",
        "messages": turns,
        "tools": event.tools,
        "label": event.label,
        "task": event.task,
        "labels": msgspec.json.encode(event.labels).decode() if event.labels else "",
        "origin": event.origin,
        "sampled": event.sampled or (event.origin if made_up or by_import else ""),
        "author": event.author,
        "may_correct": by_import or (event.author != "" and event.author in policy.experts),
        "import_id": event.import_id,
        "source_record": event.source_record,
        "question": question_of(question) if turns else "",
        "input_hash": content_hash(event.model, context),
        "minhash": signature(question),
        "answer_masks": said.masks,
        # Never ahead of the record itself: what comes later could not overrule it.
        "submitted_ms": min(event.said_ms, envelope.time_ms) if by_import and event.said_ms > 0 else envelope.time_ms,
        "dated": not by_import or event.said_ms > 0,
    }
    # What somebody called right is the answer to expect, as much as one that was given for it.
    expected = event.kind == "sft" or (event.kind == "kto" and event.label is True)
    judges = expected and not made_up and event.sampled in FAIRLY_CHOSEN
    row |= _answered(event, context, said.masked) | {"judges": judges and not said.any_masked}
    opened = said.open is not None and _answered(event, context, said.open) | {"judges": judges and not said.always}
    return row | {"open": opened or None}


def _answered(event: RecordSubmitted, context: list[str], answers: dict[str, str]) -> dict[str, Any]:
    """The answers of a row, and the hashes that they are part of."""
    said = [normalise(text) for text in answers.values()]
    opinion = event.label if event.kind == "kto" else None
    return {
        **answers,
        "content_hash": content_hash(event.model, event.kind, opinion, context + said),
        "answer_hash": content_hash(event.model, said),
    }
