"""Rewriting shards without one subject's rows: lineage kept, the offsets of those rows left as gaps.

Order: the new file, then the pointer from the old digest to it, then the old file goes. The event comes last, from the
loop: until then, and for manifests that name the old digest for ever, readers follow the pointer.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.events import ModelStateChanged, ShardRef, ShardWritten, TaughtBy
from streams.artifacts import UNFINISHED, ArtifactStore, get_shard, get_shard_set, replace_shard
from streams.prepare.shard import counted, put_shard, ref_of

# A shard file that nothing names may belong to a transaction that is not committed yet; none stays open as long.
ORPHANED_AFTER_S = 60.0


def rewrite(
    store: ArtifactStore, shards: Iterable[ShardWritten], subject_id: str, inferences: set[str]
) -> list[ShardWritten]:
    """Take the subject's rows out of these shards; returns the events of all that differ from what was said of them."""
    changed = []
    for said in shards:
        ref, data = get_shard(store, ref_of(said))
        file = pq.ParquetFile(pa.BufferReader(data))
        # Of most shards nobody is forgotten, and these two columns tell.
        who = file.read(columns=["subject_id", "inference_id"], use_threads=False)
        asked = pc.is_in(who["inference_id"], value_set=pa.array(sorted(inferences), pa.string()))
        theirs = pc.fill_null(pc.or_kleene(pc.equal(who["subject_id"], subject_id), asked), False)
        if pc.any(theirs, min_count=0).as_py():
            kept = file.read().filter(pc.invert(theirs))
            path, digest, _ = put_shard(store, said.model, said.shard_id, kept)
            after = ShardRef(shard_id=said.shard_id, path=path, digest=digest, rows=kept.num_rows)
            replace_shard(store, ref, after)
            ref = after
        if ref.digest != said.digest:  # also where an earlier attempt rewrote it and died before it could say so
            changed.append(_said_again(store, said, ref))
    return changed


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
        files = [*store.files("shards"), *store.files(f"{UNFINISHED}/shards"), *store.files(f"{UNFINISHED}/gathered")]
        orphans = [one for one in files if one[0] not in known and one[1] <= written_before_s]
        for path, written_s in orphans:
            if time.time() - written_s > ORPHANED_AFTER_S:
                store.delete(path)
                deleted += 1
        if all(time.time() - written_s > ORPHANED_AFTER_S for _, written_s in orphans):
            return deleted
        time.sleep(1.0)


def taught(store: ArtifactStore, states: Iterable[ModelStateChanged], shard_ids: set[str]) -> list[TaughtBy]:
    """The versions that learned from (or were judged on) any of these shards."""
    found = []
    for state in states:
        for version in state.versions:
            sets = (version.new_data, version.replay_data)
            if any(ref.shard_id in shard_ids for one in sets for ref in get_shard_set(store, one)):
                found.append(TaughtBy(model=state.model, version=version.version, digest=version.digest))
    return found
