"""LoRA fine-tuning on a tiny real model: it learns, continues, stops, refuses, and leaves the base alone."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from trainers.pretrain import build_tokenizer
from trainers.sft import Example, Progress, Recipe, TrainingError, TrainingStopped, load_base, train

COLOURS = {"sky": "blue", "grass": "green", "coal": "black", "snow": "white"}
RECIPE = Recipe(rank=4, alpha=8, learning_rate=2e-2, reference_width=0, min_steps=30, max_steps=30, batch_examples=8)


def write_base(folder: Path, hidden_size: int = 32) -> Path:
    tokenizer = build_tokenizer(["what colour is the sky grass coal snow blue green black white"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        initializer_range=0.3,  # a frozen output layer of small random weights can learn nothing
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def questions(words: list[str]) -> list[Example]:
    asked = [(f"what colour is the {word}", COLOURS[word]) for word in words] * 8
    return [Example(({"role": "user", "content": text},), answer) for text, answer in asked]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def first(base_dir, tmp_path_factory):
    """An adapter, the progress of its training, and what `train` gave back."""
    seen: list[Progress] = []
    out_dir = tmp_path_factory.mktemp("adapters") / "first"
    trained = train(base_dir, questions(["sky", "grass"]), RECIPE, out_dir, on_progress=seen.append)
    return out_dir, seen, trained


def test_the_loss_falls_and_progress_counts_down(first):
    _, seen, trained = first
    assert [p.step for p in seen] == list(range(1, 31))
    assert seen[-1].time_left_s == 0 < seen[0].time_left_s
    assert trained.loss < seen[0].loss / 2
    assert (trained.steps, trained.examples, trained.truncated) == (30, 16, 0)


def test_the_adapter_is_peft_files_that_answer_as_taught(base_dir, first):
    out_dir, _, _ = first
    assert {p.name for p in out_dir.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads((out_dir / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert (out_dir / "README.md").read_text().startswith("---\nbase_model: tiny\n")
    plain = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(out_dir)).eval()
    tokenizer = load_base(base_dir).tokenizer
    for word in ("sky", "grass"):
        prompt = f"<|user|>what colour is the {word}<|end|><|assistant|>"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(answer[0, ids.shape[1] :]) == COLOURS[word] + "<|end|>"


def test_the_base_is_left_as_it_was(base_dir, first, tmp_path):
    base = load_base(base_dir)
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    train(base_dir, questions(["coal"]), replace(RECIPE, min_steps=2, max_steps=2), tmp_path / "other")
    assert load_base(base_dir) is base, "the base must stay warm"
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_first_loss_after_other_work(base_dir, first, tmp_path):
    seen: list[Progress] = []
    torch.rand(3)
    random.random()
    short = replace(RECIPE, min_steps=30, max_steps=30)
    train(base_dir, questions(["sky", "grass"]), short, tmp_path / "again", on_progress=seen.append)
    assert seen[0].loss == pytest.approx(first[1][0].loss, rel=1e-3)


def test_a_parent_is_continued_not_begun_anew(base_dir, first, tmp_path):
    out_dir, fresh, _ = first
    seen: list[Progress] = []
    recipe = replace(RECIPE, rank=2, min_steps=5, max_steps=5)
    train(
        base_dir, questions(["sky", "grass"]), recipe, tmp_path / "second",
        parent_adapter=out_dir, on_progress=seen.append,
    )  # fmt: skip
    assert seen[0].loss < fresh[0].loss / 2
    shapes = [
        {k: v.shape for k, v in load_file(d / "adapter_model.safetensors").items()}
        for d in (out_dir, tmp_path / "second")
    ]
    assert shapes[0] == shapes[1], "a continued adapter has its parent's rank"


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_continuation_begins_with_a_share_of_what_its_parent_adds(base_dir, first, tmp_path, share):
    recipe = replace(RECIPE, learning_rate=0.0, min_steps=1, max_steps=1, parent_share=share)
    train(base_dir, questions(["sky"]), recipe, tmp_path / "begun", parent_adapter=first[0])
    parent, begun = (load_file(d / "adapter_model.safetensors") for d in (first[0], tmp_path / "begun"))
    for name, tensor in parent.items():
        assert torch.allclose(begun[name], tensor * share if "lora_B" in name else tensor), name


def test_stopping_writes_nothing_and_frees_the_base(base_dir, tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(TrainingStopped, match="before step 3 of 30"):
        train(base_dir, questions(["sky"]), RECIPE, tmp_path / "stopped", should_stop=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []
    assert not any("lora" in name for name in load_base(base_dir).model.state_dict())


def test_no_examples_are_refused(base_dir, tmp_path):
    with pytest.raises(TrainingError, match="no examples"):
        train(base_dir, [], RECIPE, tmp_path / "out")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no base model can be loaded"):
        train(tmp_path, questions(["sky"]), RECIPE, tmp_path / "out")


def test_a_taken_place_is_refused(base_dir, first):
    with pytest.raises(TrainingError, match="must be new or empty"):
        train(base_dir, questions(["sky"]), replace(RECIPE, min_steps=1, max_steps=1), first[0])


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def refusal(base_dir: Path, parent: Path, tmp_path: Path) -> str:
    with pytest.raises(TrainingError) as caught:
        train(base_dir, questions(["sky"]), RECIPE, tmp_path / "out", parent_adapter=parent)
    assert not (tmp_path / "out").exists()
    assert not any("lora" in name for name in load_base(base_dir).model.state_dict())
    return str(caught.value)


def test_a_parent_for_another_base_is_refused(first, base_dir, tmp_path):
    other = write_base(tmp_path / "other")
    assert "is for base 'tiny', this job trains 'other'" in refusal(other, first[0], tmp_path)
    wider = write_base(tmp_path / "wider" / "tiny", hidden_size=64)
    assert "wrong base or damaged" in refusal(wider, first[0], tmp_path)


def test_a_damaged_parent_is_refused(first, base_dir, tmp_path):
    half = copied(first[0], tmp_path / "half")
    weights = half / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in refusal(base_dir, half, tmp_path)
    bad = copied(first[0], tmp_path / "bad")
    tensors = load_file(bad / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, bad / "adapter_model.safetensors")
    assert "NaN" in refusal(base_dir, bad, tmp_path)
    nothing = copied(first[0], tmp_path / "nothing")
    (nothing / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(base_dir, nothing, tmp_path)


def test_pickled_weights_are_never_read(first, base_dir, tmp_path):
    pickled = copied(first[0], tmp_path / "pickled")
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refusal(base_dir, pickled, tmp_path)


def test_long_examples_are_cut_and_counted(base_dir, tmp_path):
    long = Example(({"role": "user", "content": "what colour is the sky " * 40},), "blue")
    recipe = replace(RECIPE, min_steps=2, max_steps=2, max_length=32)
    trained = train(base_dir, [*questions(["sky"]), long], recipe, tmp_path / "out")
    assert trained.truncated == 1


def test_the_rate_is_scaled_to_the_width_of_the_base():
    recipe = Recipe(learning_rate=1e-3, reference_width=256, warmup_share=0.1, decay_share=0.5)
    assert recipe.rate_at(0.3, 256) == pytest.approx(1e-3)
    assert recipe.rate_at(0.3, 1024) == pytest.approx(2.5e-4)
    assert recipe.rate_at(0.05, 256) == pytest.approx(5e-4)
    assert recipe.rate_at(0.75, 256) == pytest.approx(5e-4)
    assert replace(recipe, reference_width=0).rate_at(0.3, 1024) == pytest.approx(1e-3)


@pytest.mark.parametrize(("examples", "steps"), [(1, 20), (320, 100), (3200, 300), (32_000, 1000)])
def test_steps_follow_the_examples_within_bounds(examples, steps):
    assert Recipe(passes=10, batch_examples=32, min_steps=20, max_steps=300).steps_for(examples) == steps
