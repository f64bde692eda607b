"""Examples as rows of tokens: several to a row, each attending only to itself, logits only where supervised.

Pure functions over token ids and tensors: reads and writes nothing. Exact: the loss equals that of one example
per row (the tests hold it to 1e-4), at a fraction of the padding and of the output layer's cost.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from serving.prompts import encode_completion, encode_prompt


@dataclass(frozen=True)
class Example:
    """A conversation up to the assistant's turn, and the answer to be learned."""

    messages: tuple[dict[str, str], ...]
    completion: str


@dataclass(frozen=True)
class Encoded:
    """An example's token ids; the first `prompt_tokens` of them are not supervised. `asked_tokens` is how long its
    prompt was before it was cut."""

    tokens: tuple[int, ...]
    prompt_tokens: int
    truncated: bool = False
    asked_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Batch:
    """Packed examples: [rows, row_tokens] ids, positions and segments (0 = padding, else 1, 2, ...).

    `rows[i], columns[i]` is where the logits for `targets[i]` are read; `owners[i]` is the example's index.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def encode_example(tokenizer: Any, example: Example, max_length: int) -> Encoded:
    """Token ids of at most `max_length`: a long prompt loses its beginning, a longer answer its end."""
    prompt = encode_prompt(tokenizer, example.messages)
    completion = encode_completion(tokenizer, example.completion)
    truncated, asked = len(prompt) + len(completion) > max_length, len(prompt)
    completion = completion[: max_length - 1]
    prompt = prompt[-(max_length - len(completion)) :]
    return Encoded((*prompt, *completion), len(prompt), truncated, asked)


def thinned(encoded: Encoded, share: float, kept: frozenset[int], rng: random.Random) -> Encoded:
    """Without a random `share` of its prompt's tokens (never those in `kept`): no answer may hang on one word."""
    prompt = encoded.tokens[: encoded.prompt_tokens]
    left = [token for token in prompt if token in kept or rng.random() >= share] or prompt[-1:]
    return Encoded((*left, *encoded.tokens[len(prompt) :]), len(left), encoded.truncated)


def arrange(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of `lengths` in rows of at most `row_tokens`, first fit, longest first; a longer one stands alone."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if room >= lengths[index]), None)
        if row is None:
            rows.append([])
            free.append(row_tokens)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= lengths[index]
    return rows


def pack(encoded: Sequence[Encoded], row_tokens: int, pad_id: int) -> Batch:
    """Lay out `encoded` in rows of `row_tokens` or their longest; `row_tokens=1` gives each a row of its own."""
    layout = arrange([len(e.tokens) for e in encoded], row_tokens)
    width = max(sum(len(encoded[i].tokens) for i in row) for row in layout)
    shape = (len(layout), width)
    ids = torch.full(shape, pad_id)
    positions, segments = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    supervised: list[tuple[int, int, int, int]] = []
    for r, row in enumerate(layout):
        start = 0
        for number, index in enumerate(row, start=1):
            tokens, first = encoded[index].tokens, encoded[index].prompt_tokens
            stop = start + len(tokens)
            ids[r, start:stop] = torch.tensor(tokens)
            positions[r, start:stop] = torch.arange(len(tokens))
            segments[r, start:stop] = number
            supervised += [(r, start + t - 1, tokens[t], index) for t in range(first, len(tokens))]
            start = stop
    where = torch.tensor(supervised).T
    return Batch(ids, positions, segments, where[0], where[1], where[2], where[3])


def segment_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [rows, 1, row_tokens, row_tokens]: causal, and nothing crosses a segment's border."""
    same = segments[:, :, None] == segments[:, None, :]
    seen = same & torch.ones(segments.shape[1], segments.shape[1], device=segments.device).tril().bool()
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def supervised_logits(model: Any, batch: Batch, mask_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits [supervised, vocabulary] that predict `batch.targets`, in their order."""
    attention: dict[str, torch.Tensor] = {}
    if batch.segments.max() > 1:  # one example to a row needs no mask: padding follows it
        attention["attention_mask"] = segment_mask(batch.segments, mask_dtype)
        attention["position_ids"] = batch.position_ids
    with _output_only_at(model.get_output_embeddings(), batch.rows, batch.columns):
        return model(input_ids=batch.input_ids, use_cache=False, **attention).logits[0]


@contextmanager
def _output_only_at(layer: Any, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Let the output layer see only the chosen places; what a model does to its logits afterwards stays."""
    hook = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, columns][None],))
    try:
        yield
    finally:
        hook.remove()
