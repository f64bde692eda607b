"""What shards lost when people were forgotten, and whether a job that had read them is void.

A note per rewritten shard form, under `rewritten/`, kept for good like the pointer from the old form to the new one. It
is written before that pointer, so whoever finds a shard shorter than it was finds the note as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.events import ShardRef, ShardSet
from streams.artifact_paths import MissingArtifactError
from streams.artifacts import ArtifactStore, get_shard, get_shard_set

TRAINED_KINDS = ("sft",)
# A job that rows are taken from under its feet is asked for again this often; the next one is judged, and marked.
MOST_VOID = 1


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of the train split, by kind, that an erasure took out of a shard; `after` is the new form's digest."""

    erasure_id: str
    trained: dict[str, int]
    after: str


def note_loss(store: ArtifactStore, before: ShardRef, loss: Loss) -> None:
    store.put_proven(_path(before.digest), msgspec.json.encode(loss))


def as_they_stand(store: ArtifactStore, shards: ShardSet | None) -> list[ShardRef]:
    """The shards of a set in the form that whoever reads them now gets; only what was rewritten is opened for that.

    Raises `ArtifactError`.
    """
    gone = _rewritten(store)
    return [get_shard(store, ref)[0] if ref.digest in gone else ref for ref in get_shard_set(store, shards)]


def losses(store: ArtifactStore, shards: Iterable[ShardRef], kinds: Iterable[str]) -> dict[str, int]:
    """Rows of the train split and of these kinds that these forms of shards have lost since, by erasure."""
    wanted, lost = set(kinds), dict[str, int]()
    gone = _rewritten(store)
    for ref in shards:
        if ref.digest not in gone:
            continue
        digest, seen = ref.digest, set[str]()
        while (loss := _loss(store, digest)) is not None and digest not in seen:
            seen.add(digest)
            rows = sum(count for kind, count in loss.trained.items() if kind in wanted)
            if rows:
                lost[loss.erasure_id] = lost.get(loss.erasure_id, 0) + rows
            digest = loss.after
    return lost


def is_void(lost: dict[str, int], void_before: int) -> bool:
    """Whether what was trained on rows that are gone is to be trained again, rather than judged and marked."""
    return bool(lost) and void_before < MOST_VOID


def reason(lost: dict[str, int]) -> str:
    return f"{sum(lost.values())} rows that it was trained on were erased meanwhile ({', '.join(sorted(lost))})"


def _rewritten(store: ArtifactStore) -> set[str]:
    """The digests of all forms of shards that rows were taken from: one listing, however many shards there are."""
    return {path.rpartition("/")[2].partition(".")[0] for path, _ in store.files("rewritten")}


def _path(digest: str) -> str:
    return f"rewritten/{digest}.lost.json"


def _loss(store: ArtifactStore, digest: str) -> Loss | None:
    try:
        data = store.read_proven(_path(digest))
    except MissingArtifactError:
        return None
    return msgspec.json.decode(data, type=Loss)
