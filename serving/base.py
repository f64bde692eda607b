"""Load a base model for serving, from local safetensors files only, and prove that slots serve it exactly.

Reads a Hugging Face model directory; writes nothing. An architecture whose packed forward over slots does
not give the logits of its own plain forward is refused here, at the start, not by a wrong answer later.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.errors import EngineError
from serving.model_files import ModelFilesError, check_model_files
from serving.prompts import encode_prompt
from serving.slots import ATTENTION, SlotCache, Step, Turn, pack

PROBE = ({"role": "user", "content": "What is a probe for, and how would you answer one?"},)
SMALL_PARAMETERS = 100_000_000  # below this, a second CPU thread costs more at its barriers than it computes


@dataclass(frozen=True)
class Base:
    """A loaded base: the model in evaluation mode on its device, its tokenizer and its limits in tokens."""

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    end_tokens: frozenset[int]
    context: int
    takes_keep: bool  # the model can compute logits for chosen tokens only
    probe: tuple[int, ...]

    def decode(self, tokens: list[int]) -> str:
        """Text of `tokens` without special tokens, exactly as they stand (no clean-up of spaces)."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None:  # a tenth of the time of the wrapper around it, and this runs for every token
            return fast.decode(tokens, skip_special_tokens=True)
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def logits(self, step: Step) -> torch.Tensor:
        """Logits [rows, vocabulary] after the newest token of each row of `step`."""
        wanted: dict[str, Any] = {}
        if self.takes_keep:
            wanted["logits_to_keep"] = torch.arange(step.rows, device=self.device)
        out = self.model(input_ids=step.ids, position_ids=step.positions, use_cache=False, slots=step, **wanted)
        return out.logits[0, : step.rows].float()


def load_base(base_dir: Path) -> Base:
    """Load the model and tokenizer in `base_dir` (float32 on a CPU, the checkpoint's type on a GPU).

    Raises EngineError where the directory holds no model that can be served.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model, tokenizer = load_model(base_dir, "auto" if device.type == "cuda" else torch.float32)
    except ModelFilesError as error:
        raise EngineError(f"no base model can be loaded from {base_dir}: {error}") from error
    model = model.to(device).eval().requires_grad_(False)
    base = Base(
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=model.dtype,
        end_tokens=_end_tokens(model, tokenizer),
        context=_context(model.config.get_text_config()),
        takes_keep="logits_to_keep" in inspect.signature(model.forward).parameters,
        probe=tuple(encode_prompt(tokenizer, PROBE)[:32]),
    )
    _prove(base, base_dir)
    return base


def load_model(folder: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and tokenizer out of local files. Raises `ModelFilesError`, whatever it was that did not load."""
    check_model_files(folder)
    try:
        model = _load_weights(folder, dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a stranger's files reach deep into two libraries: any error refuses them
        raise ModelFilesError(f"{type(error).__name__}: {error}") from error
    return model, tokenizer


def _load_weights(folder: Path, dtype: torch.dtype | str) -> Any:
    # Said outright: what the files say of it could be the name of a package with code.
    how: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **how)
    except (ValueError, ImportError) as error:
        if "attention" not in str(error):
            raise
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **how)


def choose_threads(base: Base, threads: int | None) -> int:
    """CPU threads for one step: as asked, else one for a small model and torch's own choice for others."""
    if threads is not None:
        return threads
    return 1 if base.model.num_parameters() < SMALL_PARAMETERS else torch.get_num_threads()


def _context(config: Any) -> int:
    """Positions the model has; within a sliding window only, where sliding attention is plain attention."""
    positions = getattr(config, "max_position_embeddings", None)
    window = getattr(config, "sliding_window", None)
    return min(limit for limit in (positions, window, 1 << 20) if limit)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)


@torch.inference_mode()
def _prove(base: Base, base_dir: Path) -> None:
    """Compare a prompt and three further tokens, served from a slot, with the model's own forward."""
    tokens = list(base.probe)
    plain = base.model(input_ids=torch.tensor([tokens], device=base.device), use_cache=False).logits[0].float()
    base.model.set_attn_implementation(ATTENTION)
    cache = SlotCache(1, len(tokens), base.device, base.dtype)
    cut = len(tokens) - 3
    turns = [Turn(tokens[:cut], 0), *(Turn([tokens[at]], at) for at in range(cut, len(tokens)))]
    try:
        served = torch.cat([base.logits(pack([turn], cache)) for turn in turns])
    except (RuntimeError, TypeError, ValueError) as error:
        raise EngineError(_refusal(base, base_dir, str(error))) from error
    expected = plain[cut - 1 :]
    allowed = (1e-3 if base.dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    worst = float((served - expected).abs().max())
    if not worst <= allowed:
        raise EngineError(_refusal(base, base_dir, f"its logits would be off by {worst:.3g}"))


def _refusal(base: Base, base_dir: Path, reason: str) -> str:
    return f"{type(base.model).__name__} in {base_dir} cannot be served from slots: {reason}"
