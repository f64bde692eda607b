"""What preparation keeps of what an app says, and what of its hold-outs a job trains on: pure functions, real rules.

Questions are those of the built-in desk, asked as apps ask them: under long system prompts, with names and dates in
them, again by others, with a word more or a mark less.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from deploy.demo.questions import DESK, NEW_INTENTS, OLD_INTENTS
from schemas.codec import Envelope
from schemas.events import Message, RecordSubmitted
from schemas.identity import normalise
from schemas.policy import ModelPolicy
from schemas.shards import SHARD_SCHEMA
from streams.prepare.admit import Admission
from streams.prepare.near import signature, similarity
from streams.prepare.rules import Prepared, prepare
from tests.bench.measure import Measured
from tests.ids import SPLIT_KEY
from trainers.dataset import training_set
from trainers.rows import Row, Rows, judging_rows, row_of, stand

POLICY = ModelPolicy(replay_share=1.0, max_replay_examples=10**9)
LENGTHS = (0, 1_000, 4_000)
QUESTIONS, ANSWERS, ROWS = 180, 4, 3_000
_SENTENCES = (
    "You answer for the shop's service desk. ", "Be brief and friendly, and never guess. ", "-" * 40 + "\n",
    "Name one of the known topics, nothing else. ", "Orders arrive within five working days. ", "=" * 40 + "\n",
)  # fmt: skip
_NAMES = ("Anna", "Bilal", "Chiara", "Dmitri", "Esra", "Femi", "Greta", "Hoang")


def kept_share() -> Iterator[Measured]:
    """Rows kept under a system prompt, as a share of those kept without one."""
    alone = _kept(lambda number: "")
    for length in LENGTHS:
        for named in (False, True):
            kept = _kept(lambda number, length=length, named=named: system_prompt(length, number if named else None))
            part = f"{length} characters{', with a name and a date' if named else ''}"
            yield Measured(kept / alone, ">= 0.95", part)


def holdout_leak() -> Iterator[Measured]:
    """Test questions that fewer than five units ask and that a job trains on all the same, near copies included."""
    rows = _prepared_by_two(_asked(random.Random(7)))
    trained = training_set(rows, POLICY, seed=0).rows
    judging = judging_rows(rows, POLICY.near_duplicate_similarity)
    unseen = [one.row for one in judging if not one.common]
    found = sum(_is_among(row, trained) for row in unseen)
    yield Measured(float(found), "<= 0", f"of {len(unseen)} test questions, {len(trained)} rows trained on")


def system_prompt(length: int, number: int | None) -> str:
    """So many characters of what apps put before a conversation; with a number, a name and a date in it."""
    if not length:
        return ""
    head = "" if number is None else f"You serve {_NAMES[number % 8]}. Today is 2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}. "
    text = head
    while len(text) < length:
        text += _SENTENCES[len(text) % len(_SENTENCES)]
    return text[:length]


def _desk() -> list[tuple[str, str]]:
    texts = [(line, intent) for intent in OLD_INTENTS + NEW_INTENTS for line in (DESK / f"{intent}.txt").read_text().splitlines()]
    random.Random(1).shuffle(texts)
    return texts


def _kept(system: Any) -> int:
    some = [(text, f"answer {number % ANSWERS}") for number, (text, _) in enumerate(_desk()[:QUESTIONS])]
    admission = Admission(SPLIT_KEY)
    facts = [_fact(number, text, answer, system(number), f"customer {number}") for number, (text, answer) in enumerate(some)]
    return len(admission.admit([fact for fact in facts if fact], POLICY).rows)


def _fact(number: int, text: str, answer: str, system: str, who: str) -> dict[str, Any] | None:
    before = [Message(role="system", content=system)] if system else []
    event = RecordSubmitted(
        model="support", messages=[*before, Message(role="user", content=text)], completion=answer, subject_id=who,
        origin="feedback", record_id=f"r{number}",
    )  # fmt: skip
    envelope = Envelope(id=f"training.raw/0/{number}", type="RecordSubmitted", source="", time_ms=number * 60_000)
    made = prepare(event, envelope, POLICY, SPLIT_KEY)
    return {**made.row, "partition": number % 2, "offset": number} if isinstance(made, Prepared) else None


def _asked(chance: random.Random) -> list[dict[str, Any]]:
    """Questions as customers ask them: many once, some again and again, by others in other words before them."""
    desk, facts = _desk(), []
    for number in range(ROWS):
        text, intent = desk[int(chance.paretovariate(0.35)) % len(desk)] if number % 3 else desk[number % len(desk)]
        text = chance.choice([text, text + " Thanks!", "Hi, " + text, text.rstrip("?.!"), text.upper()])
        fact = _fact(number, text, intent, system_prompt(1_000, number), f"customer {chance.randrange(900)}")
        facts += [fact] if fact else []
    return facts


def _prepared_by_two(facts: Sequence[dict[str, Any]]) -> Rows:
    """The rows as two processes prepare them, a partition each, neither knowing what the other has just read."""
    shards = []
    for partition in (0, 1):
        admission = Admission(SPLIT_KEY)
        mine = [fact for fact in facts if fact["partition"] == partition]
        for start in range(0, len(mine), 100):
            kept = admission.admit(mine[start : start + 100], POLICY).rows
            shards.append(pa.Table.from_pylist(kept, schema=SHARD_SCHEMA))
    return stand(row_of(values, new=True) for shard in shards for values in shard.to_pylist())


def _is_among(row: Row, trained: Sequence[Row]) -> bool:
    asked = normalise(row.messages[-1]["content"])
    mine = np.frombuffer(signature(asked), dtype=np.uint8)
    return any(
        normalise(other.messages[-1]["content"]) == asked
        or similarity(mine, np.frombuffer(other.minhash, dtype=np.uint8)) >= POLICY.near_duplicate_similarity
        for other in trained
    )
