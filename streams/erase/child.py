"""The work of one erasure, in the warm child of the long-job loop. Each step may be done again after a crash.

Order, and why: (1) consumers know of the request, so nothing new of the subject becomes durable; (2) deletions go to
the partitions that hold their records; (3) every consumer has passed these, whichever attempt wrote them, so tables and
shards that could still change do not; (4) shards, ClickHouse, (5) compaction, (6) the request itself loses the
subject's name. The receipt is the loop's, after all this.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from schemas.events import CandidateTrained, DecisionMade, ErasureRequested, ShardWritten
from streams import erased, failpoints, kafka, sorted_copies
from streams.artifacts import ArtifactStore, open_store
from streams.clickhouse import connect
from streams.erase import shards, tables
from streams.erase.compact import compact_away, restore_settings
from streams.erase.find import Place, Subject, deleted_already, find, still_stored
from streams.erase.keepers import delete, wait_until_passed
from streams.erase.logs import blot_out, without
from streams.prepare import gathered
from streams.prepare.step import read_committed_shards
from streams.register import facts, read_registry

log = logging.getLogger(__name__)
SOURCE = "erase"
WAIT_S = 900.0
Report = Callable[[Any], None]


def make(bootstrap: str, clickhouse: str, logs: Sequence[str], *artifacts: str) -> Callable[[Any, Report], Any]:
    """The function that the child runs for each request.

    `logs` are the folders with this machine's logs, `artifacts` the arguments of `open_store`.
    """
    store = open_store(*artifacts)

    def work(request: Any, report: Report) -> Any:
        try:
            return Erasure(bootstrap, clickhouse, logs, store, request, report).done()
        except Exception as error:
            said = without(str(error), request["event"]["subject_id"])
            if said == str(error):
                raise
            # An error of ClickHouse quotes the statement, one of the network its address: both hold the id.
            raise RuntimeError(f"{type(error).__name__}: {said}") from None

    return work


class Erasure:
    """One request (an `ErasureRequested` as plain values, with `asked_ms`), carried out."""

    def __init__(
        self, bootstrap: str, clickhouse: str, logs: Sequence[str], store: ArtifactStore, request: Any, report: Report
    ) -> None:
        self._bootstrap, self._clickhouse, self._store, self._report = bootstrap, clickhouse, store, report
        self._logs = [Path(folder) for folder in logs]
        self._asked_ms: int = request["asked_ms"]
        self._cause: str = request["id"]
        self._event = msgspec.convert(request["event"], ErasureRequested)
        # What an attempt before this one found, too: it may have deleted what they were found by.
        known = erased.read_inferences(store, self._event.erasure_id)
        late = erased.late_inferences(store, self._event.subject_hash)
        self._subject = Subject(self._event.subject_id, late.union(known))
        self._doomed: dict[Place, set[bytes]] = {}
        self._counted: Counter[str] = Counter()
        self._rows = 0

    def done(self) -> dict[str, Any]:
        """What the receipt says, and what is to be said of shards."""
        restore_settings(self._bootstrap, self._store)
        if not self._event.subject_id:
            return self._said_before()
        time.sleep(max(0.0, self._asked_ms / 1000 + 3 * erased.STALE_S - time.time()))
        # Topics keep answers for a while, ClickHouse for good: feedback on old ones is known by these ids alone.
        self._subject.inferences |= tables.inferences_of(connect(self._clickhouse), self._event.subject_id)
        # What an attempt before this one deleted and did not see compacted.
        self._doomed = deleted_already(self._bootstrap, self._subject)
        self._delete_records()
        changed = self._rewrite_shards()
        touched = self._touched(changed)
        self._say("tables")
        tables.delete_rows(connect(self._clickhouse), self._event.subject_id, self._subject.inferences)
        failpoints.hit("erase.rows_deleted")
        self._say("compaction")
        left = lambda: still_stored(self._bootstrap, self._doomed)  # noqa: E731
        compact_away(self._bootstrap, self._store, list(self._doomed), self._event.erasure_id, left)
        failpoints.hit("erase.compacted")
        # Once more: a process that was just starting may have gathered what the shards said before.
        self._forget_copies(changed)
        receipt = {
            "tombstones": self._counted, "rewritten": len(changed), "rows": self._rows, **touched,
            "log_places": blot_out(self._logs, self._event.subject_id),
        }  # fmt: skip
        noted = msgspec.json.encode({"receipt": receipt, "shards": [one.shard_id for one in changed]})
        self._store.put_proven(self._notes, noted)
        self._forget_the_name()
        return msgspec.to_builtins(receipt | {"shards": changed})  # type: ignore[no-any-return]

    def _said_before(self) -> dict[str, Any]:
        """Of a request that has lost its subject all is done, and noted what was. Others may have gone on since."""
        noted = msgspec.json.decode(self._store.read_proven(self._notes))
        said = [one for one in read_committed_shards(self._bootstrap) if one.shard_id in noted["shards"]]
        return noted["receipt"] | {"shards": msgspec.to_builtins(shards.outdated(self._store, said))}  # type: ignore[no-any-return]

    @property
    def _notes(self) -> str:
        return f"erasures/{self._event.erasure_id}.notes.json"

    def _say(self, phase: str) -> None:
        log.info("%s: %s", self._event.erasure_id, phase)
        self._report({"phase": phase})

    def _delete_records(self) -> None:
        """Until no more of theirs is found: what was in flight when one look was taken is found by the next.

        Every consumer has passed the end of what was looked at then, for an attempt before this one may have written
        deletions and not waited.
        """
        passed, published = False, set[str]()
        while True:
            self._say("records")
            found = find(self._bootstrap, self._subject)
            if passed and not found.keys:
                return
            if found.inferences - published:  # so that consumers know whose the feedback is that comes from now on
                erased.put_inferences(self._store, self._event.erasure_id, found.inferences)
                published = found.inferences
                time.sleep(3 * erased.STALE_S)
            for place, keys in found.keys.items():
                self._doomed[place] = self._doomed.get(place, set()) | keys
            self._counted.update(found.count())
            marks = found.last | delete(self._bootstrap, found.keys)
            failpoints.hit("erase.deleted")
            self._say("consumers")
            wait_until_passed(self._bootstrap, marks, WAIT_S)
            passed = True

    def _rewrite_shards(self) -> list[ShardWritten]:
        self._say("shards")
        now_s = time.time()
        committed = read_committed_shards(self._bootstrap)
        changed = shards.rewrite(
            self._store, committed, self._event.subject_id, self._subject.inferences, self._event.erasure_id
        )
        self._rows = sum(after.erased for after in changed)
        self._forget_copies(changed)
        named = {after.path for after in changed}
        failpoints.hit("erase.rewritten")
        shards.sweep(
            self._store, lambda: named | {one.path for one in read_committed_shards(self._bootstrap)}, now_s
        )
        return changed

    def _touched(self, changed: list[ShardWritten]) -> dict[str, Any]:
        """What learned from the rows that are gone, or is just doing so; adapters that nobody ever named go."""
        self._say("adapters")
        # In this order: a candidate that gets its number meanwhile is seen as both, never as neither.
        decided = {one.job_id for one in facts(self._bootstrap, "models.decisions") if isinstance(one, DecisionMade)}
        said = facts(self._bootstrap, "models.candidates")
        candidates = [one for one in said if isinstance(one, CandidateTrained)]
        models, _ = read_registry(self._bootstrap, settled=True)
        pending = [one for one in candidates if one.job_id not in decided]
        now = {one.shard_id: one.digest for one in changed}
        client = connect(self._clickhouse)
        return {
            "adapters": shards.taught(self._store, models.values(), pending, self._event.erasure_id),
            "jobs": [job for job, *sets in tables.jobs_under_way(client) if shards.held(self._store, now, *sets)],
            "deleted": shards.sweep_adapters(self._store, {one.digest for one in candidates}),
        }

    def _forget_copies(self, changed: list[ShardWritten]) -> None:
        """What was made from shards and can be made again."""
        standing = self._standing(changed)
        gathered.forget(self._store, standing)
        sorted_copies.forget(self._store, standing)

    def _standing(self, changed: list[ShardWritten]) -> set[str]:
        """The digests of all shards as they are now."""
        now = {one.shard_id: one.digest for one in [*read_committed_shards(self._bootstrap), *changed]}
        return set(now.values())

    def _forget_the_name(self) -> None:
        """Say the request again without the subject, and have Kafka drop what was said before."""
        self._say("request")
        path = erased.put_inferences(self._store, self._event.erasure_id, self._subject.inferences)
        nameless = msgspec.structs.replace(erased.nameless(self._event), inferences=path)
        client = kafka.producer(self._bootstrap)
        said = kafka.out(
            nameless, source=SOURCE, subject=nameless.erasure_id, time_ms=self._asked_ms, causation_id=self._cause
        )
        kafka.produce(client, said)
        if client.flush(30):
            raise TimeoutError("the request was not acknowledged within 30 s")
        failpoints.hit("erase.renamed")
        places = [(erased.TOPIC, 0)]
        compact_away(self._bootstrap, self._store, places, self._event.erasure_id, lambda: self._named(said.key))

    def _named(self, key: bytes | None) -> int:
        """How many records of this request still hold the subject's name."""
        said = [record for record in kafka.read_to_end(self._bootstrap, erased.TOPIC) if record.key == key]
        return sum(self._subject.in_bytes(record.value or b"") for record in said)
