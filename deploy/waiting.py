"""What each model's loop is at: the triggers that are open, and what their job waits for or how it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streams.clickhouse import rows

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from schemas.policy import ModelPolicy
    from streams.artifacts import ArtifactStore

_OPEN = """
SELECT o.model AS model, o.trigger_id AS trigger, o.kind AS kind, o.ts AS opened_at, o.reason AS reason,
    o.actor AS actor,
    j.job_id AS job, if(j.job_id != '', j.state, '') AS job_state, w.waits_for AS waits_for, w.ts AS said_at
FROM (SELECT * FROM tuneloop.trigger_opened FINAL
      WHERE trigger_id NOT IN (SELECT trigger_id FROM tuneloop.trigger_closed)) AS o
LEFT JOIN
(
    SELECT trigger_id, argMax(job_id, ts) AS job_id, argMax(state, ts) AS state
    FROM
    (
        SELECT arrayJoin(JSONExtract(answers, 'Array(String)')) AS trigger_id, r.job_id AS job_id, r.ts AS ts,
            multiIf(d.decision != '', d.decision, e.outcome NOT IN ('', 'succeeded'), e.outcome,
                    e.outcome = 'succeeded', 'being judged', 'training or queued') AS state
        FROM (SELECT job_id, answers, ts FROM tuneloop.job_requested FINAL) AS r
        LEFT JOIN (SELECT job_id, outcome FROM tuneloop.job_ended FINAL) AS e ON e.job_id = r.job_id
        LEFT JOIN (SELECT job_id, decision FROM tuneloop.decision_made FINAL WHERE job_id != '') AS d
            ON d.job_id = r.job_id
    )
    GROUP BY trigger_id
) AS j ON j.trigger_id = o.trigger_id
LEFT JOIN
(
    SELECT trigger_id, argMax(waits_for, _offset) AS waits_for, max(job_deferred.ts) AS ts
    FROM tuneloop.job_deferred FINAL GROUP BY trigger_id
) AS w ON w.trigger_id = o.trigger_id
ORDER BY o.model, o.ordinal
"""
UNDER_WAY = ("being judged", "training or queued")


def open_triggers(client: Client) -> list[dict[str, Any]]:
    """Every open trigger, with its last job and, where none is under way, what the next one waits for.

    Where several are open it is the most urgent one's that is said. Raises `ClickHouseError`.
    """
    found = rows(client, _OPEN)
    for row in found:
        waits = {} if row["job_state"] in UNDER_WAY else json.loads(row["waits_for"] or "{}")
        row["waits_for"] = "; ".join(f"{what}: {how}" for what, how in waits.items())
        if not row["waits_for"]:
            row["said_at"] = None
    return found


def told(client: Client, models: Mapping[str, ModelPolicy], store: ArtifactStore) -> list[str]:
    """A line for each of these models. Raises `ClickHouseError` and `ArtifactError`."""
    found = open_triggers(client)
    return [
        _line(model, asking) if (asking := [row for row in found if row["model"] == model]) else
        _nothing_asks(client, model, policy, store) for model, policy in models.items()
    ]  # fmt: skip


def _nothing_asks(client: Client, model: str, policy: ModelPolicy, store: ArtifactStore) -> str:
    from streams.conduct.situation import Knowledge
    from streams.conduct.triggers import yet_to_come

    knowledge = Knowledge(client, store)
    knowledge.look()
    coming = yet_to_come(knowledge.facts(model, policy), policy)
    return "; ".join([f"{model}: nothing asks for a job", *(f"{what}: {how}" for what, how in coming.items())])


def _line(model: str, triggers: list[dict[str, Any]]) -> str:
    asks = ", ".join(dict.fromkeys(row["kind"] for row in triggers))
    running = next((row for row in triggers if row["job_state"] in UNDER_WAY), None)
    if running:
        return f"{model}: {asks} asked for {running['job']}, {running['job_state']}"
    waits = next((row["waits_for"] for row in triggers if row["waits_for"]), "") or "its turn"
    return f"{model}: {asks} waits for {waits}"
