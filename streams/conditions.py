"""When a model may learn: a pure decision over what is known, with what it still waits for in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.policy import ModelPolicy
from streams.planning import FIRST, LEAST_UNITS, Disagreement, plan

DAY_MS = 86_400_000


@dataclass(frozen=True)
class HeldRows:
    """Test rows, and whose they are: at most so many units, for a unit counts once for each shard that it is in."""

    rows: int
    units: int

    def __add__(self, other: HeldRows) -> HeldRows:
        return HeldRows(self.rows + other.rows, self.units + other.units)


@dataclass(frozen=True)
class Situation:
    """What stands about one model. Times are Unix time in ms; 0 = never. Jobs that were void count for nothing.

    `recent` and `older` are the test rows said since what the job is about, and before; `last` is what the last verdict
    found.
    """

    champion: int
    new_examples: int
    job_in_flight: str
    last_job_ms: int
    jobs_last_day: int
    base_known: bool
    recent: HeldRows = field(default_factory=lambda: HeldRows(0, 0))
    older: HeldRows = field(default_factory=lambda: HeldRows(0, 0))
    last: Disagreement = FIRST


def needed(situation: Situation, policy: ModelPolicy) -> int:
    """New training examples that the next job asks for."""
    return policy.min_new_examples if situation.champion else policy.min_initial_examples


def waits_for(
    situation: Situation, policy: ModelPolicy, now_ms: int, *, needs_new: bool = True, earned: bool = False,
    better: bool = True,
) -> dict[str, str]:  # fmt: skip
    """The unmet conditions of a job, each with its numbers; empty = it may start.

    `earned`: it has been let start before, and was void. `better`: its candidate must be better on recent rows, not
    only no worse on all.
    """
    unmet: dict[str, str] = {}
    least = needed(situation, policy)
    if needs_new and not earned and situation.new_examples < least:
        unmet["new examples"] = f"{situation.new_examples} of {least} committed in shards"
    cooled_ms = situation.last_job_ms + int(policy.cooldown_s * 1000)
    if situation.last_job_ms and now_ms < cooled_ms and not earned:
        unmet["cooldown"] = f"{(cooled_ms - now_ms) / 1000:.0f} s left"
    if situation.jobs_last_day >= policy.max_jobs_per_day and not earned:
        unmet["budget"] = f"{situation.jobs_last_day} of {policy.max_jobs_per_day} jobs in 24 h used"
    if situation.job_in_flight:
        unmet["running job"] = situation.job_in_flight
    if (missing := missing_tests(situation, policy, better)) and not earned:
        unmet["test rows"] = missing
    if not situation.base_known:
        unmet["base"] = f"{policy.base} is not registered yet"
    return unmet


def missing_tests(situation: Situation, policy: ModelPolicy, better: bool) -> str:
    """What the gate would lack, in words; "" for nothing: no job is asked for whose candidate cannot be judged."""
    recent, everything = situation.recent, situation.recent + situation.older
    if better:
        rows, people = policy.min_holdout_examples - recent.rows, LEAST_UNITS - recent.units
        if rows > 0 or people > 0:
            said = "since the change or the last training" if situation.champion else "so far"
            return (
                f"{recent.rows} of {policy.min_holdout_examples} needed, of {recent.units} of {LEAST_UNITS} people, "
                f"{said}; about one row in {_one_in(policy)} is one"
            )
    if not situation.champion:
        return ""
    planned = plan(
        everything.rows, everything.units, last=situation.last, margin=policy.max_retention_loss,
        confidence=policy.confidence, minimum_n=policy.min_holdout_examples, small_data=policy.small_data,
    )
    return "" if planned.enough else planned.words


def _one_in(policy: ModelPolicy) -> str:
    return f"{1 / policy.test_share:.0f}" if policy.test_share else "none (test_share is 0)"
