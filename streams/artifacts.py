"""The artifact store: shards, adapters and bases, by content, on anything `pyarrow.fs` reaches.

Order of a write: temporary name, fsync, rename, digest, and only then the event that points to it. Events
carry paths relative to the store's root, so that a store can move. Shards that no committed event names are
swept whenever somebody is forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import msgspec
from pyarrow import fs

from schemas.events import ShardRef, ShardSet
from streams import failpoints

# Where files lie that are being written; what a crash leaves there of shards goes when somebody is forgotten.
UNFINISHED = ".tmp"


class ArtifactError(RuntimeError):
    """An artifact is missing or its bytes are not what its event says."""


def file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted (name, sha256) pairs of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


class ArtifactStore:
    """Files by relative path under one root: a local directory or a `pyarrow.fs` URI (s3://, gs://)."""

    def __init__(self, root: str, cache_dir: Path | None = None) -> None:
        self._local = None if "://" in root and not root.startswith("file://") else Path(root.removeprefix("file://"))
        self._fs: fs.FileSystem
        if self._local is not None:
            self._local = self._local.resolve()
            self._fs, self._root = fs.LocalFileSystem(), str(self._local)
        else:
            self._fs, self._root = fs.FileSystem.from_uri(root)
        self._cache = cache_dir or Path(tempfile.gettempdir()) / "tuneloop-artifacts"

    def put_bytes(self, path: str, data: bytes) -> str:
        """Store `data` at `path`; returns its sha256. Writing the same content again is harmless."""
        target = f"{self._root}/{path}"
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        if self._local is None:  # object stores make a key visible only when it is whole
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
        else:
            # Not beside the target: what a crash leaves there would count as a file of the folder.
            temporary = Path(self._root) / UNFINISHED / path.partition("/")[0] / uuid.uuid4().hex
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                failpoints.hit("artifact.written")
                temporary.rename(target)
            except OSError:  # a full disk: every further attempt would leave one more piece behind
                temporary.unlink(missing_ok=True)
                raise
            _fsync_folder(Path(target).parent)
            failpoints.hit("artifact.renamed")
        return hashlib.sha256(data).hexdigest()

    def put_folder(self, prefix: str, folder: Path) -> tuple[str, str]:
        """Store every file of `folder` under `prefix/DIGEST`; returns (path, digest)."""
        digest = folder_digest(folder)
        path = f"{prefix}/{digest}"
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put_bytes(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return path, digest

    def get_bytes(self, path: str, digest: str) -> bytes:
        """The bytes at `path`. Raises `ArtifactError` if they are missing or hash to something else."""
        data = self.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"artifact {path} is damaged: its bytes do not hash to {digest[:12]}…")
        return data

    def read_bytes(self, path: str) -> bytes:
        """The bytes at `path`, whatever they are. Raises `ArtifactError` if they are missing."""
        try:
            with self._fs.open_input_stream(f"{self._root}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError as error:
            raise ArtifactError(f"artifact {path} is missing from the store at {self._root}") from error

    def delete(self, path: str) -> None:
        """Take the file at `path` away; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(f"{self._root}/{path}")

    def delete_folder(self, path: str) -> None:
        """Take the folder at `path` away, with this machine's copy; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(f"{self._root}/{path}")
        shutil.rmtree(self._cache / path.rpartition("/")[2], ignore_errors=True)

    def files(self, prefix: str) -> list[tuple[str, float]]:
        """(path, Unix time of its last change) of every file under `prefix`."""
        found = self._fs.get_file_info(fs.FileSelector(f"{self._root}/{prefix}", allow_not_found=True, recursive=True))
        start = len(self._root) + 1
        return [(info.path[start:], info.mtime.timestamp()) for info in found if info.type == fs.FileType.File]

    def get_folder(self, path: str, digest: str) -> Path:
        """A local folder with the files under `path`, verified. Raises `ArtifactError`."""
        folder = self._local / path if self._local is not None else self._downloaded(path, digest)
        if not folder.is_dir():
            raise ArtifactError(f"artifact {path} is missing from the store at {self._root}")
        if folder_digest(folder) != digest:
            raise ArtifactError(f"artifact {path} is damaged: its files do not hash to {digest[:12]}…")
        return folder

    def _downloaded(self, path: str, digest: str) -> Path:
        target = self._cache / digest
        if target.is_dir():
            return target
        temporary = self._cache / f"{digest}.{uuid.uuid4().hex}.tmp"
        for info in self._fs.get_file_info(
            fs.FileSelector(f"{self._root}/{path}", allow_not_found=True, recursive=True)
        ):
            if info.type == fs.FileType.File:
                local = temporary / info.path.removeprefix(f"{self._root}/{path}/")
                local.parent.mkdir(parents=True, exist_ok=True)
                with self._fs.open_input_stream(info.path) as stream:
                    local.write_bytes(stream.read())
        if not temporary.is_dir():
            raise ArtifactError(f"artifact {path} is missing from the store at {self._root}")
        try:
            temporary.rename(target)
        except OSError:  # another process was first; its copy is the same
            shutil.rmtree(temporary, ignore_errors=True)
        return target


def get_shard(store: ArtifactStore, ref: ShardRef) -> tuple[ShardRef, bytes]:
    """A shard as it stands: itself, or what it was rewritten to when somebody in it was forgotten.

    Raises `ArtifactError` where it is missing without a successor, or damaged.
    """
    try:
        return ref, store.get_bytes(ref.path, ref.digest)
    except ArtifactError:
        try:
            after = msgspec.json.decode(store.read_bytes(_successor(ref.digest)), type=ShardRef)
        except ArtifactError:
            after = None
        if after is None:
            raise
    return get_shard(store, after)


def replace_shard(store: ArtifactStore, before: ShardRef, after: ShardRef) -> None:
    """Let whoever holds a reference to `before` find `after`, whose file is stored already; `before` is deleted."""
    store.put_bytes(_successor(before.digest), msgspec.json.encode(after))
    failpoints.hit("erase.pointed")
    store.delete(before.path)


def _successor(digest: str) -> str:
    return f"rewritten/{digest}.json"


def put_shard_set(store: ArtifactStore, model: str, refs: list[ShardRef]) -> ShardSet:
    """Store a list of shards, ordered by id, under its own hash."""
    data = msgspec.json.encode(sorted(refs, key=lambda ref: ref.shard_id))
    digest = hashlib.sha256(data).hexdigest()
    path = f"sets/{model}/{digest}.json"
    store.put_bytes(path, data)
    return ShardSet(path=path, digest=digest, shards=len(refs), rows=sum(ref.rows for ref in refs))


def get_shard_set(store: ArtifactStore, shards: ShardSet | None) -> list[ShardRef]:
    """The shards of a set (none for None). Raises `ArtifactError`."""
    if shards is None:
        return []
    return msgspec.json.decode(store.get_bytes(shards.path, shards.digest), type=list[ShardRef])


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
