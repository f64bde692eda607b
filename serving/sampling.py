"""From logits to the next token of every row: greedy, or drawn with temperature and top-p.

Pure functions over tensors. Randomness comes in as one uniform number per row, so a request's tokens
depend on its own seed and never on who shares the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draw:
    """How one row is sampled: `temperature` > 0, `top_p` in (0, 1], `uniform` in [0, 1)."""

    temperature: float
    top_p: float
    uniform: float


@dataclass(frozen=True)
class Chosen:
    """One token per row; `sound` is False where the row's logits hold NaN or infinity."""

    tokens: list[int]
    sound: list[bool]


def choose(logits: torch.Tensor, draws: Sequence[Draw | None]) -> Chosen:
    """Next token for each row of `logits` [rows, vocabulary]; `None` in `draws` means greedy."""
    best, tokens = logits.max(dim=-1)  # max passes NaN on, so `best` also tells a broken row
    sound = torch.isfinite(best).tolist()
    chosen = tokens.tolist()
    drawn = [row for row, draw in enumerate(draws) if draw is not None and sound[row]]
    if drawn:
        picked = sample(logits[drawn], [draws[row] for row in drawn])  # type: ignore[misc]
        for row, token in zip(drawn, picked, strict=True):
            chosen[row] = token
    return Chosen(chosen, sound)


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw one token per row from the smallest set of tokens whose probability reaches `top_p`.

    Inverse transform over probabilities in descending order; in float64 on the CPU, so that a seed gives
    the same tokens at every batch size.
    """
    scores = logits.detach().to("cpu", torch.float64)
    temperature = torch.tensor([draw.temperature for draw in draws], dtype=torch.float64)
    top_p = torch.tensor([draw.top_p for draw in draws], dtype=torch.float64)
    uniform = torch.tensor([draw.uniform for draw in draws], dtype=torch.float64)
    # Taking the maximum off first keeps a very small temperature from overflowing into NaN.
    scores = (scores - scores.max(dim=-1, keepdim=True).values) / temperature[:, None]
    probabilities, order = torch.softmax(scores, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = torch.where(before < top_p[:, None], probabilities, 0.0)
    kept[:, 0] = probabilities[:, 0]  # the likeliest token always stays
    total = kept.cumsum(dim=-1)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)
    last_kept = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(1, place.minimum(last_kept))[:, 0].tolist()
