"""The load of the benchmarks: events as they come, the same ones in every run (seeded).

Texts are 3 to 120 words drawn at random from the shipped help-desk questions: no two alike unless meant so. Of a
hundred, eight carry accents or emoji, three are mis-decoded UTF-8 that needs repair, six hold an address or a card
number; of submitted records one in ten says again what an earlier one said, in other case and spacing. A subject
submits three records on average.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from schemas import events as e
from schemas.policy import ModelPolicy
from tests.ids import answer

MODEL = "support"
POLICY = ModelPolicy()
_DESK = Path(__file__).parents[2] / "deploy" / "demo" / "desk"
_FOREIGN = ("Größe", "déjà", "señor", "naïve", "Łódź", "配達", "🙂", "“quoted”", "100 €")
_PRIVATE = ("anna.k@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "192.168.7.21")


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the shipped questions, sorted."""
    return tuple(sorted({word for path in _DESK.glob("*.txt") for word in path.read_text().split()}))


def text(source: random.Random, mean_words: int) -> str:
    """One text; lengths are log-normal around `mean_words`."""
    count = min(max(3, int(source.lognormvariate(0, 0.6) * mean_words * 0.84)), 120)
    words = source.choices(vocabulary(), k=count)
    kind = source.random()
    if kind < 0.11:
        words[count // 2] = source.choice(_FOREIGN)
    elif kind < 0.17:
        words[count // 2] = source.choice(_PRIVATE)
    said = " ".join(words)
    return said.encode().decode("cp1252", errors="replace") if kind < 0.03 else said


def inferences(count: int, seed: int = 1) -> Iterator[e.InferenceServed]:
    """Usage events, about 620 bytes of JSON each."""
    source = random.Random(seed)
    for number in range(count):
        yield e.InferenceServed(
            model=MODEL, inference_id=answer(source.getrandbits(176)), version=1 + number % 3,
            requested="support@champion", base="pydoc-4m", digest=f"{source.getrandbits(256):064x}",
            subject_id=f"user-{source.randrange(50_000)}", conversation_id=f"conversation-{source.getrandbits(40)}",
            messages=[e.Message(role="user", content=text(source, 12))], answer="order_status", finish_reason="stop",
            input_tokens=source.randrange(8, 90), output_tokens=4, latency_ms=round(source.uniform(20, 90), 3),
            first_token_ms=round(source.uniform(5, 20), 3), max_tokens=16, replica="serve-0", labels={"channel": "web"},
        )  # fmt: skip


def feedback(count: int, seed: int = 2) -> Iterator[e.FeedbackGiven]:
    """Feedback as an application sends it, about 200 bytes of JSON each."""
    source = random.Random(seed)
    for number in range(count):
        yield e.FeedbackGiven(
            inference_id=answer(source.getrandbits(176)), metric_name="correct", value=bool(number % 4),
            feedback_id=f"feedback-{number}", subject_id=f"user-{source.randrange(50_000)}",
        )  # fmt: skip


def submissions(count: int, seed: int = 3) -> Iterator[e.RecordSubmitted]:
    """Training records: eight in ten question and answer, one a pair of answers, one a thumb."""
    source = random.Random(seed)
    earlier: list[e.RecordSubmitted] = []
    for number in range(count):
        identity = {
            "record_id": f"record-{number}", "subject_id": f"user-{source.randrange(max(1, count // 3))}",
            "conversation_id": f"conversation-{number}", "model": MODEL,
        }  # fmt: skip
        if earlier and source.random() < 0.1:
            yield _said_again(source.choice(earlier), identity)
            continue
        record = _submission(source, identity)
        yield record
        if len(earlier) < 10_000:
            earlier.append(record)


def _submission(source: random.Random, identity: dict[str, str]) -> e.RecordSubmitted:
    turns = [e.Message(role="user", content=text(source, 24))]
    if source.random() < 0.2:
        turns = [*turns, e.Message(role="assistant", content=text(source, 20)),
                 e.Message(role="user", content=text(source, 12))]  # fmt: skip
    kind = source.random()
    if kind < 0.1:
        return e.RecordSubmitted(
            kind="preference", messages=turns, chosen=text(source, 20), rejected=text(source, 20), **identity
        )
    if kind < 0.2:
        return e.RecordSubmitted(
            kind="kto", messages=turns, completion=text(source, 20), label=source.random() < 0.7, **identity
        )
    return e.RecordSubmitted(messages=turns, completion=text(source, 20), **identity)


def _said_again(record: e.RecordSubmitted, identity: dict[str, str]) -> e.RecordSubmitted:
    turns = [e.Message(role=turn.role, content=turn.content.upper() + " ") for turn in record.messages]
    return e.RecordSubmitted(
        kind=record.kind, messages=turns, completion=record.completion, chosen=record.chosen,
        rejected=record.rejected, label=record.label, **identity,
    )  # fmt: skip
