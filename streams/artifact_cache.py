"""Copies of folders that lie in an object store: in this user's own cache folder, each verified before it is used."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path

from pyarrow import fs

from streams.artifact_paths import ArtifactError, MissingArtifactError, check_path, folder_digest, own_folder


def users_cache() -> Path:
    """`$XDG_CACHE_HOME/tuneloop/artifacts`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "tuneloop" / "artifacts"


def fetched(files: fs.FileSystem, source: str, path: str, digest: str, cache: Path) -> Path:
    """A verified copy of the folder at `source`; one that does not hold is fetched anew. Raises `ArtifactError`."""
    target = own_folder(cache) / digest
    if _holds(target, digest):
        return target
    _discard(target)
    for _ in range(2):
        temporary = cache / f"{digest}.{uuid.uuid4().hex}.tmp"
        try:
            _download(files, source, path, temporary)
            if _holds(temporary, digest):
                with contextlib.suppress(OSError):  # another process was first, and verified its copy as well
                    temporary.rename(target)
                return target
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise ArtifactError(f"artifact {path} is damaged: its files do not hash to {digest[:12]}…, fetched twice")


def _download(files: fs.FileSystem, source: str, path: str, target: Path) -> None:
    chosen = fs.FileSelector(source, allow_not_found=True, recursive=True)
    keys = [info.path for info in files.get_file_info(chosen) if info.type == fs.FileType.File]
    if not keys:
        raise MissingArtifactError(f"artifact {path} is missing from the store: nothing lies at {source}")
    # A key is whatever somebody called it: all are checked before anything is written under their names.
    names = [check_path(f"{path}/{key.removeprefix(f'{source}/')}").removeprefix(f"{path}/") for key in keys]
    for key, name in zip(keys, names, strict=True):
        local = target / name
        local.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.open_input_stream(key) as stream, local.open("xb") as handle:
            shutil.copyfileobj(stream, handle, 1 << 20)


def _holds(folder: Path, digest: str) -> bool:
    try:
        return folder.is_dir() and not folder.is_symlink() and folder_digest(folder) == digest
    except ArtifactError:
        return False


def _discard(target: Path) -> None:
    """Out of the way at once, so that nobody takes what is left of it for a copy."""
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(FileNotFoundError):  # nothing there, or another process was first
        target.rename(aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()
