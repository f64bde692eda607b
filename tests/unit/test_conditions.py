"""When a model may learn: every condition by itself, at its edge, with its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.policy import ModelPolicy
from streams.conditions import Situation, needed, waits_for

POLICY = ModelPolicy(min_initial_examples=100, min_new_examples=40, cooldown_s=60.0, max_jobs_per_day=3)
NOW = 1_763_700_000_000
READY = Situation(
    champion=1, new_examples=40, job_in_flight="", last_job_ms=NOW - 60_000, jobs_last_day=2, base_known=True
)


def test_a_job_that_has_earned_its_start_waits_for_nothing() -> None:
    assert waits_for(READY, POLICY, NOW) == {}


@pytest.mark.parametrize(
    ("change", "unmet"),
    [
        ({"new_examples": 39}, {"new examples": "39 of 40 committed in shards"}),
        ({"champion": 0}, {"new examples": "40 of 100 committed in shards"}),
        ({"last_job_ms": NOW - 59_000}, {"cooldown": "1 s left"}),
        ({"jobs_last_day": 3}, {"budget": "3 of 3 jobs in 24 h used"}),
        ({"job_in_flight": "job-1"}, {"running job": "job-1"}),
        ({"base_known": False}, {"base": "pydoc-4m is not registered yet"}),
    ],
)
def test_each_condition_by_itself(change: dict[str, int], unmet: dict[str, str]) -> None:
    assert waits_for(replace(READY, **change), POLICY, NOW) == unmet  # type: ignore[arg-type]


def test_everything_that_is_unmet_is_said_at_once() -> None:
    worst = Situation(
        champion=0, new_examples=0, job_in_flight="job-1", last_job_ms=NOW, jobs_last_day=9, base_known=False
    )
    assert set(waits_for(worst, POLICY, NOW)) == {"new examples", "cooldown", "budget", "running job", "base"}


def test_the_first_job_has_its_own_measure_and_no_cooldown() -> None:
    first = replace(READY, champion=0, new_examples=100, last_job_ms=0, jobs_last_day=0)
    assert needed(first, POLICY) == 100 and needed(READY, POLICY) == 40
    assert waits_for(first, POLICY, 30_000) == {}, "the clock may be young; a job that never was needs no rest"


def test_what_was_void_waits_for_no_more_than_its_turn() -> None:
    worst = Situation(champion=1, new_examples=0, job_in_flight="", last_job_ms=NOW, jobs_last_day=9, base_known=True)
    assert waits_for(worst, POLICY, NOW, earned=True) == {}
    assert set(waits_for(replace(worst, job_in_flight="job-1", base_known=False), POLICY, NOW, earned=True)) == {"running job", "base"}
