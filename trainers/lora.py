"""A base model kept warm, and LoRA adapters put on it, taken off it and saved as PEFT files.

Reads Hugging Face model folders and PEFT adapter folders (safetensors only); `save_adapter` writes one. The
base's weights are never changed: `attached` leaves the model as it found it, for the next job.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from serving.adapter_config import CONFIG_FILE, AdapterConfigError, read_adapter_config
from serving.base import load_model
from serving.model_files import ModelFilesError
from trainers.packing import Encoded, pack, supervised_logits
from trainers.progress import TrainingError

WEIGHTS_FILE = "adapter_model.safetensors"
SMALL_PARAMETERS, ALL_THREADS = 100_000_000, torch.get_num_threads()
PROBE = (Encoded(tuple(range(1, 9)), 2), Encoded(tuple(range(9, 14)), 2))


@dataclass(frozen=True)
class Base:
    """A frozen causal language model and its tokenizer. `packs`: several examples to a row are exact on it."""

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    compute_dtype: torch.dtype
    packs: bool

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def good_threads(self) -> int:
        """One for a small model: a second thread costs more at its barriers than it computes."""
        return 1 if self.model.num_parameters() < SMALL_PARAMETERS else ALL_THREADS


@dataclass(frozen=True)
class AdapterShape:
    """Numbers of a new adapter; one that continues a parent has the parent's."""

    rank: int
    alpha: int
    dropout: float


def load_base(base_dir: Path) -> Base:
    """The base in `base_dir`, from memory if it was the last one loaded. Raises TrainingError."""
    return _load_base(Path(base_dir).resolve())


@lru_cache(maxsize=1)
def _load_base(base_dir: Path) -> Base:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _compute_dtype(device)
    try:
        model, tokenizer = load_model(base_dir, dtype)
    except ModelFilesError as error:
        raise TrainingError(f"no base model can be loaded from {base_dir}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"the tokenizer in {base_dir} has no eos_token: an answer could never end")
    model = model.to(device).eval().requires_grad_(False)
    model.name_or_path = base_dir.name  # what PEFT notes in adapters: a name that holds on other machines
    return Base(base_dir.name, model, tokenizer, device, dtype, _packs_exactly(model, device))


def _compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies in it, else float32 (emulated bfloat16 is slower than float32)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32


@torch.no_grad()
def _packs_exactly(model: Any, device: torch.device) -> bool:
    """Whether two examples in one row give the logits they give alone (not so with, say, recurrent layers)."""
    alone, packed = (pack(PROBE, row_tokens, 0).to(device) for row_tokens in (1, 16))
    try:
        expected, got = (supervised_logits(model, batch, model.dtype).float() for batch in (alone, packed))
    except (TypeError, ValueError, RuntimeError, IndexError):  # no 4-D masks or positions in this architecture
        return False
    order = packed.owners.sort(stable=True).indices
    allowed = (1e-3 if model.dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    return bool((got[order] - expected).abs().max() <= allowed)


@contextmanager
def attached(
    base: Base, shape: AdapterShape, parent: Path | None, seed: int, parent_share: float = 1.0
) -> Iterator[Any]:
    """A PEFT model of `base` with a trainable adapter: new, or starting from `parent_share` of the one in `parent`."""
    config = _parent_config(parent, base) if parent else _new_config(shape)
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base.model, config)
        except Exception as error:
            _load_base.cache_clear()  # some of its layers may be wrapped: the next job gets a new one
            raise TrainingError(f"the adapter does not fit base {base.name!r}: {error}") from error
    try:
        if parent:
            _load_weights(model, parent, base, parent_share)
        model.train()
        yield model
    finally:
        model.unload()
        base.model.eval()


def _new_config(shape: AdapterShape) -> LoraConfig:
    return LoraConfig(
        r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout,
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip


def _parent_config(parent: Path, base: Base) -> LoraConfig:
    """PEFT's configuration with what serving reads of the parent's, and nothing else that stands in the file."""
    try:
        said = read_adapter_config(parent)
    except AdapterConfigError as error:
        raise TrainingError(f"{parent / CONFIG_FILE} of the parent adapter cannot be read: {error}") from error
    if said.base_model_name_or_path != base.name:
        named = said.base_model_name_or_path
        raise TrainingError(f"parent adapter {parent} is for base {named!r}, this job trains {base.name!r}")
    return LoraConfig(
        r=said.r, lora_alpha=said.lora_alpha, lora_dropout=said.lora_dropout, use_rslora=said.use_rslora,
        target_modules=said.target_modules, exclude_modules=said.exclude_modules,
        layers_to_transform=said.layers_to_transform, layers_pattern=said.layers_pattern,
        rank_pattern=said.rank_pattern or {}, alpha_pattern=said.alpha_pattern or {}, task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
    )  # fmt: skip


def _load_weights(model: Any, parent: Path, base: Base, share: float) -> None:
    path = parent / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} of the parent adapter cannot be read: {error}") from error
    wanted = {
        name: tensor.shape for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise TrainingError(f"{path} has other tensors than an adapter of base {base.name!r}: wrong base or damaged")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise TrainingError(f"{path} is damaged: it holds NaN or infinity")
    # An adapter adds B·A to a layer: a share of B is a share of the sum.
    set_peft_model_state_dict(model, {name: t * share if "lora_B" in name else t for name, t in tensors.items()})


def save_adapter(model: Any, card: str, out_dir: Path) -> None:
    """Write the adapter of `model` and its card; `out_dir` appears whole, by one rename, or not at all."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}.") as scratch:
        written = Path(scratch) / "adapter"
        # Without the embedding layers: to look for changed ones PEFT would ask the network for the base.
        model.save_pretrained(written, safe_serialization=True, save_embedding_layers=False)
        (written / "README.md").write_text(card, "utf-8")
        for path in written.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner can read
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            os.rename(written, out_dir)
        except OSError as error:
            raise TrainingError(f"the adapter cannot be put at {out_dir} (it must be new or empty): {error}") from error
