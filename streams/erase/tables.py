"""Taking a subject's rows out of ClickHouse, and the parts that still hold them off the disk."""

from __future__ import annotations

import time

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.events import ShardSet
from schemas.landing import DATABASE, table_name
from schemas.personal import PERSON_FIELDS
from schemas.topics import TOPICS
from streams.clickhouse import KEYS_PER_STATEMENT, UNLOGGED, in_chunks, rows

# Tables with a person's words: their columns that name somebody, and that of the inference, which alone leads to
# feedback without a subject.
PERSONAL = [
    (table_name(event), [name for name in PERSON_FIELDS if name in event.__struct_fields__],
     "inference_id" if "inference_id" in event.__struct_fields__ else "")
    for topic in TOPICS if topic.personal and topic.name != "subjects.erasures"
    for event in topic.events
]  # fmt: skip


def inferences_of(client: Client, subject_id: str) -> set[str]:
    """The ids of all answers that the subject was ever given, also of those that the topic keeps no longer."""
    found = client.query(
        f"SELECT DISTINCT inference_id FROM {DATABASE}.inference_served WHERE subject_id = {{subject:String}}",
        parameters={"subject": subject_id}, settings=UNLOGGED,
    )
    return {row[0] for row in found.result_rows}


def jobs_under_way(client: Client) -> list[tuple[str, ShardSet | None, ShardSet | None]]:
    """Jobs that have neither ended nor a candidate, with the sets of shards that they were given."""
    found = client.query(
        f"SELECT job_id, new_data, replay_data FROM {DATABASE}.job_requested FINAL "
        f"WHERE job_id NOT IN (SELECT job_id FROM {DATABASE}.job_ended)"
    )
    read = msgspec.json.Decoder(ShardSet | None).decode
    return [(job, read(new), read(replay)) for job, new, replay in found.result_rows]


def delete_rows(client: Client, subject_id: str, inferences: set[str], timeout_s: float = 300.0) -> None:
    """Return once no row of the subject is left, nor any file that held one. Raises `TimeoutError`."""
    for table, persons, inference in PERSONAL:
        theirs = " OR ".join(f"{name} = {{subject:String}}" for name in persons)
        if inference:
            theirs += f" OR (inference_id != '' AND {inference} IN {{inferences:Array(String)}})"
        for some in list(in_chunks(sorted(inferences) if inference else [], KEYS_PER_STATEMENT)) or [[]]:
            client.command(
                f"ALTER TABLE {DATABASE}.{table} DELETE WHERE {theirs}",
                parameters={"subject": subject_id, "inferences": some}, settings={"mutations_sync": 2, **UNLOGGED},
            )
        # A table keeps the text of its last statement of this kind: let that be one that names nobody.
        client.command(f"ALTER TABLE {DATABASE}.{table} DELETE WHERE _offset < 0", settings={"mutations_sync": 2})
    _wait_for_old_parts(client, timeout_s)
    _wait_for_statements(client, timeout_s)


def _wait_for_old_parts(client: Client, timeout_s: float) -> None:
    """Parts that a mutation or a merge replaced lie on the disk until a cleaner comes by."""
    deadline = time.monotonic() + timeout_s
    names = [table for table, *_ in PERSONAL]
    since = rows(client, "SELECT now() AS now")[0]["now"]
    while True:
        old = rows(
            client,
            "SELECT count() AS n FROM system.parts WHERE database = {database:String} AND NOT active "
            "AND table IN {tables:Array(String)} AND remove_time <= {since:DateTime}",
            database=DATABASE, tables=names, since=since,
        )
        if not old[0]["n"]:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{old[0]['n']} replaced parts of {', '.join(names)} are still on disk")
        time.sleep(0.5)


def _wait_for_statements(client: Client, timeout_s: float) -> None:
    """The text of a finished deletion is kept in a file until a cleaner comes by, too."""
    deadline = time.monotonic() + timeout_s
    asked = (
        "SELECT count() AS n FROM system.mutations WHERE database = {database:String} "
        "AND position(command, 'subject_id') > 0"
    )
    while rows(client, asked, database=DATABASE)[0]["n"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the deletions' own text is still on disk after {timeout_s:.0f} s")
        time.sleep(0.5)
