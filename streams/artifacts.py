"""The artifact store: shards, adapters and bases, by content, on anything `pyarrow.fs` reaches.

Order of a write: temporary name, fsync, rename, digest, and only then the event that points to it. Events
carry paths relative to the store's root, so that a store can move; no path leads out of it. What is found by its name
and not by a digest in an event carries a proof (`put_proven`). Shards that no committed event names are
swept whenever somebody is forgotten.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import shutil
import uuid
from pathlib import Path

import msgspec
from pyarrow import fs

from schemas.events import ShardRef, ShardSet
from schemas.identity import derive_key
from streams import failpoints
from streams.artifact_cache import fetched, users_cache
from streams.artifact_paths import (
    UNFINISHED,
    ArtifactError,
    MissingArtifactError,
    check_digest,
    check_path,
    file_digest,
    files_of,
    folder_digest,
)  # fmt: skip
from streams.object_store import open_object_store

__all__ = [
    "UNFINISHED", "ArtifactError", "ArtifactStore", "MissingArtifactError", "file_digest", "folder_digest",
    "get_shard", "get_shard_set", "open_store", "put_shard_set", "replace_shard",
]  # fmt: skip
log = logging.getLogger(__name__)
PROOF_BYTES = 65  # a line break and a sha256 in hex


def open_store(root: str, cache: str = "", secret_file: str = "", config: str = "") -> ArtifactStore:
    """The store at `root`.

    `cache` is its folder for copies; `secret_file` holds what its proofs are made with, `config` an object store's
    credentials. Raises `streams.object_store.ObjectStoreError`.
    """
    path = Path(secret_file)
    secret = path.read_text().strip().encode() if secret_file and path.is_file() else b""
    key = derive_key(secret, "artifacts") if secret else None
    return ArtifactStore(root, Path(cache) if cache else None, key, config)


class ArtifactStore:
    """Files by relative path under one root: a local directory or a `pyarrow.fs` URI (s3://, gs://).

    `cache_dir` is where copies from an object store lie (default: `$XDG_CACHE_HOME/tuneloop/artifacts`). Without a
    `proof_key` nothing that needs a proof is written or believed.
    """

    def __init__(
        self, root: str, cache_dir: Path | None = None, proof_key: bytes | None = None, config: str = ""
    ) -> None:
        self._local = None if "://" in root and not root.startswith("file://") else Path(root.removeprefix("file://"))
        self._fs: fs.FileSystem
        if self._local is not None:
            self._local = self._local.resolve()
            self._fs, self._root = fs.LocalFileSystem(), str(self._local)
        else:
            self._fs, self._root = open_object_store(root, config)
        self._cache, self._proof_key = cache_dir or users_cache(), proof_key

    @property
    def proves(self) -> bool:
        """Whether this store has the key that proofs are made and checked with."""
        return self._proof_key is not None

    def _inside(self, path: str) -> str:
        """Where `path` lies. Raises `ArtifactError` for one that would lead out of the store."""
        target = f"{self._root}/{check_path(path)}"
        if self._local is not None and not os.path.realpath(target).startswith(f"{self._root}/"):
            raise ArtifactError(f"artifact {path} leads out of the store at {self._root} by a link: remove the link")
        return target

    def put_bytes(self, path: str, data: bytes) -> str:
        """Store `data` at `path`; returns its sha256. Writing the same content again is harmless."""
        target = self._inside(path)
        self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
        if self._local is None:  # object stores make a key visible only when it is whole
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
        else:
            # Not beside the target: what a crash leaves there would count as a file of the folder.
            temporary = Path(self._inside(f"{UNFINISHED}/{path.partition('/')[0]}/{uuid.uuid4().hex}"))
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
        for file in files_of(folder):
            self.put_bytes(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return path, digest

    def get_bytes(self, path: str, digest: str) -> bytes:
        """The bytes at `path`. Raises `ArtifactError` if they are missing or hash to something else."""
        data = self.read_bytes(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactError(f"artifact {path} is damaged: its bytes do not hash to {digest[:12]}…")
        return data

    def read_bytes(self, path: str) -> bytes:
        """The bytes at `path`, whatever they are. Raises `MissingArtifactError`."""
        try:
            with self._fs.open_input_stream(self._inside(path)) as stream:
                return bytes(stream.read())
        except FileNotFoundError as error:
            raise MissingArtifactError(f"artifact {path} is missing from the store at {self._root}") from error

    def put_proven(self, path: str, data: bytes) -> None:
        """Store `data` with a proof that whoever wrote it here had the identity secret. Raises `ArtifactError`."""
        self.put_bytes(path, data + self._proof(path, data))

    def read_proven(self, path: str) -> bytes:
        """What `put_proven` stored at `path`. Raises `ArtifactError` for any other file."""
        stored = self.read_bytes(path)
        data, proof = stored[:-PROOF_BYTES], stored[-PROOF_BYTES:]
        if not hmac.compare_digest(self._proof(path, data), proof):
            raise ArtifactError(f"artifact {path} has no valid proof: it was written without this loop's secret")
        return data

    def _proof(self, path: str, data: bytes) -> bytes:
        if self._proof_key is None:
            raise ArtifactError(f"artifact {path} needs the identity secret: set identity_secret_file to its file")
        return b"\n" + hmac.new(self._proof_key, path.encode() + b"\0" + data, hashlib.sha256).hexdigest().encode()

    def delete(self, path: str) -> None:
        """Take the file at `path` away; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._inside(path))

    def delete_folder(self, path: str) -> None:
        """Take the folder at `path` away, with this machine's copy; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._inside(path))
        shutil.rmtree(self._cache / path.rpartition("/")[2], ignore_errors=True)

    def files(self, prefix: str) -> list[tuple[str, float]]:
        """(path, Unix time of its last change) of every file under `prefix`; without those under impossible names."""
        chosen = fs.FileSelector(f"{self._root}/{check_path(prefix, alone=True)}", allow_not_found=True, recursive=True)
        found = []
        for info in self._fs.get_file_info(chosen):
            if info.type == fs.FileType.File:
                path = info.path[len(self._root) + 1 :]
                try:
                    found.append((check_path(path), info.mtime.timestamp()))
                except ArtifactError as error:
                    log.warning("left alone: %s", error)
        return found

    def get_folder(self, path: str, digest: str) -> Path:
        """A local folder with the files under `path`, verified. Raises `ArtifactError`."""
        source = self._inside(path)
        check_digest(digest)
        if self._local is None:
            return fetched(self._fs, f"{self._root}/{path}", path, digest, self._cache)
        if not os.path.isdir(source):
            raise MissingArtifactError(f"artifact {path} is missing from the store at {self._root}")
        if folder_digest(Path(source)) != digest:
            raise ArtifactError(f"artifact {path} is damaged: its files do not hash to {digest[:12]}…")
        return Path(source)


def get_shard(store: ArtifactStore, ref: ShardRef) -> tuple[ShardRef, bytes]:
    """A shard as it stands: itself, or what it was rewritten to when somebody in it was forgotten.

    Raises `ArtifactError` where it is missing without a successor, or damaged.
    """
    while True:
        try:
            return ref, store.get_bytes(ref.path, ref.digest)
        except MissingArtifactError:
            after = _successor_of(store, ref)
            if after is None:
                raise
            ref = after


def _successor_of(store: ArtifactStore, ref: ShardRef) -> ShardRef | None:
    """What a shard was rewritten to. It has fewer rows, so no chain of these is without an end."""
    path = _pointer(ref.digest)
    try:
        after = msgspec.json.decode(store.read_proven(path), type=ShardRef)
    except MissingArtifactError:
        return None
    if after.shard_id != ref.shard_id or after.rows >= ref.rows:
        raise ArtifactError(f"artifact {path} names no shorter form of {ref.shard_id}: it is not followed")
    return after


def replace_shard(store: ArtifactStore, before: ShardRef, after: ShardRef) -> None:
    """Let whoever holds a reference to `before` find `after`, whose file is stored already; `before` is deleted."""
    store.put_proven(_pointer(before.digest), msgspec.json.encode(after))
    failpoints.hit("erase.pointed")
    store.delete(before.path)


def _pointer(digest: str) -> str:
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
