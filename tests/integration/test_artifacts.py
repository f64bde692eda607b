"""The artifact store on a real file system: whole or absent, and what is damaged is said to be."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from schemas.events import ShardRef, ShardSet
from streams import failpoints
from streams.artifacts import ArtifactError, ArtifactStore, folder_digest, get_shard_set, put_shard_set
from tests.stores import store_at


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "store")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(100_000))
    (folder / "nested" / "config.json").write_text("{}")
    return folder


def test_bytes_come_back_by_their_digest(store) -> None:
    digest = store.put_bytes("shards/support/a.parquet", b"rows")
    assert digest == hashlib.sha256(b"rows").hexdigest()
    assert store.get_bytes("shards/support/a.parquet", digest) == b"rows"
    assert store.put_bytes("shards/support/a.parquet", b"rows") == digest, "writing it again is harmless"


def test_missing_and_damaged_bytes_are_refused_by_name(store, tmp_path) -> None:
    digest = store.put_bytes("shards/a", b"rows")
    with pytest.raises(ArtifactError, match="shards/b is missing"):
        store.get_bytes("shards/b", digest)
    (tmp_path / "store" / "shards" / "a").write_bytes(b"r0ws")
    with pytest.raises(ArtifactError, match="shards/a is damaged"):
        store.get_bytes("shards/a", digest)


def test_a_full_disk_leaves_no_pieces_behind(store, tmp_path) -> None:
    failpoints.arm("artifact.written=diskfull")
    try:
        with pytest.raises(OSError, match="no space left"):
            store.put_bytes("shards/a", b"rows")
    finally:
        failpoints.arm("")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_reader_never_sees_half_a_file(store) -> None:
    """One thread writes the same path over and over, the other always finds all of it."""
    data = os.urandom(2_000_000)
    digest = store.put_bytes("shards/big", data)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.put_bytes("shards/big", data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            assert len(store.get_bytes("shards/big", digest)) == len(data)
    finally:
        stop.set()
        writer.join()


def test_a_folder_is_stored_under_its_digest(store, adapter) -> None:
    path, digest = store.put_folder("adapters/support", adapter)
    assert path == f"adapters/support/{digest}" and digest == folder_digest(adapter)
    found = store.get_folder(path, digest)
    assert (found / "nested" / "config.json").read_text() == "{}"
    assert store.put_folder("adapters/support", adapter) == (path, digest)


@pytest.mark.parametrize("harm", ["changed", "missing file", "extra file"])
def test_a_damaged_folder_is_refused(store, adapter, tmp_path, harm) -> None:
    path, digest = store.put_folder("adapters", adapter)
    weights = tmp_path / "store" / path / "adapter_model.safetensors"
    if harm == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    elif harm == "missing file":
        weights.unlink()
    else:
        (weights.parent / "extra.py").write_text("import os")
    with pytest.raises(ArtifactError, match="damaged"):
        store.get_folder(path, digest)


def test_a_missing_folder_is_refused(store) -> None:
    with pytest.raises(ArtifactError, match="adapters/none is missing"):
        store.get_folder("adapters/none", "0" * 64)


def test_a_write_that_was_cut_off_spoils_nothing(store, adapter, tmp_path, monkeypatch) -> None:
    """The disk is full once in the middle of a folder; the same folder stored again is whole."""
    full = monkeypatch.context()
    with full as patched:
        patched.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            store.put_folder("adapters", adapter)
    path, digest = store.put_folder("adapters", adapter)
    assert folder_digest(store.get_folder(path, digest)) == digest


def test_shard_sets_do_not_depend_on_order(store) -> None:
    refs = [ShardRef(shard_id=f"shard-{n}", path=f"p/{n}", digest=str(n), rows=n) for n in range(5)]
    one, other = put_shard_set(store, "support", refs), put_shard_set(store, "support", refs[::-1])
    assert one == other and (one.shards, one.rows) == (5, 10)
    assert get_shard_set(store, one) == refs
    assert get_shard_set(store, None) == []


def test_a_damaged_shard_set_is_refused(store, tmp_path) -> None:
    shards = put_shard_set(store, "support", [ShardRef(shard_id="s", path="p", digest="d", rows=1)])
    (tmp_path / "store" / shards.path).write_text("[]")
    with pytest.raises(ArtifactError, match="damaged"):
        get_shard_set(store, shards)
    with pytest.raises(ArtifactError, match="missing"):
        get_shard_set(store, ShardSet(path="sets/none.json", digest="d", shards=0, rows=0))


def test_an_object_store_address_works_the_same(tmp_path, adapter) -> None:
    """A `pyarrow.fs` URI that is not a plain path goes through the remote code, here on a local file system."""
    remote = ArtifactStore(str(tmp_path / "remote"), cache_dir=tmp_path / "cache")
    path, digest = remote.put_folder("adapters", adapter)
    remote._local = None  # from here on as for s3:// and gs://
    found = remote.get_folder(path, digest)
    assert found.is_relative_to(tmp_path / "cache") and folder_digest(found) == digest
    with pytest.raises(ArtifactError, match="missing"):
        remote.get_folder("adapters/none", "0" * 64)
