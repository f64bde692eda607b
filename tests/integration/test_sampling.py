"""Choosing tokens, growing text, packing rows: the pure parts of the engine."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.detokenize import TextStream
from serving.sampling import Draw, choose, sample
from serving.slots import like_lengths

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def test_greedy_rows_take_the_largest_logit_beside_sampled_rows() -> None:
    logits = torch.cat([LOGITS, LOGITS.flip(1)])
    chosen = choose(logits, [None, Draw(1.0, 1.0, 0.99)])
    assert chosen.tokens == [0, 0]  # the flipped row's last 1% is its least likely token, token 0
    assert choose(logits, [None, None]).tokens == [0, 3]


def test_a_row_with_nan_is_told_apart_and_leaves_the_others() -> None:
    logits = torch.cat([LOGITS, torch.full_like(LOGITS, math.nan)])
    chosen = choose(logits, [None, Draw(1.0, 1.0, 0.5)])
    assert chosen.sound == [True, False]
    assert chosen.tokens[0] == 0


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 2), (0.99, 3)])
def test_a_uniform_number_picks_by_cumulative_probability(uniform: float, token: int) -> None:
    assert sample(LOGITS, [Draw(1.0, 1.0, uniform)]) == [token]


@pytest.mark.parametrize(("top_p", "allowed"), [(0.01, {0}), (0.5, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2})])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, allowed: set[int]) -> None:
    drawn = {sample(LOGITS, [Draw(1.0, top_p, step / 100)])[0] for step in range(100)}
    assert drawn == allowed


def test_frequencies_follow_the_probabilities() -> None:
    rng = random.Random(0)
    counts = Counter(sample(LOGITS.repeat(4000, 1), [Draw(1.0, 1.0, rng.random()) for _ in range(4000)]))
    assert [counts[token] / 4000 for token in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    assert sample(LOGITS * 1000, [Draw(1e-6, 1.0, 0.999999)]) == [0]


def test_a_row_draws_the_same_alone_and_in_a_batch() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    draws = [Draw(0.8, 0.9, row / 8) for row in range(8)]
    assert sample(logits, draws) == [sample(logits[row : row + 1], [draws[row]])[0] for row in range(8)]


def decode_utf8(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


@given(st.text(max_size=30), st.lists(st.integers(0, 255), max_size=6))
def test_deltas_join_to_the_text_and_never_cut_a_character(text: str, noise: list[int]) -> None:
    tokens = [*text.encode("utf-8", errors="ignore"), *noise]
    stream = TextStream(decode_utf8)
    deltas = [stream.feed(token) for token in tokens]
    deltas.append(stream.finish())
    assert "".join(deltas) == stream.text == decode_utf8(tokens)


def test_a_character_of_four_bytes_comes_whole_with_its_last_byte() -> None:
    stream = TextStream(decode_utf8)
    assert [stream.feed(token) for token in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]


@given(st.text(alphabet="ab", max_size=20), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(decode_utf8, stops)
    deltas = []
    for token in text.encode():
        deltas.append(stream.feed(token))
        if stream.stopped:
            break
    deltas.append(stream.finish())
    assert "".join(deltas) == stream.text
    assert not any(stop in stream.text for stop in stops)
    assert stream.stopped == any(stop in text for stop in stops)
    assert text.startswith(stream.text)
    if not stream.stopped:
        assert stream.text == text


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    stream = TextStream(decode_utf8, ["END"])
    assert [stream.feed(token) for token in b"xENy"] == ["x", "", "", "ENy"]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_prompts_are_grouped_without_much_padding(lengths: list[int]) -> None:
    lengths.sort()
    ranges = like_lengths(lengths)
    assert [index for begin, end in ranges for index in range(begin, end)] == list(range(len(lengths)))
    assert all(lengths[end - 1] <= 2 * lengths[begin] + 16 for begin, end in ranges)
