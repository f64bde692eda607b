"""The loop as it was lived: no request lost, every count the same on both sides, one job for one drift, recovery."""

from __future__ import annotations

import pytest

from deploy.demo import figures
from deploy.demo.stage import MODEL
from tests.e2e.system import System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_no_request_failed_through_two_jobs_and_two_swaps(system: System) -> None:
    assert system.desk.failures == []
    assert system.desk.requests > len(system.desk.scored), "the background client asked nothing"


def test_answers_came_during_the_job_the_judging_and_the_swap(system: System) -> None:
    at = figures.moments(system.clickhouse, MODEL)
    for begin, end in (("job_started", "candidate"), ("candidate", "verdict"), ("verdict", "second_served")):
        n = system.value(
            "SELECT count() FROM tuneloop.inference_served FINAL "
            "WHERE toUnixTimestamp64Milli(ts) BETWEEN {low:Int64} AND {high:Int64}",
            low=at[begin] - 500, high=at[end] + 500,
        )
        assert n > 0, f"no answer between {begin} and {end}"


def test_clickhouse_counts_what_the_client_counted(system: System) -> None:
    system.settled()
    desk = system.desk
    assert system.value("SELECT count() FROM tuneloop.inference_served FINAL") == desk.requests
    assert system.value("SELECT uniqExact(inference_id) FROM tuneloop.inference_served") == desk.requests
    given = system.rows("SELECT metric_name, count() AS n FROM tuneloop.feedback_given FINAL GROUP BY metric_name")
    assert {row["metric_name"]: row["n"] for row in given} == {
        "correct": len(desk.scored), "demonstration": len(desk.scored),
    }  # fmt: skip
    theirs = system.rows("SELECT inference_id, version, correct FROM tuneloop.scored_answers")
    assert {(row["inference_id"], row["version"], bool(row["correct"])) for row in theirs} == {
        (scored.inference_id, scored.version, scored.correct) for scored in desk.scored
    }
    assert len(theirs) == len(desk.scored)
    daily = system.rows("SELECT sum(requests) AS n, sum(answers_with_feedback) AS said FROM tuneloop.usage_daily")
    assert (daily[0]["n"], daily[0]["said"]) == (desk.requests, len(desk.scored))


def test_one_drift_made_one_job_and_a_version_one(system: System) -> None:
    drifts = system.topic("monitor.drift")
    jobs = system.topic("training.jobs")
    triggers = system.topic("training.triggers", "TriggerOpened")
    assert len(drifts) == 1
    assert [seen.body["kind"] for seen in triggers] == [job.body["reason"] for job in jobs] == ["initial", "drift"]
    assert triggers[1].causation == drifts[0].id and jobs[1].causation == triggers[1].id
    ended = system.topic("training.progress", "JobEnded")
    assert [(seen.body["job_id"], seen.body["outcome"]) for seen in ended] == [
        (job.body["job_id"], "succeeded") for job in jobs
    ]
    assert len(system.topic("models.candidates", "CandidateTrained")) == len(system.topic("models.verdicts", "VerdictReached")) == 2


def test_the_drift_waited_for_its_examples_and_said_so(system: System) -> None:
    job = next(seen for seen in system.topic("training.jobs") if seen.body["reason"] == "drift")
    said = system.topic("training.progress", "JobDeferred")
    assert {seen.body["trigger_id"] for seen in said} <= {one.body["trigger_id"] for one in system.topic("training.triggers")}
    waits = [seen for seen in said if seen.body["trigger_id"] in job.body["answers"]]
    least = system.settings.models[MODEL].min_new_examples
    assert all(seen.body["new_examples"] < least for seen in waits if "new examples" in seen.body["waits_for"])
    assert all(f"of {least}" in seen.body["waits_for"].get("new examples", f"of {least}") for seen in waits)


def test_every_job_gave_signs_of_life_and_the_time_left(system: System) -> None:
    for job in system.topic("training.jobs"):
        mine = [seen for seen in system.topic("training.progress", "JobProgressed")
                if seen.body["job_id"] == job.body["job_id"]]  # fmt: skip
        training = [seen.body for seen in mine if seen.body["phase"] == "training"]
        assert {seen.headers["ce_source"] for seen in mine} == {"tuneloop/work", "tuneloop/gate"}
        assert training and training[-1]["step"] == training[-1]["steps"]
        assert all(body["time_left_s"] is not None and body["loss"] is not None for body in training)


def test_quality_fell_with_the_new_questions_and_came_back(system: System) -> None:
    live = figures.live_accuracy(system.clickhouse, MODEL, system.stage.shift_ms, len(system.plan.after))
    before, drifted, after = live["before"], live["drifted"], live["after"]
    assert min(before["n"], drifted["n"], after["n"]) >= 50
    assert drifted["high"] < before["low"], "the shift did not lower quality"
    assert after["low"] > drifted["high"], "the second version is not surely better on the same mix"
    assert after["value"] > drifted["value"] + 0.1


def test_the_second_version_answers_new_questions_that_the_first_could_not(system: System) -> None:
    by_version = {
        version: [s.correct for s in system.desk.scored if s.version == version and not s.old] for version in (1, 2)
    }
    assert sum(by_version[1]) == 0, "an answer of version 1 to intents it was never taught"
    assert sum(by_version[2]) > len(by_version[2]) / 4
