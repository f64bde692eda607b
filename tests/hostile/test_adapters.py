"""Adapters of strangers: an odd one is refused in words, by serving and by training alike, and stops nobody."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from schemas import events as e
from schemas.policy import ModelPolicy
from serving.adapter_config import AdapterConfigError, read_adapter_config
from serving.adapters import Fit, read_adapter
from serving.errors import AdapterError
from serving.follow import Follower, RouteError
from streams.artifacts import folder_digest
from tests.examples import example
from tests.stores import store_at
from trainers.lora import TrainingError, _parent_config

RANK, SIZE = 4, (8, 6)
MODULE = "model.layers.0.self_attn.q_proj"
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
FIT = Fit({MODULE: SIZE}, {}, {"a": 0})
# As text: some of it no JSON library would write.
CONFIGS = {
    "an expression that never ends": '{"rank_pattern": {"(.+)+!": 8}}',
    "a broken expression": '{"alpha_pattern": {"[": 8}}',
    "an expression for the layers": '{"target_modules": "(a+)+$"}',
    "an expression among the layers": '{"target_modules": [".*q_proj"]}',
    "an expression that excludes": '{"exclude_modules": "(a|a)+$"}',
    "an expression for layers by number": '{"layers_pattern": "(x+)+y"}',
    "rank 0": '{"r": 0}', "a negative rank": '{"r": -1}', "a huge rank": '{"r": 1000000000000}',
    "a rank that is true": '{"r": true}', "a rank in text": '{"r": "8"}', "no rank": '{"r": null}',
    "a zero rank in a pattern": '{"rank_pattern": {"q_proj": 0}}', "a pattern that is a list": '{"rank_pattern": [1]}',
    "alpha in text": '{"lora_alpha": "x"}', "alpha not a number": '{"lora_alpha": NaN}',
    "infinite alpha": '{"lora_alpha": 1e999}', "alpha 0": '{"lora_alpha": 0}', "alpha null": '{"lora_alpha": null}',
    "alpha as a list": '{"alpha_pattern": {"q_proj": [8]}}', "dropout of 1": '{"lora_dropout": 1.0}',
    "no layers": '{"target_modules": []}', "layers as numbers": '{"target_modules": [1, 2]}',
    "a start that changes the base": '{"init_lora_weights": "pissa"}', "another start": '{"init_lora_weights": "olora"}',
    "a start of its own": '{"init_lora_weights": {"x": 1}}', "a start by number": '{"init_lora_weights": 2}',
    "a module to import": '{"megatron_config": {"x": 1}, "megatron_core": "os"}', "dora": '{"use_dora": true}',
    "other weights": '{"modules_to_save": ["lm_head"]}', "a bias": '{"bias": "all"}', "kasa": '{"kasa_config": {"a": 1}}',
    "another kind": '{"peft_type": "IA3"}', "no kind": '{"peft_type": null}', "a name of a megabyte":
    '{"base_model_name_or_path": "' + "x" * 900_000 + '"}', "two megabytes": '{"x": "' + "x" * 2_000_000 + '"}',
    "many layers": json.dumps({"target_modules": [f"m{n}" for n in range(5_000)]}),
    "no JSON": "{", "a list": "[1]", "a number": "7", "nothing": "", "deep": '{"x":' * 100_000, "no UTF-8": "\udcff",
}  # fmt: skip


def adapter(folder: Path, config: str | None = None, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """An adapter that fits FIT; `config` is put over its configuration where it is an object, else takes its place."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(PLAIN) if config is None else config
    try:
        over = json.loads(text)
    except (ValueError, RecursionError):
        over = None
    if isinstance(over, dict) and "1e999" not in text and "NaN" not in text:
        text = json.dumps(PLAIN | over)
    elif text.startswith('{"lora_alpha"'):
        text = json.dumps(PLAIN)[:-1] + ", " + text[1:]
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    save_file(weights() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


def weights(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    both = {"A": torch.ones(RANK, SIZE[0]), "B": torch.ones(SIZE[1], RANK)} | changed
    return {f"base_model.model.{MODULE}.lora_{side}.weight": tensor for side, tensor in both.items()}


def test_the_plain_adapter_is_read(tmp_path: Path) -> None:
    """Else every refusal here could have another reason."""
    down, up = read_adapter(adapter(tmp_path / "a"), FIT).weights[MODULE]
    assert down.shape == (RANK, SIZE[0]) and torch.equal(up, torch.full((SIZE[1], RANK), 2.0))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_odd_configuration_is_refused_by_serving_and_by_training(tmp_path: Path, name: str) -> None:
    folder = adapter(tmp_path / "a", CONFIGS[name])
    began = time.monotonic()
    with pytest.raises(AdapterError):
        read_adapter(folder, FIT)
    base: Any = SimpleNamespace(name="base")
    with pytest.raises(TrainingError, match="parent adapter cannot be read"):
        _parent_config(folder, base)
    assert time.monotonic() - began < 2


def test_what_is_unknown_has_no_effect(tmp_path: Path) -> None:
    odd = {
        "init_lora_weights": "gaussian", "megatron_core": "os", "auto_mapping": {"parent_library": "os"}, "revision": "x",
        "runtime_config": {"x": 1}, "loftq_config": {"x": 1}, "inference_mode": False, "base_model_name_or_path": "base",
    }  # fmt: skip
    folder = adapter(tmp_path / "a", json.dumps(odd))
    assert torch.equal(read_adapter(folder, FIT).weights[MODULE][1], torch.full((SIZE[1], RANK), 2.0))
    base: Any = SimpleNamespace(name="base")
    config = _parent_config(folder, base)
    assert (config.init_lora_weights, config.megatron_core, config.revision) == (True, "megatron.core", None)
    assert config.loftq_config == {} and config.auto_mapping is None


@pytest.mark.parametrize(
    "tensors",
    [
        weights(A=torch.ones(0, SIZE[0]), B=torch.ones(SIZE[1], 0)), weights(A=torch.ones(RANK)), {},
        weights(A=torch.full((RANK, SIZE[0]), float("nan"))), weights(B=torch.full((SIZE[1], RANK), 3e38)),
        weights(A=torch.ones(RANK, SIZE[0], dtype=torch.int64)), weights(A=torch.ones(1, 1, 1)),
        weights(A=torch.tensor(1.0)), {"x": torch.ones(1)}, weights(A=torch.ones(RANK + 1, SIZE[0])),
    ],
)  # fmt: skip
def test_odd_weights_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(AdapterError):
        read_adapter(adapter(tmp_path / "a", tensors=tensors), FIT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["q_proj", "(.+)+!", "[", "", "a.b"]), inner, max_size=3), max_leaves=6,
)  # fmt: skip
FIELDS = st.sampled_from([
    "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias",
    "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "base_model_name_or_path", "use_dora",
])  # fmt: skip


@given(st.dictionaries(FIELDS, JSON, max_size=5), st.booleans())
@pytest.mark.fuzz
def test_fuzzed_configurations_are_read_or_refused(tmp_path_factory: Any, values: dict[str, Any], whole: bool) -> None:
    folder = adapter(tmp_path_factory.getbasetemp() / "fuzzed")
    (folder / "adapter_config.json").write_text(json.dumps(values if whole else PLAIN | values))
    try:
        config = read_adapter_config(folder)
    except AdapterConfigError:
        with pytest.raises(AdapterError):
            read_adapter(folder, FIT)
        return
    assert 1 <= config.rank_of(MODULE) <= 4096 and 0 < config.alpha_of(MODULE) <= 1e6
    try:
        assert read_adapter(folder, FIT).weights[MODULE][1].isfinite().all()
    except AdapterError:
        assert config.rank_of(MODULE) != RANK or not config.targets(MODULE)


class OddEngine:
    """An engine whose adapters raise what they like. A fake: no real files are known that raise each of these."""

    def __init__(self, error: Exception, where: str) -> None:
        self.error, self.where, self.unloaded = error, where, list[str]()

    def load(self, name: str, _: Path) -> None:
        if self.where == "load":
            raise self.error

    def fingerprint(self, _: str) -> list[float]:
        if self.where == "fingerprint":
            raise self.error
        return [0.0]

    def unload(self, name: str) -> None:
        self.unloaded.append(name)


ERRORS = [ZeroDivisionError("division by zero"), TypeError("odd"), KeyError("x"), MemoryError(), RuntimeError("size mismatch"),
          RecursionError(), OSError(28, "No space left on device"), AttributeError("x"), OverflowError()]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["load", "fingerprint", "base"])
def test_whatever_a_load_raises_is_a_refusal_that_is_said(tmp_path: Path, error: Exception, where: str) -> None:
    store, said = store_at(tmp_path / "store"), list[e.AdapterLoaded]()
    path, digest = store.put_folder("adapters", adapter(tmp_path / "a"))
    base = example(e.BaseRegistered, "base", digest=folder_digest(tmp_path / "a"))
    store.put_folder("bases", tmp_path / "a")
    engine: Any = OddEngine(error, where)

    def make(_: Path) -> Any:
        if where == "base":
            raise error
        return engine

    follower = Follower({"support": ModelPolicy(base="base")}, store, "replica", said.append, make)
    follower.at_end()
    version = example(e.Version, "support", version=1, digest=digest, path=path, base="base", base_digest=base.digest)
    follower._take(base)
    follower._take(example(e.ModelStateChanged, "support", champion=1, versions=[version], base="base"))
    assert not said[-1].loaded and said[-1].version == 1 and said[-1].reason
    if where == "fingerprint":
        assert len(engine.unloaded) == 1
    with pytest.raises(RouteError):
        follower.route("support", 1)
    free: list[bool] = []
    looking = threading.Thread(target=lambda: free.append(follower._lock.acquire(timeout=2)))
    looking.start()
    looking.join()
    assert free == [True], "the routes are still locked"
