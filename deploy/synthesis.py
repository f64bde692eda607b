"""Synthetic examples: a teacher model behind any OpenAI-compatible endpoint asks known questions in other words.

Only training rows that people wrote are varied, never a hold-out, and what comes of them is marked `synthetic`: it
trains and never judges. A variant keeps its source's subject, so that forgetting a person takes it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from openai import OpenAI, OpenAIError
from pyarrow import BufferReader

from deploy.exporting import Chosen
from schemas.events import Message, RecordSubmitted
from schemas.identity import content_hash, normalise
from streams.artifacts import ArtifactStore, get_shard
from streams.prepare.rules import MADE_UP

_COLUMNS = ["model", "kind", "split", "origin", "messages", "completion", "subject_id", "record_id"]
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
INSTRUCTION = (
    "You vary questions that people ask. Given one question, write {count} other questions that ask for exactly the "
    "same thing, as different people would: other words, other order, some short, some with a typo. Keep every name, "
    "number and [placeholder]. Reply with a JSON array of {count} strings and nothing else."
)


class TeacherError(RuntimeError):
    """The teacher cannot be reached, or did not do as it was told; the message says what it said."""


def sources(store: ArtifactStore, chosen: Chosen) -> Iterator[dict[str, Any]]:
    """The SFT training rows that people wrote. Raises `ArtifactError`."""
    for ref, numbers in zip(chosen.refs, chosen.rows, strict=True):
        table = pq.read_table(BufferReader(get_shard(store, ref)[1]), columns=_COLUMNS).take(np.asarray(numbers))
        for row in table.to_pylist():
            if row["kind"] == "sft" and row["split"] == "train" and row["origin"] not in MADE_UP:
                yield row


def variants(teacher: OpenAI, teacher_model: str, row: dict[str, Any], count: int) -> list[str]:
    """Other wordings of a row's question, without repeats and without the question itself. Raises `TeacherError`."""
    question = row["messages"][-1]["content"]
    task = INSTRUCTION.format(count=count)
    try:
        said = teacher.chat.completions.create(
            model=teacher_model, temperature=1.0,
            messages=[{"role": "system", "content": task}, {"role": "user", "content": question}],
        )
    except OpenAIError as error:
        raise TeacherError(f"the teacher did not answer: {error}") from error
    known = {normalise(question)}
    found = []
    for text in parse(said.choices[0].message.content or ""):
        if text.strip() and normalise(text) not in known:
            known.add(normalise(text))
            found.append(text.strip())
    return found[:count]


def parse(reply: str) -> list[str]:
    """The strings of a reply that is a JSON array, also within a code fence. Raises `TeacherError`."""
    try:
        found = json.loads(_FENCE.sub("", reply.strip()))
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TeacherError(f"the teacher was asked for a JSON array of strings and said {reply[:80]!r}")
    return found


def synthetic(row: dict[str, Any], text: str) -> RecordSubmitted:
    """The training record of one variant; the same variant is the same record."""
    *before, last = row["messages"]
    messages = [Message(role=turn["role"], content=turn["content"]) for turn in (*before, {**last, "content": text})]
    identity = "synthetic-" + content_hash(row["model"], row["record_id"], normalise(text))
    return RecordSubmitted(
        model=row["model"], kind="sft", messages=messages, completion=row["completion"], record_id=identity,
        subject_id=row["subject_id"], origin="synthetic", source_record=row["record_id"], sampled="synthetic",
    )
