"""Taking a base model in: a folder in Hugging Face layout, or `hf:ORG/NAME@REVISION`.

The files are copied first; the copy is checked (safetensors weights, a tokenizer; never code), stored under its hash,
and only then named in a `BaseAddRequested` for the registry. So what was checked is what will be loaded.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from schemas.events import BaseAddRequested
from schemas.names import WANTED, is_file_name, is_name
from streams.artifacts import ArtifactStore

SHIPPED = {"pydoc-4m": Path(__file__).parent / "pydoc-4m"}
_WEIGHTS = "*.safetensors"
_KEPT = (
    _WEIGHTS, "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*",
    "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*", "*.model", "README.md", "LICENSE*",
)  # fmt: skip
MOST_FILES, MOST_WEIGHT_BYTES, MOST_OTHER_BYTES = 1_000, 1 << 40, 100_000_000
_HUB = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})@([A-Za-z0-9][\w.-]{0,127})", re.ASCII)


class BaseError(ValueError):
    """A base cannot be taken in; the message says what is wrong with it and what to do."""


def take_in(name: str, source: str, store: ArtifactStore) -> BaseAddRequested:
    """Copy, check and store a base; returns the command that registers it. Raises `BaseError`."""
    if not is_name(name):
        raise BaseError(f"{name!r} is no name for a base: expected {WANTED}")
    with tempfile.TemporaryDirectory(prefix="tuneloop-base-") as temporary:
        copy = Path(temporary) / "base"
        copy.mkdir()
        _copy(_found(source, Path(temporary) / "hub"), copy)
        facts = inspect(copy)
        path, digest = store.put_folder("bases", copy)
    return BaseAddRequested(model=name, path=path, digest=digest, **facts)


def _found(source: str, downloads: Path) -> Path:
    """The folder that is meant; a model of the hub is fetched into `downloads`."""
    if source.startswith("hf:"):
        matched = _HUB.fullmatch(source)
        if matched is None:
            raise BaseError(f"{source} names no model of the hub: expected hf:ORG/NAME@REVISION, the revision a commit")
        return _download(matched[1], matched[2], downloads)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise BaseError(
            f"{source} is not a directory; give a folder in Hugging Face layout, or hf:ORG/NAME@REVISION for a model "
            "of the hub"
        )
    return folder


def _download(model: str, revision: str, target: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(model, revision=revision, allow_patterns=list(_KEPT), local_dir=target)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaseError(f"hf:{model}@{revision} could not be downloaded from the hub: {first}") from error
    return target


def _copy(folder: Path, target: Path) -> None:
    """Copy the files that a base needs. Raises `BaseError` for a link, a device, or more than a base can have."""
    names = sorted(entry.name for entry in os.scandir(folder) if any(fnmatchcase(entry.name, one) for one in _KEPT))
    if len(names) > MOST_FILES:
        raise BaseError(f"{folder} has {len(names)} files of a model; the limit is {MOST_FILES}")
    for name in names:
        if not is_file_name(name):
            raise BaseError(f"{folder} has a file named {name[:200]!r}: rename it, with letters, digits, '.', '_', '-'")
        limit = MOST_WEIGHT_BYTES if fnmatchcase(name, _WEIGHTS) else MOST_OTHER_BYTES
        _copy_file(folder / name, target / name, limit)


def _copy_file(source: Path, target: Path, limit: int) -> None:
    """Copy a regular file of at most `limit` bytes. One handle for look and copy: nobody can swap it in between."""
    try:
        # A pipe would keep the opening waiting for its writer.
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = f"{source} is a link or cannot be read ({error.strerror}): put the file itself there"
        raise BaseError(reason) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BaseError(f"{source} is no regular file: put the file itself there")
    with os.fdopen(handle, "rb") as reader, target.open("xb") as writer:
        copied = 0
        while piece := reader.read(1 << 20):
            copied += len(piece)
            if copied > limit:
                raise BaseError(f"{source} is larger than {limit} bytes, the limit for such a file of a base")
            writer.write(piece)


def inspect(folder: Path) -> dict[str, Any]:
    """Architecture, parameters and context of a base. Raises `BaseError` for what cannot be served safely."""
    from serving.model_files import ModelFilesError, check_model_files

    try:
        config = check_model_files(folder)
    except ModelFilesError as error:
        raise BaseError(str(error)) from error
    named = config.get("architectures") or [config.get("model_type", "unknown")]
    context = config.get("max_position_embeddings", 0)
    if not isinstance(named, list) or not isinstance(named[0], str) or not isinstance(context, int):
        raise BaseError(f"{folder}/config.json: expected names in architectures, a number in max_position_embeddings")
    return {
        "architecture": named[0][:200],
        "parameters": sum(_parameters(path) for path in sorted(folder.glob(_WEIGHTS))),
        "context_tokens": context,
    }


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
