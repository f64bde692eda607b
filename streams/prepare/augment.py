"""Augmentation: more training rows from those there are, marked `augmented`, never in a hold-out. Off by default.

Each way changes how a question is written, never what it asks (and more than its case, which no identity here sees). It
is drawn from the record's id: the same row makes the same rows on every replay.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from schemas.identity import content_hash, normalise
from schemas.policy import ModelPolicy
from streams.prepare.near import signature

Row = dict[str, Any]


def unpunctuated(text: str, _: random.Random) -> str:
    """Without the marks at the end."""
    return text.rstrip(" .!?…。！？")


def swapped(text: str, chance: random.Random) -> str:
    """Two neighbouring letters inside one word of five or more swapped."""
    return _in_a_word(text, chance, lambda word, at: word[:at] + word[at + 1] + word[at] + word[at + 2 :])


def dropped(text: str, chance: random.Random) -> str:
    """A letter inside one word of five or more missing."""
    return _in_a_word(text, chance, lambda word, at: word[:at] + word[at + 1 :])


def _in_a_word(text: str, chance: random.Random, change: Callable[[str, int], str]) -> str:
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if long:
        place = chance.choice(long)
        words[place] = change(words[place], chance.randrange(1, len(words[place]) - 2))
    return " ".join(words)


WAYS: dict[str, Callable[[str, random.Random], str]] = {
    "unpunctuated": unpunctuated, "swapped": swapped, "dropped": dropped,
}  # fmt: skip


def augmented(rows: Sequence[Row], policy: ModelPolicy) -> list[Row]:
    """One row more per SFT training row and way of `policy.augment`, where it changes anything."""
    made = []
    for row in rows if policy.augment else ():
        if row["kind"] == "sft" and row["split"] == "train":
            made += [one for way in policy.augment if (one := _rewritten(row, way)) is not None]
    return made


def _rewritten(row: Row, way: str) -> Row | None:
    *before, last = row["messages"]
    text = WAYS[way](last["content"], random.Random(f"{way}\0{row['record_id']}"))
    if text == last["content"] or not text:
        return None
    messages = [*before, {**last, "content": text}]
    context = [normalise(turn["content"]) for turn in messages if turn["role"] != "system"]
    return {
        **row, "messages": messages, "record_id": f"{row['record_id']}/{way}", "origin": "augmented",
        "sampled": "augmented", "source_record": row["record_id"], "judges": False,
        "input_hash": content_hash(row["model"], context),
        "content_hash": content_hash("augmented", way, row["content_hash"]), "minhash": signature(context[-1]),
    }  # fmt: skip
