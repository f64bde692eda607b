"""Read a LoRA adapter (PEFT files) and say plainly why one cannot be served with a base.

Reads `adapter_config.json` and `adapter_model.safetensors`; writes nothing. Applying adapters to a batch
is `serving.lora`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from serving.adapter_config import AdapterConfig, AdapterConfigError, read_adapter_config
from serving.errors import AdapterError

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """LoRA weights by module: (A [rank, in], B [out, rank]), B already times alpha / rank."""

    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Fit:
    """What an adapter must fit: the base's linear layers {module: (in, out)}, weights and vocabulary."""

    linears: Mapping[str, tuple[int, int]]
    weights: Mapping[str, torch.Tensor]
    vocabulary: Mapping[str, int]


def read_adapter(adapter_dir: Path, fit: Fit) -> Adapter:
    """Read the adapter in `adapter_dir` for the base that `fit` describes.

    Raises AdapterError, and nothing else, for what is missing, damaged, not safetensors, unsupported, or for another
    base.
    """
    try:
        return _read(adapter_dir, fit)
    except AdapterError:
        raise
    except AdapterConfigError as error:
        raise AdapterError(str(error)) from error
    except Exception as error:  # whatever else a stranger's file brings a library to do
        raise AdapterError(f"{adapter_dir} cannot be read: {type(error).__name__}: {error}") from error


def _read(adapter_dir: Path, fit: Fit) -> Adapter:
    config = read_adapter_config(adapter_dir)
    tensors = _read_tensors(adapter_dir)
    _check_vocabulary(adapter_dir, fit.vocabulary)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if _is_base_weight(adapter_dir, key, tensor, fit.weights):
            continue
        module, side = _split_key(adapter_dir, key)
        if module not in fit.linears:
            raise AdapterError(f"{adapter_dir} is for another base: this one has no linear layer {module!r}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterError(f"{adapter_dir} is damaged: {key} holds NaN or infinity, or no floating-point numbers")
        pairs.setdefault(module, {})[side] = tensor
    _check_targets(adapter_dir, config, pairs.keys(), fit.linears.keys())
    return Adapter({module: _pair(adapter_dir, config, module, sides, fit.linears[module])
                    for module, sides in pairs.items()})  # fmt: skip


def _read_tensors(adapter_dir: Path) -> dict[str, torch.Tensor]:
    path = adapter_dir / WEIGHTS_FILE
    if not path.is_file():
        others = sorted(found.name for found in adapter_dir.glob("adapter_model.*"))
        hint = f" (found {', '.join(others)}; only safetensors is read)" if others else ""
        raise AdapterError(f"no weights in {adapter_dir}: {WEIGHTS_FILE} is missing{hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged or not safetensors: {error}") from error
    if not tensors:
        raise AdapterError(f"{path} is damaged: it holds no tensors")
    return tensors


def _is_base_weight(adapter_dir: Path, key: str, tensor: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether `key` is a copy of a base weight (PEFT adds one when an output layer is a target).

    Raises AdapterError where the copy differs from this base's own.
    """
    own = weights.get(key.removeprefix(PREFIX).replace(".base_layer.", "."))
    if own is None:
        return False
    like = tensor.to(own.device, own.dtype)
    if like.shape != own.shape or not torch.allclose(like, own, rtol=1e-2, atol=1e-5):
        raise AdapterError(f"{adapter_dir} is for another base: its copy of {key!r} differs from this one's")
    return True


def _split_key(adapter_dir: Path, key: str) -> tuple[str, str]:
    match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
    if match is None:
        raise AdapterError(f"{adapter_dir} holds {key!r}; only LoRA weights of linear layers are served")
    return match[1], match[2]


def _check_vocabulary(adapter_dir: Path, vocabulary: Mapping[str, int]) -> None:
    """A tokenizer beside the adapter must be the base's: other ids would be other words."""
    path = adapter_dir / "tokenizer.json"
    if not path.exists():
        return
    try:
        own = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise AdapterError(f"{path} is damaged: {error}") from error
    if own != dict(vocabulary):
        raise AdapterError(f"{adapter_dir} is for another base: its tokenizer has another vocabulary")


def _check_targets(adapter_dir: Path, config: AdapterConfig, found: Any, linears: Any) -> None:
    """Every layer of the base that the config names must have weights (a shallower base has fewer)."""
    if config.partial:
        return
    expected = {name for name in linears if config.targets(name)}
    missing = sorted(expected - set(found))
    if missing:
        raise AdapterError(
            f"{adapter_dir} is damaged or for another base: {len(missing)} of {len(expected)} target layers "
            f"have no weights, the first is {missing[0]!r}"
        )


def _pair(
    adapter_dir: Path,
    config: AdapterConfig,
    module: str,
    sides: dict[str, torch.Tensor],
    size: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check A and B of one module against its (in, out) size; fold the scaling into B."""
    if sides.keys() != {"A", "B"}:
        raise AdapterError(f"{adapter_dir} is damaged: {module!r} has only lora_{''.join(sides)}")
    down, up = sides["A"], sides["B"]
    rank = down.shape[0]
    if down.shape != (rank, size[0]) or up.shape != (size[1], rank):
        raise AdapterError(
            f"{adapter_dir} is for another base: {module!r} has A {tuple(down.shape)} and B {tuple(up.shape)}, "
            f"the base's layer is {size[0]} → {size[1]}"
        )
    declared = config.rank_of(module)
    if declared != rank:
        raise AdapterError(f"{adapter_dir} is damaged: {module!r} has rank {rank}, its config says {declared}")
    up = up.float() * (config.alpha_of(module) / (math.sqrt(rank) if config.use_rslora else rank))
    if not torch.isfinite(up).all():
        raise AdapterError(f"{adapter_dir} is damaged: {module!r} becomes infinite when it is scaled")
    return down, up
