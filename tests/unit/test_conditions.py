"""When a model may learn: every condition by itself, at its edge, with its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import to_builtins

from schemas.policy import ModelPolicy
from streams.conditions import HeldRows, Situation, needed, waits_for
from streams.planning import Disagreement

POLICY = ModelPolicy(min_initial_examples=100, min_new_examples=40, cooldown_s=60.0, max_jobs_per_day=3)
NOW = 1_763_700_000_000
READY = Situation(
    champion=1, new_examples=40, job_in_flight="", last_job_ms=NOW - 60_000, jobs_last_day=2, base_known=True,
    recent=HeldRows(50, 20), older=HeldRows(71, 5),
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
    assert set(waits_for(worst, POLICY, NOW)) == {"new examples", "cooldown", "budget", "running job", "test rows", "base"}


def test_the_first_job_has_its_own_measure_and_no_cooldown() -> None:
    first = replace(READY, champion=0, new_examples=100, last_job_ms=0, jobs_last_day=0)
    assert needed(first, POLICY) == 100 and needed(READY, POLICY) == 40
    assert waits_for(first, POLICY, 30_000) == {}, "the clock may be young; a job that never was needs no rest"


def test_what_was_void_waits_for_no_more_than_its_turn() -> None:
    worst = Situation(champion=1, new_examples=0, job_in_flight="", last_job_ms=NOW, jobs_last_day=9, base_known=True)
    assert waits_for(worst, POLICY, NOW, earned=True) == {}
    assert set(waits_for(replace(worst, job_in_flight="job-1", base_known=False), POLICY, NOW, earned=True)) == {"running job", "base"}


@pytest.mark.parametrize(
    ("champion", "recent", "older", "better", "said"),
    [
        (1, HeldRows(49, 20), HeldRows(500, 90), True, "49 of 50 needed, of 20 of 20 people"),
        (1, HeldRows(50, 19), HeldRows(500, 90), True, "50 of 50 needed, of 19 of 20 people"),
        (0, HeldRows(49, 30), HeldRows(0, 0), True, "so far"),
        (0, HeldRows(50, 20), HeldRows(0, 0), True, ""),
        (1, HeldRows(0, 0), HeldRows(500, 90), False, ""),
        (1, HeldRows(60, 30), HeldRows(0, 0), False, "60 test rows of 30 people: 61 test rows missing"),
        (1, HeldRows(200, 10), HeldRows(0, 0), False, "rows of 10 more people missing"),
    ],
)
def test_no_job_is_asked_for_whose_candidate_cannot_be_judged(
    champion: int, recent: HeldRows, older: HeldRows, better: bool, said: str
) -> None:
    found = waits_for(replace(READY, champion=champion, recent=recent, older=older, new_examples=100), POLICY, NOW, better=better)
    assert (found.keys() == {"test rows"} and said in found["test rows"]) if said else found == {}


def test_who_waits_rather_than_widens_needs_more() -> None:
    situation = replace(READY, recent=HeldRows(300, 60))
    assert waits_for(situation, POLICY, NOW) == {}
    wait = ModelPolicy(**{**to_builtins(POLICY), "small_data": "wait"})
    assert "missing" in waits_for(situation, wait, NOW)["test rows"]


def test_models_that_disagree_more_need_more_test_rows() -> None:
    """As the last verdict found it; 71 rows are enough for a quarter, and the margin that so few can show."""
    wide = replace(READY, last=Disagreement(0.5))
    assert "test rows" in waits_for(wide, POLICY, NOW) and "test rows" not in waits_for(READY, POLICY, NOW)
    assert waits_for(replace(wide, recent=HeldRows(150, 40), older=HeldRows(150, 40)), POLICY, NOW) == {}
