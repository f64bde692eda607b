"""The causal chain of a drift, a job, a candidate, a verdict or a version, from ClickHouse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.clickhouse import rows

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

# Each event that can stand in a chain, with what it says in a few words.
_STEPS = (
    ("drift_detected", "concat(metric, ' fell from ', toString(round(baseline, 3)), ' to ',"
     " toString(round(current, 3)), ' after ', toString(answers), ' answers')", "drift_id"),
    ("trigger_opened", "concat(kind, ': ', reason)", "trigger_id"),
    ("job_deferred", "concat('waits for ', waits_for)", "trigger_id"),
    ("training_requested", "concat('a person asked: ', reason)", "ce_id"),
    ("job_requested", "concat('reason: ', reason)", "job_id"),
    ("job_ended", "concat(outcome, ' in ', toString(round(seconds)), ' s ', reason)", "job_id"),
    ("candidate_trained", "concat(toString(examples), ' examples, loss ', toString(round(loss, 3)))", "job_id"),
    ("verdict_reached", "concat(multiIf(passed, 'passed: ', void, 'void: ', 'refused: '), reason)", "job_id"),
    ("decision_made", "concat(decision, ' ', model, '@', toString(version), ': ', reason,"
     " if(deletes = '[]', '', ' (its adapter is deleted)'))", "job_id"),
    ("trigger_closed", "concat(because, ': ', reason)", "trigger_id"),
    ("model_state_changed", "concat('serves ', model, '@', toString(champion))", "ce_subject"),
)  # fmt: skip


def chain(client: Client, identity: str) -> list[dict[str, Any]]:
    """Every event of the chain that `identity` belongs to, oldest first; empty where it is unknown."""
    correlation = _correlation(client, identity) if identity else ""  # what has no id of some kind has this one
    if not correlation:
        return []
    parts = [
        f"SELECT ts AS at, '{table}' AS event, toString({what}) AS what, toString({subject}) AS about, ce_id "
        f"FROM tuneloop.{table} FINAL WHERE {_condition(table)}"
        for table, what, subject in _STEPS
    ]
    # Around the union: behind it, ORDER BY would belong to its last SELECT alone.
    query = f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY at"
    found = rows(client, query, correlation=correlation)
    requests = rows(
        client,
        "SELECT max(l.promoted_at) AS at, 'requests' AS event, concat(toString(l.requests), ' requests served by ', "
        "l.model, '@', toString(l.version)) AS what, concat(l.model, '@', toString(l.version)) AS about, '' AS ce_id "
        "FROM tuneloop.lineage AS l WHERE l.job_id IN "
        "(SELECT job_id FROM tuneloop.job_requested WHERE correlation_id = {correlation:String}) "
        "GROUP BY l.requests, l.model, l.version",
        correlation=correlation,
    )
    return found + requests


def _condition(table: str) -> str:
    same = "correlation_id = {correlation:String}"
    if table == "job_deferred":  # said again and again while a drift waits: the last word is enough
        return f"{same} AND _offset IN (SELECT max(_offset) FROM tuneloop.{table} GROUP BY trigger_id)"
    if table == "model_state_changed":  # later notes of live quality repeat the state without a new cause
        return f"{same} AND _offset IN (SELECT min(_offset) FROM tuneloop.{table} GROUP BY model, epoch)"
    return f"({same} OR ce_id = {{correlation:String}})"


def _correlation(client: Client, identity: str) -> str:
    """The correlation id of the event that carries `identity` in any of its names."""
    for table, _, subject in _STEPS:
        names = {"ce_id", "ce_subject", subject}
        if table in ("candidate_trained", "verdict_reached", "decision_made"):
            names.add("digest")
        where = " OR ".join(f"{name} = {{identity:String}}" for name in sorted(names))
        found = rows(
            client,
            f"SELECT if(correlation_id = '', ce_id, correlation_id) AS correlation FROM tuneloop.{table} FINAL "
            f"WHERE {where} ORDER BY ts LIMIT 1",
            identity=identity,
        )
        if found:
            return str(found[0]["correlation"])
    return ""
