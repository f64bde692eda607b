"""When a model may learn: a pure decision over what is known, with what it still waits for in words."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.policy import ModelPolicy

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Situation:
    """What stands about one model. Times are Unix time in ms; 0 = never. Jobs that were void count for nothing."""

    champion: int
    new_examples: int
    job_in_flight: str
    last_job_ms: int
    jobs_last_day: int
    base_known: bool


def needed(situation: Situation, policy: ModelPolicy) -> int:
    """New training examples that the next job asks for."""
    return policy.min_new_examples if situation.champion else policy.min_initial_examples


def waits_for(
    situation: Situation, policy: ModelPolicy, now_ms: int, *, needs_new: bool = True, earned: bool = False
) -> dict[str, str]:
    """The unmet conditions of a job, each with its numbers; empty = it may start.

    `earned`: it has been let start before, and was void.
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
    if not situation.base_known:
        unmet["base"] = f"{policy.base} is not registered yet"
    return unmet
