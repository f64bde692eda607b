"""What is read of an adapter's `adapter_config.json`: one bounded structure, for serving and for training.

A file from elsewhere may say what LoRA needs (ranks, scales, which layers) and nothing else: no regular expressions,
no module to import, no way to change the base. A field that is not here has no effect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

CONFIG_FILE = "adapter_config.json"
MOST_BYTES, MOST_RANK = 1_000_000, 4096
# Each changes the arithmetic; ignoring one would serve another model than the one that was validated.
UNSUPPORTED = (
    "use_dora", "lora_bias", "modules_to_save", "target_parameters", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora", "fan_in_fan_out",
    "kasa_config", "velora_config", "monteclora_config", "megatron_config",
)  # fmt: skip
# Ways to begin an adapter that leave the base as it is; after any other the adapter belongs to a changed base.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")

# The end of a module's path, such as `self_attn.q_proj`. PEFT would read it as an expression; it is none here.
Suffix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$(?!\n)", max_length=200)]
Suffixes = Annotated[list[Suffix], msgspec.Meta(max_length=1_000)]
Rank = Annotated[int, msgspec.Meta(ge=1, le=MOST_RANK)]
Alpha = Annotated[int, msgspec.Meta(gt=0, le=10**6)] | Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class AdapterConfigError(ValueError):
    """An adapter's configuration cannot be read or is not supported; the message says which field and why."""


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter's numbers and the layers they are for."""

    peft_type: str
    r: Rank
    target_modules: Annotated[Suffixes, msgspec.Meta(min_length=1)]
    lora_alpha: Alpha = 8.0
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    bias: str = "none"
    rank_pattern: Annotated[dict[Suffix, Rank], msgspec.Meta(max_length=10_000)] | None = None
    alpha_pattern: Annotated[dict[Suffix, Alpha], msgspec.Meta(max_length=10_000)] | None = None
    exclude_modules: Suffixes | Suffix | None = None
    layers_to_transform: Annotated[list[int], msgspec.Meta(max_length=10_000)] | int | None = None
    layers_pattern: Suffixes | Suffix | None = None
    base_model_name_or_path: Annotated[str, msgspec.Meta(max_length=1_000)] | None = None

    @property
    def partial(self) -> bool:
        """Whether some of the layers that `target_modules` names may have no weights."""
        return any(value is not None and value != [] for value in
                   (self.exclude_modules, self.layers_to_transform, self.layers_pattern))  # fmt: skip

    def targets(self, module: str) -> bool:
        return any(_ends(module, suffix) for suffix in self.target_modules)

    def rank_of(self, module: str) -> int:
        return next((rank for end, rank in (self.rank_pattern or {}).items() if _ends(module, end)), self.r)

    def alpha_of(self, module: str) -> float:
        return next((alpha for end, alpha in (self.alpha_pattern or {}).items() if _ends(module, end)), self.lora_alpha)


def _ends(module: str, suffix: str) -> bool:
    return module == suffix or module.endswith(f".{suffix}")


def read_adapter_config(adapter_dir: Path) -> AdapterConfig:
    """The configuration of the adapter in `adapter_dir`. Raises `AdapterConfigError`."""
    path = adapter_dir / CONFIG_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise AdapterConfigError(f"{path} is damaged: it is larger than {MOST_BYTES} bytes")
        values = msgspec.json.decode(raw, type=dict[str, Any])
    except FileNotFoundError:
        raise AdapterConfigError(f"no adapter in {adapter_dir}: {CONFIG_FILE} is missing") from None
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise AdapterConfigError(f"{path} is damaged: {error}") from error
    if values.get("peft_type") != "LORA":
        raise AdapterConfigError(f"{path} does not describe a LoRA adapter (peft_type must be LORA)")
    used = [name for name in UNSUPPORTED if values.get(name)]
    if values.get("bias", "none") != "none":
        used.append("bias")
    start = values.get("init_lora_weights")
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in PLAIN_STARTS):
        used.append(f"init_lora_weights {json.dumps(start)[:50]}")
    if used:
        raise AdapterConfigError(f"{adapter_dir} uses {', '.join(used)}; only plain LoRA on linear layers is served")
    try:
        return msgspec.convert(values, AdapterConfig)
    except msgspec.ValidationError as error:
        raise AdapterConfigError(f"{path} is damaged: {error}") from error
