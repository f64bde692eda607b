"""The engine on a real small Llama: its tokens are those of `generate`, whoever shares the batch."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from serving.engine import Engine, EngineClosed, Request, RequestCancelled
from serving.errors import AdapterError, EngineError, PromptError
from serving.fingerprint import same_fingerprint
from serving.prompts import encode_prompt
from tests.tiny_model import make_tiny_adapter, make_tiny_base, make_tiny_tokenizer

PROMPTS = ("hi", "What is a list?", "x" * 70, "Sort these numbers for me, please: 3, 1, 2", "é🙂" * 20, "ok")


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine")
    base = make_tiny_base(root / "base")
    make_tiny_adapter(base, root / "a", seed=1)
    make_tiny_adapter(base, root / "b", seed=2, rank=8, targets=("q_proj", "v_proj", "lm_head"))
    return root


@pytest.fixture
def engine(files: Path) -> Iterator[Engine]:
    engine = Engine(files / "base", slots=4, max_length=256)
    engine.load("a", files / "a")
    engine.load("b", files / "b")
    yield engine
    engine.close()


@lru_cache(maxsize=4)
def reference_model(files: Path, adapter: str | None) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(files / "base", local_files_only=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, files / adapter)
    return model, AutoTokenizer.from_pretrained(files / "base", local_files_only=True)


def reference(files: Path, adapter: str | None, text: str, tokens: int) -> list[int]:
    """Greedy answer of transformers' own `generate`, without the end token."""
    model, tokenizer = reference_model(files, adapter)
    prompt = torch.tensor([encode_prompt(tokenizer, messages(text))])
    out = model.generate(input_ids=prompt, max_new_tokens=tokens, do_sample=False)[0, prompt.shape[1] :]
    return [token for token in out.tolist() if token != tokenizer.eos_token_id]


def test_greedy_tokens_equal_generate_with_base_and_adapters_in_one_batch(engine: Engine, files: Path) -> None:
    cases = [(adapter, text) for text in PROMPTS for adapter in (None, "a", "b")]
    # More requests than slots and unlike lengths: some join late, and rows move into others' places.
    lengths = [6 + 5 * (index % 4) for index in range(len(cases))]
    answers = engine.generate(
        [
            Request(messages(text), adapter, max_new_tokens=tokens)
            for (adapter, text), tokens in zip(cases, lengths, strict=True)
        ]
    )
    for (adapter, text), tokens, answer in zip(cases, lengths, answers, strict=True):
        assert list(answer.tokens) == reference(files, adapter, text, tokens), (adapter, text)
    assert len({answer.tokens for answer in answers}) > len(cases) // 2  # the adapters do change answers


def test_a_request_that_joins_late_changes_nothing(engine: Engine) -> None:
    alone = engine.generate([Request(messages("one"), "a", max_new_tokens=60)])[0]
    first = engine.submit(Request(messages("one"), "a", max_new_tokens=60))
    next(iter(first))  # it is under way
    late = engine.submit(Request(messages("a longer prompt, by far"), "b", max_new_tokens=5))
    late.result(30)
    assert first.result(30) == alone


@pytest.mark.parametrize("kind", ["qwen2", "gpt_neox", "mistral", "gemma"])
def test_other_architectures_give_their_own_tokens(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
        initializer_range=0.3, eos_token_id=tokenizer.eos_token_id, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    engine = Engine(tmp_path / "base", slots=3, max_length=256)
    answers = engine.generate([Request(messages(text), max_new_tokens=9) for text in PROMPTS])
    engine.close()
    for text, answer in zip(PROMPTS, answers, strict=True):
        assert list(answer.tokens) == reference(tmp_path, None, text, 9)


def test_an_architecture_that_slots_cannot_serve_is_refused_at_the_start(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    config = AutoConfig.for_model("mamba", vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"MambaForCausalLM .* cannot be served"):
        Engine(tmp_path)


def test_a_sliding_window_bounds_the_length(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    config = AutoConfig.for_model(
        "mistral", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=64, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine(tmp_path, max_length=128)
    assert engine.max_length == 64  # within its window, sliding attention is plain attention
    engine.close()


def test_a_seed_repeats_its_answer_in_any_company(engine: Engine) -> None:
    drawn = Request(messages("hi"), "a", max_new_tokens=20, temperature=1.0, top_p=0.9, seed=7)
    other = Request(messages("hi"), "a", max_new_tokens=20, temperature=1.0, top_p=0.9, seed=8)
    alone = engine.generate([drawn])[0]
    together = engine.generate([other, Request(messages("greedy"), "b"), drawn, other])
    assert together[2] == alone
    assert together[0] == together[3] != alone


def test_stop_strings_end_the_text_before_them(engine: Engine) -> None:
    whole = engine.generate([Request(messages("hi"), "a", max_new_tokens=30)])[0]
    stop = whole.text[5:7]
    cut = engine.generate([Request(messages("hi"), "a", max_new_tokens=30, stop=(stop, "never"))])[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)]


def test_the_end_token_stops_and_is_not_part_of_the_answer(files: Path, tmp_path: Path) -> None:
    base = shutil.copytree(files / "base", tmp_path / "base")
    first = reference(files, None, "hi", 4)
    generation = json.loads((base / "generation_config.json").read_text())
    generation["eos_token_id"] = [generation["eos_token_id"], first[2]]
    (base / "generation_config.json").write_text(json.dumps(generation))
    engine = Engine(base, slots=2)
    answer = engine.generate([Request(messages("hi"), max_new_tokens=10)])[0]
    engine.close()
    assert (list(answer.tokens), answer.output_tokens, answer.finish_reason) == (first[:2], 2, "stop")


def test_length_ends_an_answer_at_the_limit_asked_and_at_the_slots_end(engine: Engine) -> None:
    asked, full = engine.generate(
        [Request(messages("hi"), "a", max_new_tokens=3), Request(messages("x" * 200), max_new_tokens=500)]
    )
    assert (asked.output_tokens, asked.finish_reason) == (3, "length")
    assert full.input_tokens + full.output_tokens == engine.max_length
    assert full.finish_reason == "length"


def test_deltas_join_to_the_text_by_iteration_and_by_callback(engine: Engine) -> None:
    deltas: list[str] = []
    done = threading.Event()
    request = Request(messages("é"), "b", max_new_tokens=40)
    ticket = engine.submit(request, on_delta=deltas.append, on_done=lambda ticket: done.set())
    assert "".join(ticket) == ticket.result(1).text
    assert done.wait(5)
    assert "".join(deltas) == ticket.result(1).text
    assert len(deltas) > 3


def test_an_asyncio_caller_is_bridged_by_callbacks(engine: Engine) -> None:
    async def ask() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        ticket = engine.submit(
            Request(messages("hello"), "a", max_new_tokens=10),
            on_delta=lambda text: loop.call_soon_threadsafe(queue.put_nowait, text),
            on_done=lambda ticket: loop.call_soon_threadsafe(queue.put_nowait, None),
        )
        parts = []
        while (part := await asyncio.wait_for(queue.get(), 30)) is not None:
            parts.append(part)
        return "".join(parts), ticket.result(0).text

    streamed, text = asyncio.run(ask())
    assert streamed == text != ""


def test_an_adapter_unloaded_in_use_finishes_its_requests_and_takes_no_more(engine: Engine, files: Path) -> None:
    alone = engine.generate([Request(messages("hi"), "a", max_new_tokens=100)])[0]
    running = [engine.submit(Request(messages("hi"), "a", max_new_tokens=100)) for _ in range(6)]
    next(iter(running[0]))
    engine.unload("a")
    assert engine.adapters() == ["b"]
    with pytest.raises(AdapterError, match="'a' is not loaded; loaded now: b"):
        engine.submit(Request(messages("hi"), "a"))
    assert [ticket.result(30) for ticket in running] == [alone] * 6
    assert engine.generate([Request(messages("hi"), "b", max_new_tokens=2)])[0].output_tokens == 2
    assert "a" not in engine._bank._adapters  # its memory is free
    with pytest.raises(ValueError, match="used before"):
        engine.load("a", files / "a")


def test_cancelled_requests_leave_from_the_rows_and_from_the_queue(engine: Engine) -> None:
    tickets = [engine.submit(Request(messages("hi"), "a", max_new_tokens=200)) for _ in range(5)]
    next(iter(tickets[0]))
    for ticket in (tickets[0], tickets[4]):  # one runs; the fifth waits, there are four rows
        ticket.cancel()
        with pytest.raises(RequestCancelled):
            ticket.result(30)
    assert len({ticket.result(30) for ticket in tickets[1:4]}) == 1
    assert engine.pending() == 0


def test_prompts_that_cannot_be_served_are_refused_before_they_queue(engine: Engine) -> None:
    with pytest.raises(PromptError, match=r"3\d\d tokens.*limit is 256"):
        engine.submit(Request(messages("x" * 300)))
    with pytest.raises(PromptError, match="empty"):
        engine.submit(Request([]))
    with pytest.raises(PromptError, match="at least 1"):
        engine.submit(Request(messages("hi"), max_new_tokens=0))
    with pytest.raises(PromptError, match="temperature"):
        engine.submit(Request(messages("hi"), temperature=-1.0))
    with pytest.raises(PromptError, match=r"messages\[0\] must have a role"):
        engine.submit(Request(["hi"]))  # type: ignore[list-item]
    assert engine.pending() == 0


def test_a_callback_that_raises_fails_its_request_alone(engine: Engine) -> None:
    def refuse(text: str) -> None:
        raise RuntimeError("the client went away")

    bad = engine.submit(Request(messages("hi"), "a"), on_delta=refuse)
    good = engine.submit(Request(messages("hi"), "a"))
    assert good.result(30).output_tokens > 0
    with pytest.raises(RuntimeError, match="went away"):
        bad.result(30)


def test_an_adapter_that_overflows_fails_alone_and_spoils_no_slot(engine: Engine, files: Path, tmp_path: Path) -> None:
    huge = make_tiny_adapter(files / "base", tmp_path / "huge", seed=3, scale=1e30)
    alone = engine.generate([Request(messages("hi"), "a", max_new_tokens=20)])[0]
    engine.load("huge", huge)
    good = [engine.submit(Request(messages("hi"), "a", max_new_tokens=20)) for _ in range(2)]
    with pytest.raises(EngineError, match="'huge' gives NaN"):
        engine.submit(Request(messages("hi"), "huge")).result(30)
    assert [ticket.result(30) for ticket in good] == [alone] * 2
    assert engine.generate([Request(messages("hi"), "a", max_new_tokens=20)] * 4) == [alone] * 4


def test_a_failed_step_fails_its_requests_and_the_loop_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(engine._bank, "select", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(EngineError, match="step failed: out of memory"):
            engine.submit(Request(messages("hi"), "a")).result(30)
    assert engine.generate([Request(messages("hi"), "a", max_new_tokens=4)])[0].output_tokens == 4


def test_fingerprints_are_stable_and_tell_adapters_apart(engine: Engine, files: Path, tmp_path: Path) -> None:
    prints = {name: engine.fingerprint(name) for name in (None, "a", "b")}
    assert all(len(values) == 32 for values in prints.values())
    running = engine.submit(Request(messages("hi"), "b", max_new_tokens=100))
    assert all(same_fingerprint(engine.fingerprint(name), prints[name], 1e-5) for name in prints)
    running.result(30)
    assert not same_fingerprint(prints[None], prints["a"])
    assert not same_fingerprint(prints["a"], prints["b"])
    engine.load("nearly a", make_tiny_adapter(files / "base", tmp_path / "nearly", seed=1, scale=0.201))
    assert not same_fingerprint(engine.fingerprint("nearly a"), prints["a"])
    second = Engine(files / "base", slots=2)
    second.load("again", files / "a")
    assert same_fingerprint(second.fingerprint("again"), prints["a"], 1e-5)
    second.close()


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def lose_a_layer(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if ".layers.1." not in key}, path)


def poison(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({key: value * float("nan") for key, value in load_file(path).items()}, path)


def foreign_words(adapter: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(adapter)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, "adapter_config.json is missing"),
        (as_pickle, "adapter_model.bin; only safetensors"),
        (truncate, "damaged or not safetensors"),
        (poison, "NaN or infinity"),
        (lose_a_layer, "7 of 14 target layers have no weights"),
        (foreign_words, "another vocabulary"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "adapter_config.json is damaged"),
        (lambda adapter: edit_config(adapter, r=8), "its config says 8"),
        (lambda adapter: edit_config(adapter, use_dora=True), "uses use_dora"),
        (lambda adapter: edit_config(adapter, peft_type="IA3"), "peft_type must be LORA"),
    ],
)
def test_damaged_adapters_are_refused_with_the_reason(
    engine: Engine, files: Path, tmp_path: Path, damage: object, reason: str
) -> None:
    adapter = shutil.copytree(files / "a", tmp_path / "adapter")
    damage(adapter)  # type: ignore[operator]
    with pytest.raises(AdapterError, match=reason):
        engine.load("damaged", adapter)
    assert engine.adapters() == ["a", "b"]
    engine.load("damaged", files / "a")  # a failed load does not use up the name


@pytest.mark.parametrize(("shape", "reason"), [({"hidden": 64}, "base's layer is"), ({"layers": 3}, "no linear layer")])
def test_adapters_of_another_base_are_refused(
    engine: Engine, tmp_path: Path, shape: dict[str, int], reason: str
) -> None:
    foreign = make_tiny_adapter(make_tiny_base(tmp_path / "other", **shape), tmp_path / "adapter")  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=f"another base.*{reason}"):
        engine.load("foreign", foreign)


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 32}}, {"lora_alpha": 1}], ids=str
)
def test_scalings_of_peft_are_followed(files: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    shutil.copytree(files / "base", tmp_path / "base")
    edit_config(shutil.copytree(files / "a", tmp_path / "a"), **changes)
    engine = Engine(tmp_path / "base", slots=2)
    engine.load("a", tmp_path / "a")
    answer = engine.generate([Request(messages("hi"), "a", max_new_tokens=12)])[0]
    engine.close()
    assert list(answer.tokens) == reference(tmp_path, "a", "hi", 12)


def test_closing_fails_what_is_not_done(files: Path) -> None:
    engine = Engine(files / "base", slots=1)
    tickets = [engine.submit(Request(messages("hi"), max_new_tokens=400)) for _ in range(3)]
    engine.close()
    for ticket in tickets:
        with pytest.raises(EngineClosed):
            ticket.result(5)
    with pytest.raises(EngineClosed):
        engine.submit(Request(messages("hi")))


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no base model can be loaded from"):
        Engine(tmp_path)
