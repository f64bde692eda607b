"""Paths and folders of the artifact store: which names it takes, what a folder hashes to, whose a folder is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from schemas.names import is_file_name

KINDS = frozenset(
    {"adapters", "bases", "erasures", "gathered", "rewritten", "scores", "seen", "sets", "shards", "sorted", "tests"}
)
# Where files lie that are being written; what a crash leaves there of shards goes when somebody is forgotten.
UNFINISHED = ".tmp"
_digest = re.compile("[0-9a-f]{64}")


class ArtifactError(RuntimeError):
    """An artifact is missing, its bytes are not what its event says, or its path leads nowhere in the store."""


class MissingArtifactError(ArtifactError):
    """There is no artifact under this path."""


def check_path(path: str, *, alone: bool = False) -> str:
    """`path`, if it is `KIND/NAME...` of plain names; `alone`: or a kind or UNFINISHED. Raises `ArtifactError`."""
    if alone and path == UNFINISHED:
        return path
    kind, *names = path.removeprefix(f"{UNFINISHED}/").split("/")
    if kind not in KINDS or not (names or alone) or not all(map(is_file_name, names)):
        raise ArtifactError(f"artifact path {path[:200]!r} is refused: expected KIND/NAME, relative, of plain names")
    return path


def check_digest(digest: str) -> str:
    """`digest`, if it is a sha256 in hex. Raises `ArtifactError`."""
    if not _digest.fullmatch(digest):
        raise ArtifactError(f"digest {digest[:80]!r} is refused: expected the 64 hex digits of a sha256")
    return digest


def check_content_path(kind: str, path: str, digest: str) -> None:
    """A folder's path is its kind and its digest, as `put_folder` makes it. Raises `ArtifactError`."""
    if path != f"{kind}/{check_digest(digest)}":
        raise ArtifactError(f"artifact path {path[:200]!r} is refused: expected {kind}/{digest}")


def files_of(folder: Path) -> list[Path]:
    """The files in `folder` and below, sorted. Raises `ArtifactError` for a link or a device: only files are stored."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path)
        elif not stat.S_ISDIR(mode):
            raise ArtifactError(f"{path} is no regular file (a link or a device): put the file itself there")
    return found


def file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted (name, sha256) pairs of a folder's files."""
    total = hashlib.sha256()
    for path in files_of(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def own_folder(path: Path) -> Path:
    """`path` as a folder that only this user can enter. Raises `ArtifactError` for another's or a link."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ArtifactError(f"{path} is not this user's own folder: remove it, or set another data_dir")
    if stat.S_IMODE(info.st_mode) != 0o700:
        path.chmod(0o700)
    return path
