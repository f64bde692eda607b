"""Measure the engine against transformers' `generate`; prints one JSON line, writes nothing that stays.

`python -m serving.bench_engine [BASE_DIR] [--adapters N]`: answers of 8 tokens to prompts of about 20, at
concurrency 16, spread over N random LoRA adapters of rank 16 (0 = the base itself). `generate` gets the
same work one request at a time and in batches of 16; with adapters it has to run one batch per adapter.
Without BASE_DIR the base has 4 M parameters with random weights: the time does not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from serving.engine import Engine, Request
from serving.prompts import encode_prompt

ANSWER_TOKENS, CONCURRENCY, REQUESTS, RANK, ROUNDS = 8, 16, 320, 16, 3
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(directory: Path) -> Path:
    """A Llama of 4.2 M parameters with random weights and one word per token."""
    words = {word: index for index, word in enumerate(["<end>", "<unk>", *(f"w{n}" for n in range(4094))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    FastTokenizer(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8,
        max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def make_adapters(base: Path, directory: Path, count: int) -> list[Path]:
    """`count` adapters of rank 16 on all linear layers, weights random."""
    paths = [directory / f"adapter-{index}" for index in range(count)]
    for path in paths:
        model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(str(path))
    return paths


def rate(work: Callable[[], Any], requests: int, seconds: float = 2.0) -> float:
    """Requests per second: the best of the repetitions that fit in `seconds` (neighbours only slow it)."""
    best, begun = 0.0, time.perf_counter()
    while best == 0 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        work()
        best = max(best, requests / (time.perf_counter() - start))
    return best


def ask_all(engine: Engine, requests: list[Request]) -> None:
    """Closed loop: as soon as one answer is complete its successor is submitted, CONCURRENCY at a time."""
    left, finished = iter(requests), threading.Semaphore(0)

    def next_one(_ticket: object = None) -> None:
        request = next(left, None)
        if request is None:
            finished.release()
        else:
            engine.submit(request, on_done=next_one)

    for _ in range(CONCURRENCY):
        next_one()
    for _ in range(CONCURRENCY):
        finished.acquire()


def engine_rate(base: Path, adapters: list[Path], requests: list[Request], threads: int | None) -> float:
    """Requests per second of the engine with `adapters` loaded."""
    engine = Engine(base, slots=CONCURRENCY, threads=threads)
    for path in adapters:
        engine.load(path.name, path)
    ask_all(engine, requests[:32])
    best = rate(lambda: ask_all(engine, requests), len(requests))
    engine.close()
    return best


def generate_rate(base: Path, adapters: list[Path], prompts: list[list[int]], batch: int) -> float:
    """Requests per second of `generate` on batches of `batch`, each batch through one adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32).eval()
    if adapters:
        model = PeftModel.from_pretrained(model, adapters[0]).eval()
    share = max(1, batch // max(1, len(adapters)))
    tensors = []
    for begin in range(0, len(prompts), share):
        rows = prompts[begin : begin + share]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        tensors.append({"input_ids": ids, "attention_mask": mask})

    def work() -> None:
        for inputs in tensors:
            model.generate(
                **inputs, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS, do_sample=False,
                pad_token_id=0,
            )  # fmt: skip

    return rate(work, len(prompts))


def main() -> None:
    """Run all three and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("--adapters", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or make_base(Path(scratch) / "base")
        adapters = make_adapters(base, Path(scratch), options.adapters)
        texts = [" ".join(f"w{(index * 31 + at) % 4000}" for at in range(14 + index % 7)) for index in range(REQUESTS)]
        chats = [[{"role": "user", "content": text}] for text in texts]
        names: list[str | None] = [path.name for path in adapters] or [None]
        requests = [
            Request(chat, names[index % len(names)], max_new_tokens=ANSWER_TOKENS) for index, chat in enumerate(chats)
        ]
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        prompts = [encode_prompt(tokenizer, chat) for chat in chats]
        torch.set_num_threads(options.threads or 1)
        measures: dict[str, Callable[[], float]] = {
            "engine_requests_per_s": lambda: engine_rate(base, adapters, requests, options.threads),
            "generate_one_requests_per_s": lambda: generate_rate(base, adapters, prompts[:16], 1),
            "generate_batch16_requests_per_s": lambda: generate_rate(base, adapters, prompts[:64], 16),
        }
        # In turns, so that a busy neighbour slows all three alike.
        rounds = [{name: measure() for name, measure in measures.items()} for _ in range(ROUNDS)]
    result = {
        "adapters": len(adapters),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "answer_tokens": ANSWER_TOKENS,
        "concurrency": CONCURRENCY,
        "threads": torch.get_num_threads(),
        **{name: max(one[name] for one in rounds) for name in measures},
    }
    engine = result["engine_requests_per_s"]
    result["times_generate_one"] = engine / result["generate_one_requests_per_s"]
    result["times_generate_batch16"] = engine / result["generate_batch16_requests_per_s"]
    print(json.dumps({key: round(value, 2) for key, value in result.items()}))


if __name__ == "__main__":
    main()
