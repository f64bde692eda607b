"""Rewriting shards without one subject's rows: lineage kept, the offsets of those rows left as gaps.

Order: the new file, then the pointer from the old digest to it, then the old file goes. The event comes last, from the
loop: until then, and for manifests that name the old digest for ever, readers follow the pointer.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.events import CandidateTrained, ModelStateChanged, ShardRef, ShardSet, ShardWritten, TaughtBy
from schemas.personal import PERSON_FIELDS
from schemas.shards import SHARD_SCHEMA, read_table
from streams.artifacts import UNFINISHED, ArtifactStore, get_shard, get_shard_set, replace_shard
from streams.losses import TRAINED_KINDS, Loss, losses, note_loss
from streams.prepare.shard import counted, put_shard, ref_of

# Columns that hold a person's id; a row without words keeps its unit.
_PERSONS = [name for name in (*PERSON_FIELDS, "unit") if name in SHARD_SCHEMA.names]
# Where files with people's words lie, whole ones that nothing may name and what a crash left unfinished.
_WITH_WORDS = ("shards", *(f"{UNFINISHED}/{kind}" for kind in ("shards", "gathered", "sorted")))
# A shard file that nothing names may belong to a transaction that is not committed yet; none stays open as long.
ORPHANED_AFTER_S = 60.0
# An adapter is named right after it was stored; one that is this old was left by a job that was done again.
UNNAMED_AFTER_S = 3_600.0


def rewrite(
    store: ArtifactStore, shards: Iterable[ShardWritten], subject_id: str, inferences: set[str], erasure_id: str
) -> list[ShardWritten]:
    """Take the subject's rows out of these shards; returns the events of all that differ from what was said of them."""
    changed = []
    for said in shards:
        ref, data = get_shard(store, ref_of(said))
        theirs = _theirs(data, subject_id, inferences)
        if pc.any(theirs, min_count=0).as_py():
            table = pq.ParquetFile(pa.BufferReader(data)).read()
            kept = table.filter(pc.invert(theirs))
            path, digest, _ = put_shard(store, said.model, said.shard_id, kept)
            after = ShardRef(shard_id=said.shard_id, path=path, digest=digest, rows=kept.num_rows)
            note_loss(store, ref, Loss(erasure_id=erasure_id, trained=_trained(table.filter(theirs)), after=digest))
            replace_shard(store, ref, after)
            ref = after
        if ref.digest != said.digest:  # also where an earlier attempt rewrote it and died before it could say so
            changed.append(_said_again(store, said, ref))
    return changed


def _theirs(data: bytes, subject_id: str, inferences: set[str]) -> pa.ChunkedArray:
    """Which rows are about the subject, of their answers, or by them. Of most shards none is; these columns tell."""
    who = read_table(pa.BufferReader(data), columns=["inference_id", *_PERSONS])
    theirs = pc.is_in(who["inference_id"], value_set=pa.array(sorted(inferences), pa.string()))
    for name in _PERSONS:
        theirs = pc.or_(theirs, pc.fill_null(pc.equal(who[name], subject_id), False))
    return theirs


def _trained(gone: pa.Table) -> dict[str, int]:
    """How many of these rows a job may have been trained on, by kind."""
    return dict(Counter(gone.filter(pc.equal(gone["split"], "train"))["kind"].to_pylist()))


def outdated(store: ArtifactStore, shards: Iterable[ShardWritten]) -> list[ShardWritten]:
    """The events of those that were rewritten since this was said of them."""
    standing = [(said, get_shard(store, ref_of(said))[0]) for said in shards]
    return [_said_again(store, said, ref) for said, ref in standing if ref.digest != said.digest]


def _said_again(store: ArtifactStore, said: ShardWritten, ref: ShardRef) -> ShardWritten:
    data = store.get_bytes(ref.path, ref.digest)
    table: pa.Table = pq.read_table(io.BytesIO(data))
    return msgspec.structs.replace(
        said, path=ref.path, digest=ref.digest, size_bytes=len(data), replaces=said.digest,
        erased=said.erased + said.rows - table.num_rows, **counted(table),
    )


def sweep(store: ArtifactStore, named: Callable[[], set[str]], written_before_s: float) -> int:
    """Delete the shard files of before then that no committed event names; wait for those that are too young to tell.

    Leftovers of aborted transactions hold words too, and so does what a killed process was just writing. Returns how
    many there were.
    """
    deleted = 0
    while True:
        known = named()
        files = [one for folder in _WITH_WORDS for one in store.files(folder)]
        orphans = [one for one in files if one[0] not in known and one[1] <= written_before_s]
        for path, written_s in orphans:
            if time.time() - written_s > ORPHANED_AFTER_S:
                store.delete(path)
                deleted += 1
        if all(time.time() - written_s > ORPHANED_AFTER_S for _, written_s in orphans):
            return deleted
        time.sleep(1.0)


def sweep_adapters(store: ArtifactStore, named: set[str]) -> int:
    """Delete adapters that no candidate has named (`named`: digests) within a job's time; returns how many."""
    written: dict[str, float] = {}
    for path, written_s in store.files("adapters"):
        folder = "/".join(path.split("/")[:2])
        written[folder] = max(written_s, written.get(folder, 0.0))
    old = [
        folder for folder, written_s in written.items()
        if folder.rpartition("/")[2] not in named and time.time() - written_s > UNNAMED_AFTER_S
    ]  # fmt: skip
    for folder in old:
        store.delete_folder(folder)
    return len(old)


def taught(
    store: ArtifactStore, states: Iterable[ModelStateChanged], pending: Iterable[CandidateTrained], erasure_id: str
) -> list[TaughtBy]:
    """The versions, and the candidates not decided on, that learned from what was taken out. Whom it only judged knows
    nothing of it."""
    found = []
    for state in states:
        for version in state.versions:
            if _learned(store, erasure_id, version.new_data, version.replay_data):
                found.append(TaughtBy(model=state.model, version=version.version, digest=version.digest))
    numbered = {one.digest for one in found}
    for one in pending:
        if one.digest not in numbered and _learned(store, erasure_id, one.new_data, one.replay_data):
            found.append(TaughtBy(model=one.model, version=0, digest=one.digest))
    return found


def _learned(store: ArtifactStore, erasure_id: str, *sets: ShardSet | None) -> bool:
    refs = [ref for one in sets for ref in get_shard_set(store, one)]
    return erasure_id in losses(store, refs, TRAINED_KINDS)


def held(store: ArtifactStore, now: dict[str, str], *sets: ShardSet | None) -> bool:
    """Whether these sets name a shard in another form than it has now (`now`: digests by shard id)."""
    refs = (ref for one in sets for ref in get_shard_set(store, one))
    return any(now.get(ref.shard_id, ref.digest) != ref.digest for ref in refs)
