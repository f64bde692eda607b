"""What the default recipe reaches on real questions: `python -m trainers.bench_recipe --data DIR`.

Reads banking77's `train.csv` and `test.csv` (text, category) in DIR and a base. Trains version 1 on ten old
intents, version 2 from version 1 on ten new ones plus replay, and for comparison one model from the base on the
same examples at once. Prints one JSON line: exact match on the test questions, loss, steps, seconds.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from serving.prompts import encode_prompt
from trainers.lora import load_base
from trainers.sft import Example, Recipe, train

INTENTS, MINIMUM_ROWS, FIRST_EXAMPLES, FRESH_OLD = 10, 90, 60, 28
BASE_DIR = Path(__file__).parents[1] / "deploy" / "bases" / "pydoc-4m"


def read_questions(path: Path) -> dict[str, list[Example]]:
    """The rows of a banking77 CSV as examples, by category."""
    questions = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            message = {"role": "user", "content": row["text"]}
            questions[row["category"]].append(Example((message,), row["category"]))
    return dict(questions)


def choose_intents(questions: dict[str, list[Example]]) -> tuple[list[str], list[str]]:
    """Ten old and ten new categories of enough rows, in the order of their names' sha256."""
    enough = [name for name, rows in questions.items() if len(rows) >= MINIMUM_ROWS]
    ordered = sorted(enough, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return ordered[:INTENTS], ordered[INTENTS : 2 * INTENTS]


def draw(questions: dict[str, list[Example]], names: Sequence[str], start: int, stop: int) -> list[Example]:
    """Examples `start` to `stop` of each category, in an order fixed by the category's name."""
    return [e for name in names for e in random.Random(name).sample(questions[name], stop)[start:]]


@torch.inference_mode()
def exact_match(base_dir: Path, adapter: Path, questions: Sequence[Example], batch: int = 64) -> float:
    """The share of `questions` whose greedy answer is the completion, exactly."""
    base = load_base(base_dir)
    model: Any = PeftModel.from_pretrained(base.model, str(adapter))
    pad, right = base.tokenizer.pad_token_id or 0, 0
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        prompts = [encode_prompt(base.tokenizer, e.messages) for e in part]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False, pad_token_id=pad)
        answers = base.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        right += sum(answer == e.completion for answer, e in zip(answers, part, strict=True))
    model.unload()
    return right / len(questions)


def run(data_dir: Path, base_dir: Path, new_examples: int, recipe: Recipe) -> dict[str, object]:
    """The three trainings and their figures."""
    asked, tested = (read_questions(data_dir / name) for name in ("train.csv", "test.csv"))
    old, new = choose_intents(asked)
    first = draw(asked, old, 0, FIRST_EXAMPLES)
    fresh = draw(asked, old, FIRST_EXAMPLES, FIRST_EXAMPLES + FRESH_OLD)
    added = draw(asked, new, 0, new_examples)
    figures: dict[str, object] = {"new_examples": new_examples, "recipe": vars(recipe)}
    with tempfile.TemporaryDirectory() as scratch:
        v1, v2, joint = (Path(scratch) / name for name in ("v1", "v2", "joint"))
        runs = ((v1, None, first), (v2, v1, first + fresh + added), (joint, None, first + fresh + added))
        for adapter, parent, examples in runs:
            cpu_s = time.process_time()
            trained = train(base_dir, examples, recipe, adapter, parent_adapter=parent)
            figures[adapter.name] = {
                "examples": trained.examples,
                "steps": trained.steps,
                "loss": round(trained.loss, 4),
                "seconds": round(trained.seconds, 1),
                "cpu_seconds": round(time.process_time() - cpu_s, 1),
                "old": round(exact_match(base_dir, adapter, [e for n in old for e in tested[n]]), 3),
                "new": round(exact_match(base_dir, adapter, [e for n in new for e in tested[n]]), 3),
            }
            print(adapter.name, figures[adapter.name], file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=BASE_DIR)
    parser.add_argument("--new-examples", type=int, default=FRESH_OLD)
    for name in ("rank", "alpha", "max_steps", "batch_examples"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe, name))
    for name in ("learning_rate", "passes", "dropout", "weight_decay", "warmup_share", "decay_share"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Recipe, name))
    options = vars(parser.parse_args())
    data_dir, base_dir, new_examples = options.pop("data"), options.pop("base"), options.pop("new_examples")
    print(json.dumps(run(data_dir, base_dir, new_examples, replace(Recipe(), **options))))


if __name__ == "__main__":
    main()
