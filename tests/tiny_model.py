"""A real Llama and real PEFT adapters, small enough to be made inside a test.

`make_tiny_base` writes a base model with random weights, a byte-level tokenizer and a chat template;
`make_tiny_adapter` writes a LoRA adapter with random, non-zero weights. Both only write their directory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
END = "<|end|>"
PAD = "<|pad|>"


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that every character outside ASCII is cut between tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def make_tiny_base(directory: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 512) -> Path:
    """Write a random Llama of about 50,000 parameters with its tokenizer; return `directory`."""
    directory = Path(directory)
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.3,  # large enough that greedy answers vary with the prompt
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tiny_adapter(
    base: Path,
    directory: Path,
    seed: int = 1,
    *,
    rank: int = 4,
    targets: Sequence[str] = ALL_LINEAR,
    scale: float = 0.2,
) -> Path:
    """Write a LoRA adapter for the model in `base` whose A and B are random (so it changes the answers)."""
    directory = Path(directory)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    adapted.save_pretrained(directory, safe_serialization=True)
    return directory
