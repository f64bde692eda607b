"""kill -9 of the broker, then of everything: each comes back, and nothing is lost or doubled.

The data plane is asked after each kill; what was asked is looked for once more at the very end. The others are killed
one by one among the long tests; the fault run of the integration tests kills each of the consumers' loops as well.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from deploy.demo.stage import MODEL
from deploy.local import supervise
from deploy.local.supervised import State, read_snapshot, read_spec
from schemas.events import CandidateTrained, JobRequested
from schemas.landing import table_name
from schemas.topics import TOPICS
from streams import kafka
from streams.registry import find
from tests.broker import fresh, publish, until
from tests.e2e.steady import Steady
from tests.e2e.system import Seen, System, read_topic

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# What others lean on comes last, so that a process which another's death broke is not mended by its own.
ORDER = ("prepare", "join-feedback", "monitor", "serve", "clickhouse", "kafka")
ASIDE = ("conduct", "work", "gate", "register", "erase")
BACK_WITHIN_S = 120.0
# What a client notices while a process is away; nothing where a name is missing.
NOTICED = {"serve": ("/v1/chat/completions", "/v1/feedback"), "kafka": ("/v1/feedback",)}


@dataclass(frozen=True)
class Asked:
    """One question with its feedback, by ids that nothing else has."""

    inference_id: str
    teaches: str


@pytest.fixture(scope="module")
def asked() -> Iterator[list[Asked]]:
    yield []


def ask(system: System) -> Asked:
    """A question, a score and the right answer, all acknowledged."""
    text = f"question {fresh('number')} about an invoice"
    with httpx.Client(base_url=system.where.http, timeout=30, trust_env=False) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "user": fresh("customer")}
        done = client.post("/v1/chat/completions", json=body)
        assert done.status_code == 200, done.text
        identity = done.json()["id"]
        for metric, value in (("correct", True), ("demonstration", "invoice_copy")):
            said = {"inference_id": identity, "metric_name": metric, "value": value}
            reply = client.post("/v1/feedback", json=said)
            assert reply.status_code == 200, reply.text
    return Asked(identity, text)


# How often each thing of one `Asked` stands in ClickHouse.
_COUNTS = """
SELECT
    (SELECT count() FROM tuneloop.inference_served FINAL WHERE inference_id = {id:String}) AS answers,
    (SELECT count() FROM tuneloop.feedback_given FINAL WHERE inference_id = {id:String}) AS said,
    (SELECT count() FROM tuneloop.scored_answers WHERE inference_id = {id:String}) AS scored,
    (SELECT uniqExact(record_id) FROM tuneloop.record_submitted WHERE inference_id = {id:String}) AS records
"""


def landed(system: System, one: Asked) -> bool:
    (row,) = system.rows(_COUNTS, id=one.inference_id)
    return row == {"answers": 1, "said": 2, "scored": 1, "records": 2}


def in_shards(system: System, one: Asked) -> int:
    """How many rows of committed shards teach this question's answer."""
    found = 0
    latest = "SELECT path, digest FROM tuneloop.shard_written FINAL ORDER BY _offset DESC LIMIT 1 BY shard_id LIMIT 60"
    for shard in system.rows(latest):
        table = pq.read_table(io.BytesIO(system.store.get_bytes(shard["path"], shard["digest"])))
        found += sum(
            row["inference_id"] == one.inference_id and row["kind"] == "sft" and row["completion"] == "invoice_copy"
            for row in table.select(["inference_id", "kind", "completion"]).to_pylist()
        )
    return found


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def back(system: System, name: str, before: State) -> State:
    """The process's state once its supervisor has it ready again."""

    def again() -> State | None:
        now = system.states()[name]
        return now if now.status == "ready" and now.pid != before.pid else None

    try:
        found: State = until(again, BACK_WITHIN_S, f"{name} to be ready again")
    except AssertionError:
        last = supervise.log_path(system.settings.data, name).read_text(errors="replace").splitlines()[-40:]
        pytest.fail("\n".join([f"{name} is not ready again: {system.states()[name]}", *last]))
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name != "kafka")) for name in ORDER])
def test_a_killed_process_comes_back_and_the_chain_works(system: System, asked: list[Asked], name: str) -> None:
    before = system.states()[name]
    with steady(system) as client:
        time.sleep(0.5)
        began = time.monotonic()
        kill(psutil.Process(before.pid))
        after = back(system, name, before)
        one = until_asked(system)
        ended = time.monotonic()
        asked.append(one)
        time.sleep(0.5)
    assert after.restarts == before.restarts + 1
    # Whoever cannot go on without it may end as well, and is started again.
    until(lambda: all(s.status == "ready" for s in system.states().values()), BACK_WITHIN_S, "every process to be ready")
    noticed = [f for f in client.failures if f.what in NOTICED.get(name, ()) and began - 30 < f.at < ended]
    assert [failure for failure in client.failures if failure not in noticed] == []
    arrived(system, one, f"a question asked after {name} came back")


@pytest.mark.long
def test_what_stands_aside_is_killed_in_turn_and_nobody_else_notices(system: System, asked: list[Asked]) -> None:
    """Processes that no answer passes through: while they start again the chain works, and then each is back."""
    before = {name: system.states()[name] for name in ASIDE}
    with steady(system) as client:
        for name in ASIDE:
            kill(psutil.Process(before[name].pid))
            one = ask(system)
            asked.append(one)
            until(lambda name=name: system.states()[name].pid != before[name].pid, 10, f"{name}'s end to be seen")
        arrived(system, one, f"a question asked without {', '.join(ASIDE)}")
        after = {name: back(system, name, before[name]) for name in ASIDE}
    assert {name: after[name].restarts - before[name].restarts for name in ASIDE} == dict.fromkeys(ASIDE, 1)
    assert client.failures == []
    now = system.states()
    assert all(now[name] == state for name, state in after.items()), "they stayed up"
    assert all(state.status == "ready" for state in now.values())


def steady(system: System) -> Steady:
    return Steady(system.where.http, tuple(question.text for question in system.plan.curated[:20]), rating=0.5)


def arrived(system: System, one: Asked, what: str) -> None:
    """Return once it is in ClickHouse and what it taught in a shard."""
    until(lambda: landed(system, one), 40, f"{what} to be in ClickHouse")
    until(lambda: in_shards(system, one) == 1, 40, f"what was taught by {what} to be in a shard")


def until_asked(system: System, timeout_s: float = 30.0) -> Asked:
    """Ask once the endpoint and the broker take it."""

    def attempt() -> Asked | None:
        try:
            return ask(system)
        except (httpx.HTTPError, AssertionError):
            return None

    one: Asked = until(attempt, timeout_s, "a question to be answered and its feedback to be taken")
    return one


@pytest.mark.long
def test_a_killed_replica_is_replaced_by_ray(system: System, asked: list[Asked]) -> None:
    replicas = [p for p in system.processes("serve") if "ServeReplica" in " ".join(p.cmdline())]
    assert len(replicas) == 1, [" ".join(p.cmdline())[:60] for p in system.processes("serve")]
    before = system.states()["serve"]
    kill(replicas[0])

    def replaced() -> bool:
        now = [p for p in system.processes("serve") if "ServeReplica" in " ".join(p.cmdline())]
        return bool(now) and now[0].pid != replicas[0].pid

    until(replaced, BACK_WITHIN_S, "another replica")
    one = until_asked(system, BACK_WITHIN_S)
    asked.append(one)
    assert system.states()["serve"].pid == before.pid, "the replica came back by itself, its process was not restarted"
    until(lambda: landed(system, one), 40, "a question asked of the new replica to be in ClickHouse")


def test_jobs_are_still_taken_judged_and_decided(system: System) -> None:
    """The slow half of the loop, by things that end at once: a job and a candidate that cannot be done."""
    state = system.registered()
    champion = find(state, state.champion)
    assert champion is not None
    common = {"model": MODEL, "base": champion.base, "base_digest": champion.base_digest,
              "base_path": f"bases/{champion.base_digest}", "new_data": champion.new_data}  # fmt: skip
    bad_recipe = JobRequested(job_id=fresh("job"), reason="person", recipe={"witchcraft": 1.0}, **common)
    nowhere = CandidateTrained(
        job_id=fresh("job"), digest="1" * 64, path="adapters/" + "1" * 64, parent_version=2, method="lora",
        examples=1, steps=1, loss=1.0, seconds=1.0, fingerprint=[0.0], **common,
    )  # fmt: skip
    publish(system.where.bootstrap, [kafka.out(event, source="test") for event in (bad_recipe, nowhere)])
    query = "SELECT outcome, reason FROM tuneloop.job_ended FINAL WHERE job_id = {job:String}"
    (ended,) = until(lambda: system.rows(query, job=bad_recipe.job_id), 60, "the end of a job that cannot be done")
    assert ended["outcome"] == "failed" and "witchcraft" in ended["reason"]
    query = "SELECT decision, reason FROM tuneloop.decision_made FINAL WHERE job_id = {job:String}"
    (decided,) = until(lambda: system.rows(query, job=nowhere.job_id), 60, "the decision on a candidate of no files")
    assert decided["decision"] == "refused" and "missing from the store" in decided["reason"]
    said = system.cli("jobs", "request", MODEL)
    assert said.code == 0, said.err
    query = "SELECT waits_for FROM tuneloop.job_deferred FINAL WHERE startsWith(waits_for, '{\"new examples\"')"
    asked_at = "AND ts > now() - INTERVAL 1 MINUTE"
    until(lambda: system.rows(f"{query} {asked_at}"), 60, "the conductor to say what the job waits for")


def undeleted(records: list[Seen]) -> list[Seen]:
    """Records whose key was not deleted after them."""
    deleted = {(seen.partition, seen.key): seen.offset for seen in records if not seen.headers and not seen.body}
    return [seen for seen in records if seen.offset > deleted.get((seen.partition, seen.key), -1)]


def differing(system: System) -> dict[str, tuple[int, int, int]]:
    """Tables that do not hold what their topic holds: rows that are missing, that are doubled, that are too many.

    A compacted topic may have dropped what a later record under the same key replaced; its table keeps both.
    """
    found = {}
    for topic in TOPICS:
        names = {event.__name__: table_name(event) for event in topic.events}
        said: dict[str, set[tuple[int, int]]] = {table: set() for table in names.values()}
        for seen in undeleted(read_topic(system.where.bootstrap, topic.name, deletions=True)):
            said[names[seen.headers.get("ce_type") or topic.events[0].__name__]].add((seen.partition, seen.offset))
        for table, records in said.items():
            rows = system.rows(f"SELECT _partition, _offset FROM tuneloop.{table} FINAL")
            landed = {(row["_partition"], row["_offset"]) for row in rows}
            extra = 0 if "compact" in topic.cleanup else len(landed - records)
            wrong = len(records - landed), len(rows) - len(landed), extra
            if any(wrong):
                found[table] = wrong
    return found


def test_after_a_kill_of_everything_a_second_up_resumes_and_no_event_is_lost(
    system: System, asked: list[Asked]
) -> None:
    served = system.registered()
    snapshot, spec = read_snapshot(system.settings.data), read_spec(system.settings.data)
    assert snapshot is not None and spec is not None
    asked += [ask(system) for _ in range(3)]
    for process in [psutil.Process(snapshot.supervisor_pid), *system.processes()]:
        try:
            kill(process)
        except ProcessLookupError:  # it died of the death of another
            continue
    until(lambda: not system.processes(), 20, "everything to be dead")
    assert not supervise.is_running(system.settings.data)
    assert system.cli("status").code != 0
    said = system.cli("up", timeout_s=240)
    assert said.code == 0, said.err
    now = system.registered()
    assert (now.champion, now.epoch) == (served.champion, served.epoch)
    assert [v.digest for v in now.versions] == [v.digest for v in served.versions]
    ready = httpx.get(f"{system.where.http}/readyz", trust_env=False).json()
    assert ready["serving"] == {MODEL: f"{MODEL}@{served.champion}"}
    asked.append(until_asked(system))
    for one in asked:
        until(lambda one=one: landed(system, one), 60, f"{one} to be in ClickHouse once")
    until(lambda: differing(system) == {}, 40, lambda: f"every landing table to hold what its topic holds: {differing(system)}")


def test_everything_taught_meanwhile_is_in_one_shard_once(system: System, asked: list[Asked]) -> None:
    assert len(asked) >= 4
    for one in asked:
        until(lambda one=one: in_shards(system, one) >= 1, 40, f"{one} to be in a shard")
        assert in_shards(system, one) == 1, one


def test_no_record_was_refused_on_the_way(system: System) -> None:
    for group in ("prepare", "join-feedback", "monitor", "conduct", "work", "gate", "register"):
        assert system.topic(f"dead.{group}") == [], group


def test_no_alarm_and_no_job_came_of_it(system: System) -> None:
    assert len(system.topic("monitor.drift")) == 1
    conducted = [job for job in system.topic("training.jobs") if job.headers["ce_source"] == "tuneloop/conduct"]
    assert [job.body["reason"] for job in conducted] == ["initial", "drift"]


def test_supervisor_state_is_gone_with_its_supervisor_not_before(system: System) -> None:
    assert supervise.is_running(system.settings.data)
    assert {state.status for state in system.states().values()} == {"ready"}
    spec = read_spec(system.settings.data)
    assert spec is not None and {process.name for process in spec.processes} == {*ORDER, *ASIDE}
