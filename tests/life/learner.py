"""The learner that stands in for trainer and generation engine: a linear classifier on hashed words, trained by SGD from
its parent's weights. It forgets what is not replayed, and depends on the order of its rows and on noise."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FEATURES = 1_024
EPOCHS, RATE, BATCH = 12, 0.5, 16
_WORD = re.compile(r"\w+")
Floats = NDArray[np.float32]


@lru_cache(maxsize=200_000)
def _features(text: str) -> tuple[int, ...]:
    return tuple(zlib.crc32(word.encode()) % FEATURES for word in _WORD.findall(text.lower()))


def vectors(texts: Sequence[str]) -> Floats:
    """Bags of hashed words, of length 1 each; shape (texts, FEATURES)."""
    found = np.zeros((len(texts), FEATURES), dtype=np.float32)
    for number, text in enumerate(texts):
        np.add.at(found[number], list(_features(text)), 1.0)
    return found / np.maximum(1.0, np.linalg.norm(found, axis=1, keepdims=True))


@dataclass(frozen=True)
class Weights:
    """What a version knows: the answers that it can give, and a row of weights for each. The base knows none."""

    answers: tuple[str, ...] = ()
    rows: Floats = field(default_factory=lambda: np.zeros((0, FEATURES), dtype=np.float32))

    def answer(self, texts: Sequence[str]) -> list[str]:
        """One answer each; "?" of a model that was never taught."""
        if not self.answers:
            return ["?"] * len(texts)
        return [self.answers[place] for place in np.argmax(vectors(texts) @ self.rows.T, axis=1)]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        np.save(folder / "rows.npy", self.rows)
        (folder / "answers.json").write_text(json.dumps(self.answers))

    @classmethod
    def load(cls, folder: Path) -> Weights:
        return cls(tuple(json.loads((folder / "answers.json").read_text())), np.load(folder / "rows.npy"))


def train(parent: Weights, texts: Sequence[str], answers: Sequence[str], rng: np.random.Generator, epochs: int = EPOCHS) -> Weights:
    """Softmax regression by minibatch SGD from the parent's weights."""
    names = tuple(dict.fromkeys([*parent.answers, *answers]))
    rows = np.zeros((len(names), FEATURES), dtype=np.float32)
    rows[: len(parent.answers)] = parent.rows
    place = {name: number for number, name in enumerate(names)}
    given, wanted = vectors(texts), np.array([place[answer] for answer in answers])
    for epoch in range(epochs):
        order = rng.permutation(len(texts))
        rate = RATE * (1 - epoch / epochs)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            scores = given[some] @ rows.T * 8.0
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            error = scores / scores.sum(axis=1, keepdims=True)
            error[np.arange(len(some)), wanted[some]] -= 1.0
            rows -= rate * error.T @ given[some]
    return Weights(names, rows)
