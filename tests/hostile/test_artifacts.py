"""Paths, keys, folders and pointers of strangers: nothing leaves the store, and nothing is believed without proof."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from schemas import events as e
from streams.artifact_paths import check_path
from streams.artifacts import ArtifactError, ArtifactStore, folder_digest, get_shard, open_store, replace_shard
from streams.prepare import gathered
from tests.stores import SECRET, secret_file, store_at

PATHS = [
    "", "/", "bases", "/etc/passwd", "../outside", "bases/../../outside", "bases/..", "bases/.", "bases//x", "bases/x/",
    "bases\\..\\outside", "bases/a\\b", "bases/a\0b", "bases/.hidden", "~/x", "secrets/identity", "file:///etc/passwd",
    "bases/a b", "bases/a\nb", "bases/ünï", "bases/" + "a" * 129, ".tmp/../outside", ".tmp/.tmp/bases/x", "BASES/x",
    "bases/x?y", "bases/%2e%2e/x", "shards/..%2fx", "./bases/x",
]  # fmt: skip
ANY = st.text(st.sampled_from("./\\\0~%ab9-_AB \n") | st.characters(exclude_categories=["Cs"]), max_size=140)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "store")


def outside(folder: Path) -> list[str]:
    """What lies beside the store."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("store", "cache"))


@pytest.mark.parametrize("path", PATHS)
def test_no_method_of_the_store_takes_a_path_that_leads_elsewhere(store: ArtifactStore, tmp_path: Path, path: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "words").write_text("theirs")
    digest = folder_digest(tmp_path / "outside")
    calls: list[Callable[[], Any]] = [
        lambda: store.put_bytes(path, b"x"), lambda: store.read_bytes(path), lambda: store.get_bytes(path, digest),
        lambda: store.delete(path), lambda: store.get_folder(path, digest), lambda: store.put_proven(path, b"x"),
        lambda: store.read_proven(path), lambda: store.put_folder(path, tmp_path / "outside") if path != "bases" else store.read_bytes(path),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ArtifactError, match=r"is refused: expected"):
            call()
    if path != "bases":  # a kind alone can be listed
        with pytest.raises(ArtifactError, match="is refused"):
            store.files(path)
    assert outside(tmp_path) == ["outside"] and (tmp_path / "outside" / "words").read_text() == "theirs"
    assert not any((tmp_path / "store").rglob("*"))


@given(ANY)
def test_fuzzed_paths_stay_inside(path: str) -> None:
    try:
        check_path(path)
    except ArtifactError:
        return
    joined = os.path.normpath(f"/store/{path}")
    assert joined == f"/store/{path}" and joined.startswith("/store/") and path.isascii() and path.isprintable()


@pytest.mark.parametrize("link", ["file", "folder", "kind"])
def test_a_link_in_the_store_leads_nowhere(store: ArtifactStore, tmp_path: Path, link: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "words").write_text("words")
    digest = folder_digest(folder)
    (tmp_path / "store" / "bases").mkdir(parents=True)
    if link == "file":
        (tmp_path / "store" / "bases" / "x").mkdir()
        (tmp_path / "store" / "bases" / "x" / "words").symlink_to(folder / "words")
    elif link == "folder":
        (tmp_path / "store" / "bases" / "x").symlink_to(folder)
    else:
        (tmp_path / "store" / "bases").rmdir()
        (tmp_path / "store" / "bases").symlink_to(tmp_path)
        (tmp_path / "x").symlink_to(folder)
    with pytest.raises(ArtifactError, match="link"):
        store.get_folder("bases/x", digest)
    with pytest.raises(ArtifactError, match="link"):
        store.read_bytes("bases/x/words")


@pytest.mark.parametrize("digest", ["", "../x", "/etc", "0" * 63, "0" * 65, "G" * 64, "0" * 63 + "/", "0" * 64 + "\n"])
def test_a_digest_that_is_none_names_no_folder(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(ArtifactError, match=r"digest .* is refused"):
        store.get_folder("bases/x", digest)


class Bucket(fs.FileSystemHandler):
    """A bucket whose keys are whatever somebody called them, as object stores allow. A fake: no object store runs here."""

    def __init__(self, files: dict[str, list[bytes]]) -> None:
        self.files, self.reads = files, 0

    def get_type_name(self) -> str:
        return "bucket"

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return [fs.FileInfo(key, fs.FileType.File, size=1, mtime_ns=0) for key in self.files
                if key.startswith(f"{selector.base_dir}/")]  # fmt: skip

    def open_input_stream(self, path: str) -> pa.PythonFile:
        self.reads += 1
        contents = self.files[path]
        return pa.PythonFile(pa.BufferReader(contents.pop(0) if len(contents) > 1 else contents[0]), mode="r")

    def _no(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    get_file_info = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _no
    delete_file = move = copy_file = open_input_file = open_output_stream = open_append_stream = _no
    normalize_path = staticmethod(lambda path: path)


Bucket.__abstractmethods__ = frozenset()


def bucket(tmp_path: Path, files: dict[str, list[bytes]]) -> tuple[ArtifactStore, Bucket]:
    store, handler = ArtifactStore(str(tmp_path / "store"), cache_dir=tmp_path / "cache"), Bucket(files)
    store._local, store._root, store._fs = None, "bucket", fs.PyFileSystem(handler)
    return store, handler


def digest_of(**files: bytes) -> str:
    lines = [f"{name}\0{hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("key", ["../../outside", "../x", "/etc/x", "a/../../../x", "a//b", "a\\..\\x", ".ssh/x", "a\0b", ""])
def test_a_key_of_a_bucket_is_checked_before_it_is_a_file(tmp_path: Path, key: str) -> None:
    store, handler = bucket(tmp_path, {"bucket/bases/x/good": [b"good"], f"bucket/bases/x/{key}": [b"bad"]})
    with pytest.raises(ArtifactError, match="is refused"):
        store.get_folder("bases/x", "0" * 64)
    assert handler.reads == 0 and outside(tmp_path) == [] and not any((tmp_path / "cache").iterdir())
    assert [path for path, _ in store.files("bases")] == ["bases/x/good"]


def test_a_copy_is_verified_fetched_anew_once_and_then_given_up(tmp_path: Path) -> None:
    digest = digest_of(weights=b"good")
    store, handler = bucket(tmp_path, {"bucket/bases/x/weights": [b"bad", b"good"]})
    found = store.get_folder("bases/x", digest)
    assert (found / "weights").read_bytes() == b"good" and handler.reads == 2
    (found / "weights").write_bytes(b"changed afterwards")
    assert (store.get_folder("bases/x", digest) / "weights").read_bytes() == b"good" and handler.reads == 3
    assert store.get_folder("bases/x", digest) == found and handler.reads == 3, "a copy that holds is not fetched again"
    handler.files["bucket/bases/x/weights"] = [b"bad"]
    shutil.rmtree(found)
    with pytest.raises(ArtifactError, match="fetched twice"):
        store.get_folder("bases/x", digest)
    assert handler.reads == 5 and not any((tmp_path / "cache").iterdir()), "nothing that does not hold stays"


@pytest.mark.parametrize("plant", ["wrong files", "link to a folder", "file", "extra file", "link to the files"])
def test_what_stands_in_the_cache_already_is_not_believed(tmp_path: Path, plant: str) -> None:
    digest = digest_of(weights=b"good")
    store, _ = bucket(tmp_path, {"bucket/bases/x/weights": [b"good"]})
    target, theirs = tmp_path / "cache" / digest, tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "weights").write_bytes(b"good")
    (tmp_path / "cache").mkdir(mode=0o755)
    if plant == "link to a folder":
        target.symlink_to(theirs)
    elif plant == "file":
        target.write_bytes(b"x")
    else:
        target.mkdir()
        if plant == "link to the files":
            (target / "weights").symlink_to(theirs / "weights")
        else:
            (target / "weights").write_bytes(b"bad" if plant == "wrong files" else b"good")
        if plant == "extra file":
            (target / "evil.py").write_text("import os")
    found = store.get_folder("bases/x", digest)
    (theirs / "weights").write_bytes(b"swapped")
    assert not found.is_symlink() and folder_digest(found) == digest
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_cache_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = bucket(tmp_path, {"bucket/bases/x/weights": [b"good"]})
    (tmp_path / "theirs").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="not this user's own folder"):
        store.get_folder("bases/x", digest_of(weights=b"good"))
    (tmp_path / "cache").unlink()
    (tmp_path / "cache").mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ArtifactError, match="not this user's own folder"):
        store.get_folder("bases/x", digest_of(weights=b"good"))


# -- pointers and gathered files ----------------------------------------------------------------------


def put(store: ArtifactStore, name: str, rows: int) -> e.ShardRef:
    path = f"shards/support/{name}"
    return e.ShardRef(shard_id="shard-1", path=path, digest=store.put_bytes(path, name.encode()), rows=rows)


def plain(ref: e.ShardRef) -> bytes:
    return msgspec.json.encode(ref)


def pointer(ref: e.ShardRef) -> str:
    return f"rewritten/{ref.digest}.json"


def signed_by_another(store: ArtifactStore, tmp_path: Path, before: e.ShardRef, after: e.ShardRef) -> None:
    ArtifactStore(str(tmp_path / "store"), proof_key=b"x" * 32).put_proven(pointer(before), plain(after))


def of_another_shard(store: ArtifactStore, tmp_path: Path, before: e.ShardRef, after: e.ShardRef) -> None:
    """A real pointer, put in the place of another one."""
    other = put(store, "other", 9)
    store.put_proven(pointer(other), plain(after))
    store.put_bytes(pointer(before), store.read_bytes(pointer(other)))


POINTERS: dict[str, Callable[[ArtifactStore, Path, e.ShardRef, e.ShardRef], Any]] = {
    "no proof": lambda store, _, before, after: store.put_bytes(pointer(before), plain(after)),
    "zeros for a proof": lambda store, _, before, after: store.put_bytes(pointer(before), plain(after) + b"\n" + b"0" * 64),
    "another key": signed_by_another,
    "another's pointer": of_another_shard,
    "changed afterwards": lambda store, _, before, after: (
        store.put_proven(pointer(before), plain(before)),
        store.put_bytes(pointer(before), store.read_bytes(pointer(before)).replace(before.path.encode(), after.path.encode())),
    ),
    "cut off": lambda store, _, before, after: store.put_bytes(pointer(before), b"{}"),
    "more rows": lambda store, _, before, after: store.put_proven(pointer(before), plain(msgspec.structs.replace(after, rows=9))),
    "another shard": lambda store, _, before, after: store.put_proven(
        pointer(before), plain(msgspec.structs.replace(after, shard_id="shard-2"))
    ),
    "itself": lambda store, _, before, after: store.put_proven(pointer(before), plain(before)),
}  # fmt: skip


@pytest.mark.parametrize("forge", POINTERS)
def test_a_pointer_without_proof_is_not_followed(store: ArtifactStore, tmp_path: Path, forge: str) -> None:
    before, after = put(store, "before", 3), put(store, "after", 2)
    POINTERS[forge](store, tmp_path, before, after)
    store.delete(before.path)
    with pytest.raises(ArtifactError, match=r"no valid proof|names no shorter form"):
        get_shard(store, before)


def test_a_pointer_is_followed_for_a_missing_file_alone(store: ArtifactStore, tmp_path: Path) -> None:
    first, second, third = put(store, "first", 3), put(store, "second", 2), put(store, "third", 1)
    replace_shard(store, first, second)
    replace_shard(store, second, third)
    assert get_shard(store, first) == (third, b"third")
    store.put_bytes(first.path, b"damaged")
    with pytest.raises(ArtifactError, match="damaged"):
        get_shard(store, first)


def test_whoever_has_no_secret_believes_no_pointer_and_writes_none(store: ArtifactStore, tmp_path: Path) -> None:
    before, after = put(store, "before", 3), put(store, "after", 2)
    replace_shard(store, before, after)
    root = str(tmp_path / "store")
    for other in (ArtifactStore(root), open_store(root), open_store(root, "", str(tmp_path / "no such file"))):
        with pytest.raises(ArtifactError, match="set identity_secret_file"):
            get_shard(other, before)
        with pytest.raises(ArtifactError, match="set identity_secret_file"):
            replace_shard(other, after, before)
    assert get_shard(open_store(root, "", str(secret_file(tmp_path))), before)[0] == after and SECRET


@pytest.mark.parametrize("forge", ["no proof", "another key", "another's name"])
def test_a_gathered_file_without_proof_is_deleted_unread(store: ArtifactStore, tmp_path: Path, forge: str) -> None:
    held = gathered._Gathered(gathered._SCHEMA.empty_table(), ["d" * 64])
    theirs = ArtifactStore(str(tmp_path / "store"), proof_key=b"x" * 32) if forge == "another key" else store
    path = gathered._put(theirs, held)
    if forge == "no proof":
        store.put_bytes(path, store.read_bytes(path)[:-65])
    elif forge == "another's name":
        store.put_bytes(f"gathered/{'0' * 64}.arrow", store.read_bytes(path))
        store.delete(path)
    assert list(gathered._standing(store, {"d" * 64})) == [] and store.files("gathered") == []
