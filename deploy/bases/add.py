"""Taking a base model in: a directory in Hugging Face layout, or an id that transformers can load.

The files are checked (a model that loads, safetensors weights, a tokenizer; never remote code), copied into
the artifact store under their hash, and only then named in a `BaseAddRequested` for the registry.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from schemas.events import BaseAddRequested
from streams.artifacts import ArtifactStore

SHIPPED = {"pydoc-4m": Path(__file__).parent / "pydoc-4m"}
TOKENIZER = "tokenizer_config.json"
_KEPT = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
    "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*", "*.model", "README.md", "LICENSE*",
)  # fmt: skip


class BaseError(ValueError):
    """A base cannot be taken in; the message says what is wrong with it and what to do."""


def take_in(name: str, source: str, store: ArtifactStore) -> BaseAddRequested:
    """Check and store a base; returns the command that registers it. Raises `BaseError`."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _store(name, folder, store)
    if folder.exists() or source.startswith((".", "/", "~")):
        raise BaseError(f"{source} is not a directory; give a folder in Hugging Face layout, or an id")
    with tempfile.TemporaryDirectory(prefix="tuneloop-base-") as temporary:
        return _store(name, _download(source, Path(temporary)), store)


def _download(source: str, target: Path) -> Path:
    """An id's files through transformers' own loader."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(source, allow_patterns=list(_KEPT), local_dir=target)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaseError(f"{source} is no folder here and could not be had from the hub: {first}") from error
    return target


def _store(name: str, folder: Path, store: ArtifactStore) -> BaseAddRequested:
    facts = inspect(folder)
    with tempfile.TemporaryDirectory(prefix="tuneloop-base-") as temporary:
        clean = Path(temporary) / "base"
        clean.mkdir()
        for pattern in _KEPT:
            for file in folder.glob(pattern):
                shutil.copyfile(file, clean / file.name)
        path, digest = store.put_folder("bases", clean)
    return BaseAddRequested(model=name, path=path, digest=digest, **facts)


def inspect(folder: Path) -> dict[str, Any]:
    """Architecture, parameters and context of a base. Raises `BaseError` for what cannot be served safely."""
    config_file = folder / "config.json"
    if not config_file.exists():
        raise BaseError(f"{folder} has no config.json: it is not in Hugging Face layout")
    config = _read_config(config_file)
    for name, content in (("config.json", config), (TOKENIZER, _read_config(folder / TOKENIZER))):
        if "auto_map" in content:
            raise BaseError(f"{folder} wants code of its own (auto_map in {name}); remote code is never run")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BaseError(f"{folder} has no *.safetensors weights; other formats can hold code and are not loaded")
    if not list(folder.glob("tokenizer*")):
        raise BaseError(f"{folder} has no tokenizer files")
    return {
        "architecture": (config.get("architectures") or [config.get("model_type", "unknown")])[0],
        "parameters": sum(_parameters(path) for path in weights),
        "context_tokens": int(config.get("max_position_embeddings", 0)),
    }


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise BaseError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BaseError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _parameters(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        with safe_open(path, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - this is no dict
                size = 1
                for extent in tensors.get_slice(key).get_shape():
                    size *= extent
                total += size
    except SafetensorError as error:
        raise BaseError(f"{path} is damaged: {error}") from error
    return total
