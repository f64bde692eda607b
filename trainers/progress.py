"""What a training run reports while it runs and when it ends. Plain values, sent as they are to topics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step done: `loss` is that step's mean over supervised tokens."""

    step: int
    steps: int
    loss: float
    examples_per_s: float
    time_left_s: float


@dataclass(frozen=True)
class Trained:
    """A finished run: `loss` is the mean over the last tenth of the steps, `examples` counts distinct ones.

    `tokens` counts every token that went through the model; `truncated` the examples that were too long;
    `warnings` says what was left out.
    """

    loss: float
    steps: int
    examples: int
    tokens: int
    seconds: float
    truncated: int
    warnings: tuple[str, ...] = ()


class TrainingError(Exception):
    """The run cannot start or go on; the message says what, where and what next."""


class TrainingStopped(Exception):
    """The run ended because it was asked to; nothing was written."""
