"""Pre-trains the small base `pydoc-4m` from scratch: `python -m trainers.pretrain --out DIR`.

Reads the documentation of the running Python (`trainers.corpus`) and nothing else; writes a folder in Hugging
Face layout: bf16 safetensors, tokenizer with a chat template, model card. The shipped base was made with the
defaults; another Python has other documentation, so its weights will differ.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from trainers.corpus import read_passages

VOCABULARY, ROW_TOKENS, ROWS, STEPS = 4096, 128, 16, 3000
PEAK_LEARNING_RATE, LAST_SHARE, WARMUP_STEPS = 2e-3, 0.05, 100
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'assistant'] %}{{ '<|' + message['role'] + '|>' }}"
    "{% else %}{{ '<|user|>' }}{% endif %}{{ message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE of `VOCABULARY` tokens trained on `texts`, with the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=SPECIAL_TOKENS[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: Any, seed: int) -> Any:
    """A Llama of 4.2 M parameters with weights drawn from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to LAST_SHARE of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_SHARE + (1 - LAST_SHARE) * cosine)


def token_stream(tokenizer: Any) -> Any:
    """All passages in their order as one tensor of token ids, each ended by the end token."""
    import torch

    ids: list[int] = []
    for tokens in tokenizer(read_passages(), add_special_tokens=False, verbose=False)["input_ids"]:
        ids += [*tokens, tokenizer.eos_token_id]
    return torch.tensor(ids)


def train(model: Any, stream: Any, steps: int, seed: int, compiled: bool) -> float:
    """Train on random crops of the stream; returns the loss (nats a token), a running mean of about 50 steps."""
    import torch
    from torch.nn.functional import cross_entropy

    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    forward = torch.compile(model, dynamic=False) if compiled else model
    dice, began, mean = torch.Generator().manual_seed(seed), time.monotonic(), math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        starts = torch.randint(0, len(stream) - ROW_TOKENS - 1, (ROWS,), generator=dice).tolist()
        rows = torch.stack([stream[start : start + ROW_TOKENS + 1] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(input_ids=rows[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if not math.isfinite(mean):
            raise FloatingPointError(f"pre-training diverged at step {step}; lower PEAK_LEARNING_RATE")
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}, loss {mean:.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return mean


def save(model: Any, tokenizer: Any, steps: int, seed: int, loss: float, out_dir: Path) -> None:
    """Writes the model folder file by file, each by rename, so that a reader never sees half a file."""
    import torch

    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (Path(scratch) / "README.md").write_text(model_card(steps, seed, loss), "utf-8")
        for path in sorted(Path(scratch).iterdir()):
            path.chmod(0o644)  # safetensors writes files that only their owner can read
            os.replace(path, out_dir / path.name)


def model_card(steps: int, seed: int, loss: float) -> str:
    """The README.md of the model folder, in the form the Hugging Face hub reads."""
    tokens = steps * ROWS * ROW_TOKENS
    return f"""---
license: psf-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, from-scratch, tiny]
---
# pydoc-4m

A Llama of 4.2 million parameters (4 layers, hidden 256, 8 heads, byte-level BPE of 4,096 tokens, tied embeddings)
pre-trained from scratch so that Tuneloop runs on a laptop without any download.

## Training
- Made by `python -m trainers.pretrain`, seed {seed}: {steps} steps of {ROWS} rows of {ROW_TOKENS} tokens
  ({tokens / 1e6:.1f} M tokens, about ten passes), AdamW, peak learning rate {PEAK_LEARNING_RATE}, cosine,
  bf16 autocast; some ten minutes on two idle CPU cores.
- Data: the documentation of the Python {platform.python_version()} standard library (docstrings and
  `pydoc_data.topics`, 2.3 MB), under the Python Software Foundation License.
- Loss at the end (training data, running mean of about 50 steps): {loss:.3f} nats a token.

## Use and limits
A base for LoRA: short labels and identifiers from short English texts. It has read nothing but Python's
documentation, knows no facts, follows no instructions, and has no safety training. Not for open conversation.
Chat format: `<|user|>text<|end|><|assistant|>answer<|end|>`; the chat's own tokens are untrained in the base, an
adapter learns them.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    args = parser.parse_args()
    import torch

    tokenizer = build_tokenizer(read_passages())
    model = build_model(tokenizer, args.seed)
    torch.manual_seed(args.seed)
    loss = train(model, token_stream(tokenizer), args.steps, args.seed, args.compile)
    save(model, tokenizer, args.steps, args.seed, loss, args.out)
    print(f"loss {loss:.3f}; written to {args.out}")


if __name__ == "__main__":
    main()
