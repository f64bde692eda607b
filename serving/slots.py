"""Slots: where the keys and values of running requests live, and attention over them.

Every step is one packed forward, [1, tokens]: first one token per row (its newest), then the other tokens
of the prompts that join. Nothing is padded outside attention. The model reaches `attend` through
transformers' attention interface, so any architecture that uses the interface can be served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "tuneloop_slots"


@dataclass(frozen=True)
class Turn:
    """What one row brings to a step: `tokens` not yet in the cache, the first of them at `position`."""

    tokens: Sequence[int]
    position: int


@dataclass(frozen=True)
class Prompts:
    """Joining prompts of like length: `gather` [rows, width] into the packed tokens, `real` [tokens] back."""

    gather: torch.Tensor
    real: torch.Tensor


@dataclass
class Step:
    """One packed forward. `order` names the row of each packed token; the first `rows` are the newest."""

    cache: SlotCache
    first_row: int
    rows: int
    longest: int
    order: list[int]
    ids: torch.Tensor  # [1, tokens]
    positions: torch.Tensor  # [1, tokens]
    write: torch.Tensor  # [tokens], places in the flattened cache
    mask: torch.Tensor  # [rows, 1, 1, longest], added to the scores
    prompts: list[Prompts]


@dataclass
class SlotCache:
    """Keys and values [slots * length, heads, size] per layer, allocated when a layer first writes."""

    slots: int
    length: int
    device: torch.device
    dtype: torch.dtype
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def write(self, layer: int, step: Step, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store packed `key` and `value` [tokens, heads, size] of one layer."""
        for store, new in ((self.keys, key), (self.values, value)):
            if layer not in store:
                # Zeros, not empty: masked places are still multiplied by zero, and zero times NaN is NaN.
                shape = (self.slots * self.length, *new.shape[1:])
                store[layer] = torch.zeros(shape, dtype=new.dtype, device=new.device)
            store[layer].index_copy_(0, step.write, new)

    def read(self, store: dict[int, torch.Tensor], layer: int, step: Step) -> torch.Tensor:
        """The rows of a step as [rows, heads, longest, size], a view."""
        flat = store[layer]
        by_row = flat.view(self.slots, self.length, *flat.shape[1:])
        return by_row[step.first_row : step.first_row + step.rows, : step.longest].transpose(1, 2)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of row `source` to row `target`."""
        begin, end = source * self.length, target * self.length
        for store in (*self.keys.values(), *self.values.values()):
            store[end : end + length] = store[begin : begin + length]

    def clear(self, row: int) -> None:
        """Zero a row whose values were not finite, so that it cannot spoil the next request there."""
        for store in (*self.keys.values(), *self.values.values()):
            store[row * self.length : (row + 1) * self.length] = 0


def like_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ascending `lengths` into ranges whose longest is at most twice its shortest, plus 16."""
    ranges: list[tuple[int, int]] = []
    begin = 0
    for index in range(1, len(lengths) + 1):
        if index == len(lengths) or lengths[index] > 2 * lengths[begin] + 16:
            ranges.append((begin, index))
            begin = index
    return ranges


def pack(turns: Sequence[Turn], cache: SlotCache, first_row: int = 0) -> Step:
    """Lay out one step for rows `first_row`, `first_row + 1`, ... A turn of several tokens starts at 0."""
    order = list(range(len(turns)))
    ids = [turn.tokens[-1] for turn in turns]
    positions = [turn.position + len(turn.tokens) - 1 for turn in turns]
    joining = sorted(
        (row for row, turn in enumerate(turns) if len(turn.tokens) > 1),
        key=lambda row: len(turns[row].tokens),
    )
    for row in joining:
        rest = len(turns[row].tokens) - 1
        order += [row] * rest
        ids += turns[row].tokens[:-1]
        positions += range(turns[row].position, turns[row].position + rest)
    device, longest = cache.device, max(positions[: len(turns)]) + 1
    write = [(first_row + row) * cache.length + at for row, at in zip(order, positions, strict=True)]
    newest = torch.tensor(positions[: len(turns)], device=device)
    beyond = torch.arange(longest, device=device) > newest[:, None]
    mask = torch.zeros(beyond.shape, dtype=cache.dtype, device=device).masked_fill_(beyond, float("-inf"))
    return Step(
        cache=cache,
        first_row=first_row,
        rows=len(turns),
        longest=longest,
        order=order,
        ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        write=torch.tensor(write, device=device),
        mask=mask[:, None, None, :],
        prompts=_prompts([len(turns[row].tokens) - 1 for row in joining], len(turns), device),
    )


def _prompts(lengths: Sequence[int], offset: int, device: torch.device) -> list[Prompts]:
    """Gather indexes for joining prompts whose packed tokens begin at `offset`, in order."""
    groups = []
    for begin, end in like_lengths(lengths):
        width = lengths[end - 1]
        gather: list[list[int]] = []
        real: list[int] = []
        for place, length in enumerate(lengths[begin:end]):
            # Padding stands on the right, where causal attention of the real tokens never looks.
            gather.append([*range(offset, offset + length), *[offset] * (width - length)])
            real += range(place * width, place * width + length)
            offset += length
        groups.append(Prompts(torch.tensor(gather, device=device), torch.tensor(real, device=device)))
    return groups


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    slots: Step | None = None,
    **_ignored: object,
) -> tuple[torch.Tensor, None]:
    """Attention of packed `query` [1, heads, tokens, size] over the slots; returns [1, tokens, heads, size].

    What else an architecture passes (soft caps, sinks) is ignored here: `serving.base` refuses a model
    whose logits then differ from its own.
    """
    if slots is None:
        raise RuntimeError("this model's layers do not pass the step on to their attention")
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    slots.cache.write(layer, slots, key, value)
    keys, values = (slots.cache.read(store, layer, slots) for store in (slots.cache.keys, slots.cache.values))
    rows, heads, shared = slots.rows, query.shape[1], keys.shape[1]
    # Heads that share keys stand as several queries of one head: no copy of keys or values.
    newest = query[:rows].reshape(rows, shared, heads // shared, -1)
    out = scaled_dot_product_attention(newest, keys, values, attn_mask=slots.mask, scale=scaling)
    parts = [out.reshape(rows, heads, -1)]
    for group in slots.prompts:
        q, k, v = (part[group.gather].transpose(1, 2) for part in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=heads != shared)
        parts.append(out.transpose(1, 2).flatten(0, 1)[group.real])
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[None], None


AttentionInterface.register(ATTENTION, attend)
