"""What a model folder may ask of the libraries that load it: weights, a configuration and a tokenizer, never code.

Checked when a base is taken in and again before each load, since a base may have come by another way. Reads only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 64_000_000  # tokenizer.json is the largest; a vocabulary of 256,000 takes 35 MB
# Each names code or a package that the libraries would fetch or import for it.
CODE_KEYS = frozenset({
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "quantization_config", "custom_generate", "custom_pipelines",
})  # fmt: skip


class ModelFilesError(ValueError):
    """A model folder is not in order; the message says which file, why, and what is expected."""


def check_model_files(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises `ModelFilesError` for what may not be loaded."""
    if not (folder / "config.json").is_file():
        raise ModelFilesError(f"{folder} has no config.json: it is not in Hugging Face layout")
    if (folder / "adapter_config.json").exists():  # the libraries would put that adapter on the base
        raise ModelFilesError(f"{folder} holds an adapter beside its weights: give the base alone")
    contents = {path.name: read_object(path) for path in sorted(folder.glob("*config.json"))}
    for name, content in contents.items():
        for key in _keys(content):
            if key in CODE_KEYS:
                raise ModelFilesError(
                    f"{folder} wants code of its own ({key} in {name}); remote code is never run: remove the key "
                    "if the model works without"
                )
    _check_weights(folder)
    return contents["config.json"]


def _check_weights(folder: Path) -> None:
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights:
        raise ModelFilesError(f"{folder} has no *.safetensors weights; other formats can hold code and are not loaded")
    if not list(folder.glob("tokenizer*")):
        raise ModelFilesError(f"{folder} has no tokenizer files")
    for path in folder.glob("*.safetensors.index.json"):
        named = read_object(path).get("weight_map")
        files = set(named.values()) if isinstance(named, dict) and _texts(named.values()) else {"?"}
        if files - weights:  # among them whatever leads out of the folder
            raise ModelFilesError(f"{path} names weights that are not beside it: {sorted(files - weights)[0][:100]!r}")


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `ModelFilesError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_JSON_BYTES + 1)
        if len(raw) > MOST_JSON_BYTES:
            raise ModelFilesError(f"{path} is larger than {MOST_JSON_BYTES // 1_000_000} MB")
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelFilesError):
            raise
        raise ModelFilesError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _keys(value: Any) -> Iterator[str]:
    """Every key in it, however deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
