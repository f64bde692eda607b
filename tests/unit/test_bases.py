"""Taking a base in: only safetensors, a tokenizer and a configuration; never code, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deploy.bases.add import SHIPPED, BaseError, inspect, take_in
from streams.artifacts import ArtifactStore

CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The files of a base: two tensors of 3x4 and 5 numbers."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_base_is_stored_by_its_content_without_what_is_not_needed(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    (base / "modeling_custom.py").write_text("print('code')")
    store = ArtifactStore(str(tmp_path / "artifacts"))
    asked = take_in("mine", str(base), store)
    assert (asked.model, asked.architecture, asked.parameters, asked.context_tokens) == ("mine", "LlamaForCausalLM", 17, 512)
    kept = {path.name for path in (tmp_path / "artifacts" / asked.path).iterdir()}
    assert kept == {"config.json", "tokenizer.json", "model.safetensors"}
    assert take_in("mine", str(base), store) == asked, "the same files are the same artifact"


def test_the_shipped_base_can_be_taken_in() -> None:
    facts = inspect(SHIPPED["pydoc-4m"])
    assert facts["architecture"] == "LlamaForCausalLM" and 3_500_000 < facts["parameters"] < 5_000_000


def change(name: str, text: str | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("config.json", None), "no config.json: it is not in Hugging Face layout"),
        (change("config.json", json.dumps({**CONFIG, "auto_map": {"AutoModel": "x.Y"}})), r"auto_map in config.json\); remote code is never run"),
        (change("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.Y", null]}}'), r"auto_map in tokenizer_config.json"),
        (change("config.json", "{"), "config.json is not valid JSON"),
        (change("config.json", "[]"), "config.json: expected a JSON object, got list"),
        (pickled, r"no \*.safetensors weights; other formats can hold code"),
        (change("model.safetensors", "cut off"), "model.safetensors is damaged"),
        (change("tokenizer.json", None), "no tokenizer files"),
    ],
    ids=["no config", "model code", "tokenizer code", "broken config", "odd config", "pickle", "damaged", "no tokenizer"],
)  # fmt: skip
def test_what_cannot_be_served_safely_is_refused_and_not_stored(
    base: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(base)
    with pytest.raises(BaseError, match=message):
        take_in("mine", str(base), ArtifactStore(str(tmp_path / "artifacts")))
    assert not list((tmp_path / "artifacts").rglob("*.safetensors"))


def test_a_file_or_a_missing_folder_is_no_base(base: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"))
    for source in (str(base / "config.json"), str(tmp_path / "none")):
        with pytest.raises(BaseError, match="is not a directory; give a folder"):
            take_in("mine", source, store)
