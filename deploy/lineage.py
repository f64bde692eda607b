"""Where a training record went: from its raw offset to the versions that learned from it or were judged on it.

Asks ClickHouse for the landed events and the artifact store for shards and their sets. Holds nobody's words. What one
version was made from is `deploy.version_lineage`'s; which process runs which is `deploy.local.lineage`'s.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow.parquet as pq

from deploy.version_lineage import Family, LineageError, Row, family, verdict_word
from schemas.codec import Envelope
from schemas.events import Message, RecordSubmitted, ShardSet
from schemas.policy import ModelPolicy
from streams.artifacts import ArtifactError, ArtifactStore, get_shard_set
from streams.clickhouse import rows
from streams.losses import TRAINED_KINDS
from streams.prepare.rules import RULES_VERSION, Dropped, prepare
from streams.replay import parse_origin

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Reasons that depend on other rows (`streams.prepare.admit`) or came later: the rules for one record never give them.
_BESIDE_OTHERS = {"duplicate", "near duplicate", "contradicted", "superseded", "common question", "erased"}


def trace(client: Client, store: ArtifactStore, identity: str) -> dict[str, list[Row]]:
    """The way of a record id, an inference id or an origin: `raw`, `shards` and `uses`, in order of time.

    Raises `LineageError` for an id that nothing is known of.
    """
    raw = submissions(client, identity)
    if not raw:
        raise LineageError(
            f"nothing is known of {identity!r}; give a record id, an inference id or topic/partition/offset. If it was "
            "sent just now, try again in a second; if a consumer refused it, `tuneloop dlq ls` and `dlq show` have it"
        )
    shards = [shard for one in raw for shard in _shards_of(client, store, one)]
    uses = [use for model in sorted({one["model"] for one in raw}) for use in _uses(client, store, model, shards)]
    return {"raw": [_said(one) for one in raw], "shards": [_shown(shard) for shard in shards], "uses": uses}


def submissions(client: Client, identity: str) -> list[Row]:
    """Every time the records that `identity` names were submitted: a correction has the id of what it corrects."""
    name = "if(record_id = '', ce_id, record_id)"
    topic, partition, offset = parse_origin(identity) or ("", -1, -1)
    there = "_topic = {topic:String} AND _partition = {partition:Int32} AND _offset = {offset:Int64}"
    # Where an answer or what was said of it is named, what it became is looked for.
    inferences = " UNION ALL ".join(
        f"SELECT inference_id FROM tuneloop.{table} WHERE {there}" for table in ("inference_served", "feedback_given")
    )
    return rows(
        client,
        f"SELECT *, {name} AS record, toUnixTimestamp64Milli(ts) AS ts_ms FROM tuneloop.record_submitted FINAL "
        f"WHERE (model, {name}) IN (SELECT model, {name} FROM tuneloop.record_submitted "
        f"WHERE record_id = {{id:String}} OR ce_id = {{id:String}} OR inference_id = {{id:String}} OR ({there}) "
        f"OR (inference_id != '' AND inference_id IN ({inferences}))) ORDER BY ts, _partition, _offset",
        id=identity, topic=topic, partition=partition, offset=offset,
    )


def _origin(one: Row) -> str:
    return f"{one['_topic']}/{one['_partition']}/{one['_offset']}"


def _said(one: Row) -> Row:
    return {
        "origin": _origin(one), "at": one["ts"], "record": one["record"], "model": one["model"], "kind": one["kind"],
        "inference": one["inference_id"] or None, "submitted_by": one["origin"],
    }  # fmt: skip


def _shards_of(client: Client, store: ArtifactStore, one: Row) -> list[Row]:
    """What preparation made of one submission: a row in a shard, a drop with its reason, or nothing yet."""
    place = {"topic": one["_topic"], "partition": one["_partition"], "offset": one["_offset"]}
    found = rows(
        client,
        "SELECT * FROM tuneloop.shard_written FINAL WHERE source_topic = {topic:String} "
        "AND source_partition = {partition:Int32} AND last_offset >= {offset:Int64} ORDER BY first_offset, _offset",
        **place,
    )
    covering = {  # a shard that was rewritten is said again: the last word counts
        shard["shard_id"]: shard
        for shard in found if shard["model"] == one["model"] and shard["first_offset"] <= one["_offset"]
    }  # fmt: skip
    if covering:
        return [_in_shard(store, shard, one) for shard in covering.values()]
    state = f"refused? `tuneloop dlq show {_origin(one)}`" if found else "waits to be prepared"
    unknown = dict.fromkeys(("shard", "at", "digest", "kind", "split"))
    return [{"one": one, **unknown, "augmented": 0, "dropped": state}]


def _in_shard(store: ArtifactStore, shard: Row, one: Row) -> Row:
    row: Row = {"one": one, "shard": shard["shard_id"], "at": shard["ts"], "digest": shard["digest"],
                "kind": None, "split": None, "augmented": 0, "dropped": None}  # fmt: skip
    try:
        data = store.get_bytes(shard["path"], shard["digest"])
    except ArtifactError as error:
        return {**row, "dropped": f"cannot be looked at: {error}"}
    same = [("offset", "==", one["_offset"]), ("partition", "==", one["_partition"])]
    found = pq.read_table(io.BytesIO(data), columns=["kind", "split", "origin"], filters=same).to_pylist()
    own = next((entry for entry in found if entry["origin"] != "augmented"), None)
    if own is None:
        return {**row, "dropped": drop_reason(shard, one)}
    return {**row, "kind": own["kind"], "split": own["split"], "augmented": len(found) - 1}


def drop_reason(shard: Row, one: Row) -> str:
    """Why a shard that covers a submission has no row of it: its only reason, else what the rules say of it again."""
    reasons = set(json.loads(shard["dropped"])) | ({"erased"} if shard["erased"] else set())
    if len(reasons) > 1 and shard["rules_version"] == RULES_VERSION:
        fields = {name: one[name] for name in RecordSubmitted.__struct_fields__ if name in one}
        fields = {name: value for name, value in fields.items() if name not in ("messages", "labels")}  # as JSON
        event = RecordSubmitted(**fields, messages=msgspec.json.decode(one["messages"], type=list[Message]))
        envelope = Envelope(id=one["ce_id"], type="RecordSubmitted", source=one["ce_source"], time_ms=one["ts_ms"])
        result = prepare(event, envelope, ModelPolicy(), b"")  # no drop depends on a policy or a split here
        if isinstance(result, Dropped):
            return result.reason
        reasons = reasons & _BESIDE_OTHERS or reasons
    return " or ".join(sorted(reasons)) or "not known"


def _shown(shard: Row) -> Row:
    return {"raw": _origin(shard["one"]), **{name: value for name, value in shard.items() if name != "one"}}


_JOBS = """
SELECT j.job_id AS job, j.ts AS at, j.reason AS reason, j.new_data AS new_data, j.replay_data AS replay_data,
    c.digest AS candidate, v.passed AS passed, v.void AS void, v.reason AS verdict,
    d.version AS version, g.deletes AS deletes
FROM (SELECT * FROM tuneloop.job_requested FINAL WHERE model = {model:String}) AS j
LEFT ANY JOIN (SELECT * FROM tuneloop.candidate_trained FINAL) AS c ON c.job_id = j.job_id
LEFT ANY JOIN (SELECT * FROM tuneloop.verdict_reached FINAL) AS v ON v.job_id = j.job_id
LEFT ANY JOIN (SELECT * FROM tuneloop.decision_made FINAL WHERE decision = 'promoted') AS d ON d.job_id = j.job_id
LEFT ANY JOIN (SELECT * FROM tuneloop.decision_made FINAL WHERE decision IN ('refused', 'void')) AS g
    ON g.job_id = j.job_id
ORDER BY j.ts SETTINGS join_use_nulls = 1
"""


def _uses(client: Client, store: ArtifactStore, model: str, shards: Sequence[Row]) -> list[Row]:
    """A line for each job that was given one of these rows."""
    held = [shard for shard in shards if shard["one"]["model"] == model and shard["kind"]]
    if not held:
        return []
    relatives = family(client, model)
    found = []
    for job in rows(client, _JOBS, model=model):
        given = {data: msgspec.json.decode(job[f"{data}_data"], type=ShardSet | None) for data in ("new", "replay")}
        ids = {data: {ref.shard_id for ref in get_shard_set(store, shards)} for data, shards in given.items()}
        inside = {data: [shard for shard in held if shard["shard"] in ids[data]] for data in given}
        found += [_use(job, data, shard, inside, relatives) for data in inside for shard in inside[data]]
    return found


def _use(job: Row, data: str, shard: Row, inside: Mapping[str, Sequence[Row]], relatives: Family) -> Row:
    version = job["version"]
    return {
        "model": relatives.model, "job": job["job"], "at": job["at"], "reason": job["reason"], "data": data,
        "shard": shard["shard"], "raw": _origin(shard["one"]), "role": role(shard, data, inside),
        "candidate": job["candidate"], "passed": job["passed"], "void": job["void"],
        "verdict": job["verdict"], "adapter_deleted": job["deletes"] not in (None, "[]"),
        "version": f"{relatives.model}@{version}" if version else None,
        "serves": relatives.serves(version) if version else None,
    }  # fmt: skip


def role(shard: Row, data: str, inside: Mapping[str, Sequence[Row]]) -> str:
    """What a row was to a job. `data` ("new" or "replay") says which of its sets holds it, `inside` what rows of the
    same ids these sets hold; as `trainers.rows` has it, the newest of a set counts, and new data before replayed.
    That somebody else answered the same question later is not looked at."""

    def order(other: Row) -> tuple[int, int, int]:
        return other["one"]["ts_ms"], other["one"]["_partition"], other["one"]["_offset"]

    same = {name: [o for o in held if o["one"]["record"] == shard["one"]["record"]] for name, held in inside.items()}
    if any(order(other) > order(shard) for other in same[data]):
        return "superseded"
    if shard["kind"] not in TRAINED_KINDS:
        return "not trained on"
    if shard["split"] != "train":
        return "judged on" if shard["split"] == "test" else "held out"
    if data == "new":
        return "taught"
    return "superseded" if same["new"] else "may have taught"  # a job takes a sample of what is replayed


def lines(found: Mapping[str, Sequence[Row]]) -> list[Row]:
    """A trace as one table: a line for each step."""
    table = [
        _line("raw", one["at"], one["origin"], f"{one['record']} for {one['model']}, by {one['submitted_by']}")
        for one in found["raw"]
    ]
    for shard in found["shards"]:
        row = f"{shard['kind']}, {shard['split']}" if shard["kind"] else f"no row ({shard['dropped']})"
        table.append(_line("shard", shard["at"], shard["shard"], f"{row}, from {shard['raw']}"))
    for use in found["uses"]:
        table.append(_line("job", use["at"], use["job"], f"{use['reason']}; {use['data']} data: {use['role']}"))
        if use["candidate"]:
            judged = "not judged yet" if use["passed"] is None else verdict_word(use)
            gone = " (its adapter is deleted)" if use["adapter_deleted"] else ""
            table.append(_line("candidate", None, use["candidate"][:12], f"{judged}: {use['verdict'] or '-'}{gone}"))
        if use["version"]:
            table.append(_line("version", None, use["version"], f"{use['role']}; serves: {use['serves']}"))
    return table


def _line(step: str, at: Any, identity: str | None, what: str) -> Row:
    return {"step": step, "at": at, "id": identity, "what": what}
