"""What one version was made from: base, parents, drift, job, verdict, and its data shard by shard.

Asks ClickHouse and, for the lists of shards, the artifact store. Which versions a record went into is
`deploy.lineage`'s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from schemas.events import ShardRef, Version
from streams.artifacts import ArtifactStore, get_shard_set
from streams.clickhouse import rows

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_DATA = ("new", "replay")
Row = dict[str, Any]


class LineageError(RuntimeError):
    """What was asked for is not known; the message says what to try next."""


@dataclass(frozen=True)
class Family:
    """The versions of one model: what each was trained on from, and which of them answer now."""

    model: str
    serving: frozenset[int] = frozenset()
    parents: Mapping[int, int] = field(default_factory=dict)
    versions: tuple[Version, ...] = ()

    def line(self, version: int) -> list[int]:
        """`version`, its parent and so on; 0 (the base) is left out."""
        found: list[int] = []
        while version and version not in found:
            found.append(version)
            version = self.parents.get(version, 0)
        return found

    def serves(self, version: int) -> str:
        """now, or as which descendants, or no."""
        if version in self.serving:
            return "now"
        heirs = [number for number in sorted(self.serving) if version in self.line(number)]
        return "as " + ", ".join(f"{self.model}@{number}" for number in heirs) if heirs else "no"


def family(client: Client, model: str) -> Family:
    """Every version of `model`; an empty family where it has none yet."""
    state = rows(
        client,
        "SELECT champion, shares, versions FROM tuneloop.model_state_changed FINAL WHERE model = {model:String} "
        "ORDER BY epoch DESC, _offset DESC LIMIT 1",
        model=model,
    )
    if not state:
        return Family(model)
    promoted = rows(
        client,
        "SELECT d.version AS version, j.parent_version AS parent FROM "
        "(SELECT * FROM tuneloop.decision_made FINAL WHERE decision = 'promoted' AND model = {model:String}) AS d "
        "INNER JOIN (SELECT * FROM tuneloop.job_requested FINAL) AS j ON j.job_id = d.job_id",
        model=model,
    )
    shares = json.loads(state[0]["shares"])
    serving = {int(number) for number, share in shares.items() if share > 0} | {state[0]["champion"]}
    versions = msgspec.json.decode(state[0]["versions"], type=list[Version])
    parents = {row["version"]: row["parent"] for row in promoted}
    return Family(model, frozenset(serving), parents, tuple(versions))


def find_version(client: Client, name: str) -> Version:
    """The version that NAME@N names. Raises `LineageError`."""
    model, _, number = name.partition("@")
    known = family(client, model).versions
    for entry in known:
        if str(entry.version) == number:
            return entry
    have = ", ".join(f"{model}@{entry.version}" for entry in known) or "none yet"
    raise LineageError(f"no version {name!r}; of {model!r} there are: {have} (`tuneloop models ls`)")


def shards_of(store: ArtifactStore, entry: Version) -> dict[str, list[ShardRef]]:
    """A version's shards, new and replayed. Raises `ArtifactError`."""
    return {"new": get_shard_set(store, entry.new_data), "replay": get_shard_set(store, entry.replay_data)}


def version_lineage(client: Client, store: ArtifactStore, model: str, entry: Version) -> Row:
    """Everything a version came from. Raises `ArtifactError`."""
    relatives = family(client, model)
    ancestors = [f"{model}@{number}" for number in relatives.line(entry.version)[1:]]
    shards = _shards(client, store, model, entry)
    return {
        "version": f"{model}@{entry.version}", "adapter": entry.digest, "serves": relatives.serves(entry.version),
        "parents": [*ancestors, entry.base], "base": entry.base, "base_digest": entry.base_digest,
        "drift": _drift(client, entry.drift_id), "job": _job(client, entry.job_id),
        "verdict": _verdict(client, entry), "shards": shards, "totals": totals(shards),
    }  # fmt: skip


def _one(client: Client, sql: str, **parameters: Any) -> Row | None:
    found = rows(client, sql, **parameters)
    return found[0] if found else None


def _drift(client: Client, drift_id: str) -> Row | None:
    return _one(
        client,
        "SELECT drift_id, ts AS at, version, metric, baseline, current, answers FROM tuneloop.drift_detected FINAL "
        "WHERE drift_id = {id:String} AND drift_id != ''",
        id=drift_id,
    )


def _job(client: Client, job_id: str) -> Row | None:
    return _one(
        client,
        "SELECT job_id, ts AS at, reason, if(spec = 'null', 'lora', JSONExtractString(spec, 'method')) AS method, "
        "parent_version FROM tuneloop.job_requested FINAL "
        "WHERE job_id = {id:String}",
        id=job_id,
    )


def _verdict(client: Client, entry: Version) -> Row | None:
    found = _one(
        client,
        "SELECT ts AS at, passed, void, reason, champion_version, checks FROM tuneloop.verdict_reached FINAL "
        "WHERE job_id = {job:String} AND digest = {digest:String}",
        job=entry.job_id, digest=entry.digest,
    )
    return {**found, "checks": msgspec.json.decode(found["checks"])} if found else None


def _shards(client: Client, store: ArtifactStore, model: str, entry: Version) -> list[Row]:
    # All of the model's: a version may have thousands, more than a query's parameters can name.
    written = rows(client, "SELECT * FROM tuneloop.shard_written FINAL WHERE model = {model:String} ORDER BY _offset",
                   model=model)
    known = {row["shard_id"]: row for row in written}
    return [
        _shard(data, ref, known.get(ref.shard_id, {}))
        for data, refs in shards_of(store, entry).items()
        for ref in sorted(refs, key=lambda ref: _place(known.get(ref.shard_id, {})))
    ]


def _place(row: Row) -> tuple[str, int, int]:
    return row.get("source_topic", ""), row.get("source_partition", -1), row.get("first_offset", -1)


def _shard(data: str, ref: ShardRef, row: Row) -> Row:
    """One shard; what its event alone knows is None where that has not landed. `digest` is of the bytes that were
    learned from; rows that were `erased` since then are in no file any more."""
    return {
        "data": data, "topic": row.get("source_topic"), "partition": row.get("source_partition"),
        "first_offset": row.get("first_offset"), "last_offset": row.get("last_offset"), "rows": ref.rows,
        "kinds": _counts(row, "rows_by_kind"), "sft_splits": _counts(row, "rows_by_split"), "erased": row.get("erased"),
        "shard": ref.shard_id, "digest": ref.digest,
    }  # fmt: skip


def _counts(row: Row, name: str) -> dict[str, int] | None:
    return msgspec.json.decode(row[name], type=dict[str, int]) if name in row else None


def totals(shards: Sequence[Row]) -> dict[str, Row]:
    """Shards and rows by kind and split, of the new data, of the replayed data and of both."""
    parts = {data: [shard for shard in shards if shard["data"] == data] for data in _DATA}
    return {name: _total(part) for name, part in {**parts, "all": shards}.items()}


def _total(shards: Sequence[Row]) -> Row:
    return {
        "shards": len(shards), "rows": sum(shard["rows"] for shard in shards),
        "kinds": _sum(shard["kinds"] for shard in shards), "sft_splits": _sum(shard["sft_splits"] for shard in shards),
    }  # fmt: skip


def _sum(counts: Iterable[dict[str, int] | None]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count or {})
    return dict(total)


def verdict_word(verdict: Row) -> str:
    return "passed" if verdict["passed"] else "void" if verdict["void"] else "refused"


def facts(found: Row) -> list[Row]:
    """A version's lineage without its shards, as a table of fields."""
    drift, job, verdict = found["drift"], found["job"], found["verdict"]
    fell = "{metric} fell from {baseline:.3f} to {current:.3f}".format(**drift) if drift else ""
    judged = f"{verdict_word(verdict)}: {verdict['reason']}" if verdict else None
    values = {
        "version": found["version"], "serves": found["serves"], "adapter": found["adapter"],
        "from": " ← ".join([found["version"], *found["parents"]]),
        "base": f"{found['base']} ({found['base_digest']})", "drift": f"{drift['drift_id']}: {fell}" if drift else None,
        "job": f"{job['job_id']}, {job['method']}, reason: {job['reason']}" if job else None, "verdict": judged,
    }  # fmt: skip
    return [{"field": name, "value": value} for name, value in values.items()]


def shard_table(found: Row) -> list[Row]:
    """The shards with their totals below."""
    none = dict.fromkeys(found["shards"][0]) if found["shards"] else {}
    table = list(found["shards"])
    for name, total in found["totals"].items():
        values = {key: total[key] for key in ("rows", "kinds", "sft_splits")}
        table.append({**none, **values, "data": name, "shard": f"{total['shards']} shards"})
    return table
