"""Supervised fine-tuning: a LoRA adapter that answers as the examples do.

Reads a base model folder, examples and perhaps a parent adapter; writes one PEFT adapter folder with its model
card. Knows nothing of topics, jobs or stores. The base stays loaded between calls in one process.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy

from serving.prompts import ControlTokenError
from trainers.lora import AdapterShape, Base, attached, load_base, save_adapter
from trainers.packing import Batch, Encoded, Example, encode_example, pack, supervised_logits, thinned
from trainers.progress import Progress, Trained, TrainingError, TrainingStopped

__all__ = ["Example", "Progress", "Recipe", "Trained", "TrainingError", "TrainingStopped", "load_base", "train"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Every number of a run. The defaults are those `trainers.bench_recipe` measures.

    `learning_rate` is for a base of hidden size `reference_width` and scaled by reference_width / hidden size;
    with `reference_width=0` it is taken as it is. `passes` over the examples, kept within `min_steps` and
    `max_steps`, but at least one. `prompt_dropout` is the share of a prompt's tokens left out, anew each time.
    `row_tokens` and `forward_tokens` bound a packed row and one forward pass: speed and memory, never the
    result. `warmup_share` and `decay_share` are shares of the steps. `threads=0`: one CPU thread for a small
    base, torch's own choice for others. A run that goes on from a parent begins with `parent_share` of what the parent
    adds to the base: begun with all of it, it learns new examples less well (Ash and Adams 2020, arXiv:1910.08475).
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    prompt_dropout: float = 0.2
    learning_rate: float = 5e-3
    reference_width: int = 256
    warmup_share: float = 0.1
    decay_share: float = 0.9
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    passes: float = 14.0
    min_steps: int = 20
    max_steps: int = 450
    batch_examples: int = 32
    max_length: int = 512
    row_tokens: int = 256
    forward_tokens: int = 8192
    seed: int = 0
    threads: int = 0
    parent_share: float = 0.3

    def steps_for(self, examples: int) -> int:
        """Optimiser steps for so many examples: the passes within the bounds, but never less than one pass."""
        one_pass = math.ceil(examples / self.batch_examples)
        wanted = math.ceil(self.passes * examples / self.batch_examples)
        return max(self.min_steps, one_pass, min(self.max_steps, wanted))

    def rate_at(self, progress: float, hidden_size: int) -> float:
        """Learning rate at `progress` in 0..1: linear warm-up, stable, linear decay to nothing."""
        scale = self.reference_width / hidden_size if self.reference_width else 1.0
        ramps = (progress / max(self.warmup_share, 1e-9), (1.0 - progress) / max(self.decay_share, 1e-9))
        return self.learning_rate * scale * min(1.0, *ramps)


def train(
    base_dir: Path,
    examples: Sequence[Example],
    recipe: Recipe,
    out_dir: Path,
    *,
    parent_adapter: Path | None = None,
    longest_prompt: int = 0,
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train on `examples`, from `parent_adapter` if given, and save the adapter at `out_dir` (new or empty).

    An example that cannot be rendered, or whose prompt has `longest_prompt` tokens or more (0 = no limit), is left out
    and counted in `Trained.warnings`: nobody could ask it of the model either.

    Raises TrainingError (no examples, base or parent unreadable or not belonging together, diverged) and
    TrainingStopped once `should_stop()`, asked before every step, says so.
    """
    if not examples:
        raise TrainingError("no examples to train on: the job's shards hold none for this model")
    base = load_base(base_dir)
    torch.set_num_threads(recipe.threads or base.good_threads)
    encoded, warnings = _encoded(base, examples, recipe.max_length, longest_prompt)
    shape = AdapterShape(recipe.rank, recipe.alpha, recipe.dropout)
    with attached(base, shape, parent_adapter, recipe.seed, recipe.parent_share) as model:
        trained = replace(_run(model, base, encoded, recipe, on_progress, should_stop), warnings=warnings)
        model.eval()
        save_adapter(model, model_card(base.name, recipe, trained, parent_adapter is not None), out_dir)
    return trained


def _encoded(
    base: Base, examples: Sequence[Example], max_length: int, longest_prompt: int
) -> tuple[list[Encoded], tuple[str, ...]]:
    """The examples as tokens, without those that cannot be asked or learned, and what is said of these: one row of one
    person stops no job."""
    encoded, why = [], []
    for example in examples:
        try:
            one = encode_example(base.tokenizer, example, max_length)
        except (ControlTokenError, TemplateError, KeyError, TypeError, ValueError) as error:
            why.append(str(error))
            continue
        if longest_prompt and one.asked_tokens >= longest_prompt:
            why.append(f"its prompt has {one.asked_tokens} tokens, the limit is {longest_prompt}")
        else:
            encoded.append(one)
    if not encoded:
        raise TrainingError(f"none of {len(examples)} examples can be trained on, the first: {why[0]}")
    if why:
        log.warning("%d of %d examples are left out, the first: %s", len(why), len(examples), why[0])
    what = "too long, or not in the form that the model's chat template takes; the trainer's log says which it was"
    return encoded, (f"{len(why)} of {len(examples)} training rows are left out ({what})",) if why else ()


def _run(
    model: Any,
    base: Base,
    encoded: Sequence[Encoded],
    recipe: Recipe,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Trained:
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=recipe.weight_decay, betas=(0.9, 0.99), fused=True)
    steps, tokens, losses = recipe.steps_for(len(encoded)), 0, []
    drawn = draw_batches(len(encoded), recipe.batch_examples, recipe.seed)
    special, rng = frozenset(base.tokenizer.all_special_ids), random.Random(recipe.seed)
    started_s = time.monotonic()
    with torch.random.fork_rng(devices=[]), disable_input_dtype_casting(model):
        torch.manual_seed(recipe.seed)
        for step in range(1, steps + 1):
            if should_stop():
                raise TrainingStopped(f"stopped before step {step} of {steps}")
            chosen = [thinned(encoded[i], recipe.prompt_dropout, special, rng) for i in next(drawn)]
            loss = backward(model, base, chosen, recipe)
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {step} of {steps}: lower learning_rate")
            torch.nn.utils.clip_grad_norm_(weights, recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at((step - 0.5) / steps, base.hidden_size)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss)
            tokens += sum(len(e.tokens) for e in chosen)
            elapsed_s = time.monotonic() - started_s
            rate = step * len(chosen) / elapsed_s
            on_progress(Progress(step, steps, loss, rate, elapsed_s / step * (steps - step)))
    last = losses[-max(1, steps // 10) :]
    truncated = sum(e.truncated for e in encoded)
    seconds = time.monotonic() - started_s
    return Trained(sum(last) / len(last), steps, len(encoded), tokens, seconds, truncated)


def backward(model: Any, base: Base, chosen: Sequence[Encoded], recipe: Recipe) -> float:
    """Gradients of the mean loss over the supervised tokens of `chosen`; returns that loss."""
    total = sum(len(e.tokens) - e.prompt_tokens for e in chosen)
    loss = 0.0
    for batch in _forwards(base, chosen, recipe):
        with torch.autocast(base.device.type, base.compute_dtype, base.compute_dtype != torch.float32):
            logits = supervised_logits(model, batch, base.compute_dtype)
        part = cross_entropy(logits.float(), batch.targets, reduction="sum") / total
        part.backward()
        loss += part.item()
    return loss


def _forwards(base: Base, chosen: Sequence[Encoded], recipe: Recipe) -> Iterator[Batch]:
    """`chosen` as packed batches of at most `forward_tokens` tokens (or one example)."""
    row_tokens = recipe.row_tokens if base.packs else 1
    pad_id = base.tokenizer.pad_token_id or 0
    group: list[Encoded] = []
    for example in sorted(chosen, key=lambda e: len(e.tokens)):  # the longest so far sets the padded size
        padded = len(example.tokens) if base.packs else len(example.tokens) * (len(group) + 1)
        filled = sum(len(e.tokens) for e in group) if base.packs else 0
        if group and filled + padded > recipe.forward_tokens:
            yield pack(group, row_tokens, pad_id).to(base.device)
            group = []
        group.append(example)
    yield pack(group, row_tokens, pad_id).to(base.device)


def draw_batches(examples: int, batch_examples: int, seed: int) -> Iterator[list[int]]:
    """Batches of example indices without end: every example once before any comes again."""
    rng = random.Random(seed)
    waiting: list[int] = []
    size = min(batch_examples, examples)
    while True:
        while len(waiting) < size:
            waiting += rng.sample(range(examples), examples)
        yield waiting[:size]
        waiting = waiting[size:]


def model_card(base_name: str, recipe: Recipe, trained: Trained, continued: bool) -> str:
    """The adapter's README.md, in the form the Hugging Face hub reads. The same run gives the same text."""
    numbers = "\n".join(f"| {name} | {value} |" for name, value in asdict(recipe).items())
    origin = "continued from a parent adapter of the same base" if continued else "started fresh"
    return f"""---
base_model: {base_name}
library_name: peft
pipeline_tag: text-generation
tags: [lora, sft, tuneloop]
---
# LoRA adapter for {base_name}

Supervised fine-tuning by Tuneloop, {origin}. Load it with `PeftModel.from_pretrained(base, folder)`.

- Examples: {trained.examples} ({trained.truncated} too long, their beginnings cut off)
- Steps: {trained.steps}, tokens: {trained.tokens}
- Loss over answers, mean of the last tenth of the steps: {trained.loss:.4f}

| recipe | value |
|---|---|
{numbers}

Not judged yet: whether it answers better than its predecessor is the gate's verdict, not this card's.
"""
