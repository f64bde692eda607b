"""When a job may start: every condition by itself, at its edge, with its numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import to_builtins

from schemas.events import BaseRegistered, JobRequested, ShardRef, TriggerOpened, Version
from schemas.policy import ModelPolicy
from streams.conduct.conditions import History, waits_for
from streams.conduct.ledger import Job, Trigger
from streams.conduct.situation import End, Facts, HeldRows, KnownShard, held
from streams.conduct.triggers import Attempt
from streams.planning import Disagreement
from tests.examples import example

POLICY = ModelPolicy(min_initial_examples=100, min_new_examples=40, cooldown_s=60.0, max_jobs_per_day=3)
NOW = 1_763_700_000_000
BASE, CHAMPION = example(BaseRegistered, "b"), example(Version, "support", version=1)
RECENT, OLDER = HeldRows(50, 20), HeldRows(71, 5)


def shard(examples: int, tests: HeldRows, undated: int = 0) -> KnownShard:
    return KnownShard(ShardRef(shard_id="s", path="shards/s", digest="0" * 64, rows=9), "support", examples, NOW, tests, undated)


def facts(examples: int = 40, recent: HeldRows = RECENT, older: HeldRows = OLDER, **more: Any) -> Facts:
    numbered = frozenset(f"job-{n}" for n in range(9))
    fields = {"champion": CHAMPION, "base": BASE, "since_ms": NOW, "numbered": numbered, **more}
    return Facts(model="support", new=[shard(examples, recent)], old=[shard(0, older)], **fields)


def attempt(kind: str = "person", accept: str = "", void_before: int = 0, from_base: bool = False) -> Attempt:
    said = TriggerOpened(model="support", trigger_id="t", ordinal=1, kind=kind, reason="", version=1, accept=accept)
    trigger = Trigger(said, NOW, "c")
    return Attempt(trigger, (trigger,), from_base, void_before)


def history(*jobs: tuple[int, str]) -> History:
    """Jobs by when they were asked for (s ago) and what became of them."""
    made = [
        Job(example(JobRequested, "support", job_id=f"job-{n}", parent_version=1), NOW - 1000 * ago_s) for n, (ago_s, _) in enumerate(jobs)
    ]
    return History(made, {f"job-{n}": End(outcome, "", NOW - 1000 * ago_s) for n, (ago_s, outcome) in enumerate(jobs)})


QUIET = history((60, "promoted"))


def test_a_job_that_has_earned_its_start_waits_for_nothing() -> None:
    assert waits_for(attempt(), facts(), POLICY, QUIET, NOW) == {}


@pytest.mark.parametrize(
    ("change", "jobs", "unmet"),
    [
        ({"examples": 39}, QUIET, {"new examples": "39 of 40 committed in shards"}),
        ({}, history((59, "promoted")), {"cooldown": "until 2025-11-21 04:40:01 UTC"}),
        (
            {}, history((300, "promoted"), (200, "refused"), (100, "cancelled"), (90, "void"), (61, "promoted")),
            {"budget": "3 of 3 jobs in 24 h used; the next after 2025-11-22 04:35:00 UTC"},
        ),
        ({}, history((60, "")), {"running job": "job-0"}),
        ({"base": None}, QUIET, {"base": "pydoc-4m is not registered yet: `tuneloop base add pydoc-4m PATH`"}),
    ],
)  # fmt: skip
def test_each_condition_by_itself(change: dict[str, Any], jobs: History, unmet: dict[str, str]) -> None:
    assert waits_for(attempt(), facts(**change), POLICY, jobs, NOW) == unmet


def test_everything_that_is_unmet_is_said_at_once() -> None:
    worst = facts(0, HeldRows(0, 0), champion=None, base=None)
    jobs = history((30, "refused"), (20, "refused"), (10, "failed"), (1, ""))
    found = waits_for(attempt("initial"), worst, POLICY, jobs, NOW, held="the audit")
    assert set(found) == {"a person", "new examples", "cooldown", "budget", "test rows", "running job", "base"}


def test_the_first_job_has_its_own_measure_and_no_cooldown() -> None:
    first = facts(100, older=HeldRows(0, 0), champion=None)
    assert waits_for(attempt("initial"), first, POLICY, history(), 30_000) == {}, "a job that never was needs no rest"
    assert waits_for(attempt("initial"), facts(99, champion=None), POLICY, history(), NOW)["new examples"].startswith("99 of 100")


def test_what_was_void_waits_for_no_more_than_its_turn() -> None:
    worst, jobs = facts(0, HeldRows(0, 0)), history(*[(5, "refused")] * 9, (1, "void"))
    assert waits_for(attempt(void_before=1), worst, POLICY, jobs, NOW) == {}
    jobs = history((1, "void"), (0, ""))
    assert set(waits_for(attempt(void_before=1), replace(worst, base=None, _times=[], _sums=[]), POLICY, jobs, NOW)) == {"running job", "base"}


@pytest.mark.parametrize(
    ("first", "recent", "older", "accept", "said"),
    [
        (False, HeldRows(49, 20), HeldRows(500, 90), "", "49 of 50 needed, of 20 of 20 people"),
        (False, HeldRows(50, 19), HeldRows(500, 90), "", "50 of 50 needed, of 19 of 20 people"),
        (True, HeldRows(49, 30), HeldRows(0, 0), "", "so far"),
        (True, HeldRows(50, 20), HeldRows(0, 0), "", ""),
        (False, HeldRows(0, 0), HeldRows(500, 90), "no worse", ""),
        (False, HeldRows(60, 30), HeldRows(0, 0), "no worse", "60 test rows of 30 people: 61 test rows missing"),
        (False, HeldRows(200, 10), HeldRows(0, 0), "no worse", "rows of 10 more people missing"),
    ],
)
def test_no_job_is_asked_for_whose_candidate_cannot_be_judged(
    first: bool, recent: HeldRows, older: HeldRows, accept: str, said: str
) -> None:
    known = facts(100, recent, older, **({"champion": None} if first else {}))
    found = waits_for(attempt(accept=accept), known, POLICY, QUIET, NOW)
    assert (found.keys() == {"test rows"} and said in found["test rows"]) if said else found == {}


def test_who_waits_rather_than_widens_needs_more() -> None:
    known = facts(recent=HeldRows(300, 60))
    assert waits_for(attempt(), known, POLICY, QUIET, NOW) == {}
    wait = ModelPolicy(**{**to_builtins(POLICY), "small_data": "wait"})
    assert "missing" in waits_for(attempt(), known, wait, QUIET, NOW)["test rows"]


def test_models_that_disagree_more_need_more_test_rows() -> None:
    """As the last verdict found it; 71 rows are enough for a quarter, and the margin that so few can show."""
    wide = Disagreement(0.5)
    assert "test rows" in waits_for(attempt(), facts(last=wide), POLICY, QUIET, NOW)
    assert waits_for(attempt(), facts(recent=HeldRows(150, 40), older=HeldRows(150, 40), last=wide), POLICY, QUIET, NOW) == {}


def test_what_has_no_time_is_no_recent_row() -> None:
    shards = [shard(80, HeldRows(60, 30), 50)]
    assert (held(shards), held(shards, dated=True)) == (HeldRows(60, 30), HeldRows(10, 30))


def test_examples_are_counted_since_a_change() -> None:
    shards = [replace(shard(n, HeldRows(0, 0)), ts_ms=n) for n in (3, 1, 2)]
    known = Facts(model="support", new=shards)
    assert [known.new_examples(since) for since in (0, 1, 2, 3)] == [6, 5, 3, 0]
