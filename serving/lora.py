"""Apply many LoRA adapters to one packed batch, each token through its own adapter.

The A and B of the adapters in a batch stand stacked side by side: all tokens go through the stack at once,
and a mask keeps of the products only a token's own. A batch of one adapter needs neither stack nor mask.
(Measured, rank 16, 256 → 704, 50 tokens, one thread: the stack of 2 adapters takes 26 µs, of 16 160 µs; to
gather A and B per token and multiply with `bmm` takes 480 µs, as it copies the weights for every token.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import linear

from serving.adapters import Adapter, Fit

Stack = tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]  # A [ranks, in], B^T [ranks, out], rank by adapter


class AdapterBank:
    """The adapters on a model's device, and which of them each token of the next step uses.

    Not thread-safe: only the thread that runs the model may call it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._weights = dict(model.named_parameters(remove_duplicate=False))
        self._linears = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
        self._adapters: dict[str, Adapter] = {}
        self._alone: dict[str, dict[str, Stack]] = {}
        self._wrapped: set[str] = set()
        self._mixed: tuple[tuple[str, ...], dict[str, Stack]] = ((), {})
        self._owners = torch.empty(0)
        self._masks: dict[tuple[int, ...], torch.Tensor] = {}
        self.rows = 0
        self.current: dict[str, Stack] = {}
        self.is_mixed = False

    def fit(self, vocabulary: Mapping[str, int]) -> Fit:
        """What an adapter must fit; `vocabulary` is the base tokenizer's."""
        linears = {name: (layer.in_features, layer.out_features) for name, layer in self._linears.items()}
        return Fit(linears, self._weights, vocabulary)

    def add(self, name: str, adapter: Adapter) -> None:
        """Move an adapter to the model's device and type, and make its target layers read the bank."""
        weights = {}
        for module, (down, up) in adapter.weights.items():
            like = self._linears[module].weight
            weights[module] = (down.to(like), up.to(like))
            if module not in self._wrapped:
                self._model.set_submodule(module, LoraLinear(self._linears[module], module, self))
                self._wrapped.add(module)
        self._adapters[name] = Adapter(weights)
        self._alone[name] = _stack([self._adapters[name]])

    def drop(self, name: str) -> None:
        """Forget an adapter that no row uses."""
        del self._adapters[name], self._alone[name]
        if name in self._mixed[0]:
            self._mixed = ((), {})

    def select(self, names: Sequence[str | None], order: Sequence[int]) -> None:
        """Say which adapter each row uses; `order` names the row of each packed token."""
        self._masks = {}
        self.rows = len(names)
        used = sorted({name for name in names if name is not None})
        self.is_mixed = len(used) > 1 or (len(used) == 1 and None in names)
        if not used:
            self.current = {}
        elif len(used) == 1:
            self.current = self._alone[used[0]]
        else:
            self.current = self._mixture(used)
        if self.is_mixed:
            stacked = used if len(used) == 1 else self._mixed[0]
            place = {name: index for index, name in enumerate(stacked)}
            owners = [-1 if name is None else place[name] for name in names]
            device = next(iter(self._linears.values())).weight.device
            self._owners = torch.tensor([owners[row] for row in order], device=device)

    def mask(self, ranks: tuple[int, ...], tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """[tokens, sum of ranks]: 1 where a stacked rank belongs to the token's adapter, else 0."""
        if tokens not in (len(self._owners), self.rows):
            raise RuntimeError(f"a layer got {tokens} of {len(self._owners)} tokens: adapters cannot be mixed in it")
        if ranks not in self._masks:
            columns = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
            own = self._owners[:, None] == columns.to(self._owners.device)
            self._masks[ranks] = own.to(dtype)
        return self._masks[ranks][:tokens]  # the output layer sees only the first tokens, one per row

    def _mixture(self, used: Sequence[str]) -> dict[str, Stack]:
        """The stack of `used`, kept from step to step while it covers them and is not far too wide."""
        names, stacks = self._mixed
        if not set(used) <= set(names) or len(names) > 2 * len(used):
            names = tuple(used)
            stacks = _stack([self._adapters[name] for name in names])
            self._mixed = (names, stacks)
        return stacks


def _stack(adapters: Sequence[Adapter]) -> dict[str, Stack]:
    """Stack the weights of each module that any of `adapters` targets (rank 0 where one does not)."""
    stacks: dict[str, Stack] = {}
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.weights):
        pairs = [adapter.weights.get(module) for adapter in adapters]
        ranks = tuple(0 if pair is None else pair[0].shape[0] for pair in pairs)
        present = [pair for pair in pairs if pair is not None]
        if len(present) == 1:
            down, up = present[0]
        else:
            down, up = (
                torch.cat([pair[0] for pair in present]),
                torch.cat([pair[1] for pair in present], dim=1),
            )
        stacks[module] = (down, up.t(), ranks)
    return stacks


class LoraLinear(torch.nn.Module):
    """A linear layer of the base plus what the bank's current adapters add to each token."""

    def __init__(self, base: torch.nn.Linear, name: str, bank: AdapterBank) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self._name, self._bank = name, bank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = linear(x, self.weight, self.bias)
        stack = self._bank.current.get(self._name)
        if stack is None:
            return y
        down, up, ranks = stack
        products = linear(x.reshape(-1, self.in_features), down)
        if self._bank.is_mixed:
            products *= self._bank.mask(ranks, products.shape[0], products.dtype)
        y.view(-1, self.out_features).addmm_(products, up)
        return y
