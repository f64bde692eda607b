"""Packed rows give the loss of single rows, and no segment sees another."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers.packing import Encoded, Example, arrange, encode_example, pack, segment_mask, supervised_logits, thinned


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def some_examples(count: int = 7) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 15, (count,), generator=generator).tolist()
    rows = [torch.randint(1, 64, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(tuple(row), 1 + index % 3) for index, row in enumerate(rows)]


def plain_loss(model: torch.nn.Module, encoded: list[Encoded]) -> torch.Tensor:
    """The loss as Hugging Face computes it, one example at a time, labels -100 on the prompt."""
    total, count = torch.zeros(()), 0
    for example in encoded:
        ids = torch.tensor([example.tokens])
        labels = ids.clone()
        labels[:, : example.prompt_tokens] = -100
        supervised = len(example.tokens) - example.prompt_tokens
        total = total + model(input_ids=ids, labels=labels).loss * supervised
        count += supervised
    return total / count


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("row_tokens", [1, 32])
def test_packed_loss_and_gradients_equal_unpacked_ones(build, row_tokens):
    model, encoded = build(), some_examples()
    plain_loss(model, encoded).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch = pack(encoded, row_tokens, 0)
    loss = cross_entropy(supervised_logits(model, batch), batch.targets)
    loss.backward()
    assert loss.item() == pytest.approx(plain_loss(model, encoded).item(), abs=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_segments_do_not_see_each_other():
    model, encoded = tiny_llama(), some_examples(4)
    changed = [encoded[0], Encoded(tuple(63 - t for t in encoded[1].tokens), encoded[1].prompt_tokens), *encoded[2:]]
    before, after = (pack(e, 64, 0) for e in (encoded, changed))
    assert before.input_ids.shape[0] == 1, "the examples must share a row for this test to say anything"
    with torch.no_grad():
        logits, others = supervised_logits(model, before), supervised_logits(model, after)
    same = before.owners != 1
    torch.testing.assert_close(logits[same], others[same], atol=1e-6, rtol=0)
    assert not torch.allclose(logits[~same], others[~same], atol=1e-3)


def test_the_mask_is_what_keeps_segments_apart():
    """The guard's refused example: with a plain causal mask the same change does leak."""
    model, encoded = tiny_llama(), some_examples(4)
    batch = pack(encoded, 64, 0)
    with torch.no_grad():
        leaking = model(input_ids=batch.input_ids).logits[batch.rows, batch.columns]
        exact = supervised_logits(model, batch)
    assert not torch.allclose(leaking, exact, atol=1e-3)


def test_mask_is_causal_within_a_segment_only():
    mask = segment_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)[0, 0] == 0
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def test_targets_are_the_completion_and_owners_name_the_example():
    encoded = [Encoded((5, 6, 7, 8), 2), Encoded((9, 10, 11), 1)]
    batch = pack(encoded, 16, 0)
    by_owner = {i: batch.targets[batch.owners == i].tolist() for i in (0, 1)}
    assert by_owner == {0: [7, 8], 1: [10, 11]}
    read = batch.input_ids[batch.rows, batch.columns + 1]
    assert read.tolist() == batch.targets.tolist()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 64))
def test_arrangement_places_every_example_once_within_the_rows(lengths, row_tokens):
    rows = arrange(lengths, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= row_tokens for row in rows)


class OneTokenPerLetter:
    """A stand-in for a tokenizer: the real ones are tried in tests/integration/test_sft.py."""

    chat_template = "set"
    bos_token_id, eos_token_id, unk_token_id = None, 0, None
    all_special_ids: ClassVar[list[int]] = [0]
    added_tokens_decoder: ClassVar[dict[int, str]] = {}

    def convert_ids_to_tokens(self, ids):
        return ["\0" for _ in ids]

    def apply_chat_template(self, messages, **_):
        return "".join(message["content"] for message in messages)

    def encode(self, text, add_special_tokens):
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens", "prompt_tokens", "truncated"),
    [
        ("abc", "xy", "abcxy\0", 3, False),
        ("abcdefgh", "xy", "defghxy\0", 5, True),
        ("abc", "vwxyzvwxyz", "cvwxyzvw", 1, True),
    ],
)
def test_a_long_prompt_loses_its_beginning(prompt, completion, tokens, prompt_tokens, truncated):
    example = Example(({"role": "user", "content": prompt},), completion)
    encoded = encode_example(OneTokenPerLetter(), example, max_length=8)
    assert encoded == Encoded(tuple(map(ord, tokens)), prompt_tokens, truncated)


def test_thinning_spares_the_answer_and_the_kept_tokens():
    encoded = Encoded((1, *range(10, 110), 2, 7, 8, 9), 102)
    thin = thinned(encoded, 0.3, frozenset({1, 2}), random.Random(0))
    assert thin.tokens[-3:] == (7, 8, 9) and len(thin.tokens) == thin.prompt_tokens + 3
    assert thin.tokens[0] == 1 and thin.tokens[thin.prompt_tokens - 1] == 2
    assert 55 <= thin.prompt_tokens <= 88
    assert list(thin.tokens[:-3]) == [t for t in encoded.tokens if t in set(thin.tokens[:-3])]
    assert thinned(encoded, 0.0, frozenset(), random.Random(0)) == encoded
    assert thinned(encoded, 1.0, frozenset(), random.Random(0)).prompt_tokens == 1
