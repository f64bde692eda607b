"""When a job may start: what it still waits for, each thing in words with its numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.policy import ModelPolicy
from schemas.topics import DAY_MS
from streams.conduct.ledger import Job
from streams.conduct.situation import End, Facts
from streams.conduct.triggers import Attempt
from streams.planning import LEAST_UNITS, plan

# After a refusal a job waits for this many times the new examples that the refused one had.
GROWTH = 1.5
# After a failure: a minute, then four times as long each time, at most a day.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 86_400.0
# An old model learns again from so small a share of what a drift would wait for.
AGE_SHARE = 0.1


@dataclass(frozen=True)
class TrainerBudget:
    """What the trainer may do in 24 hours over all models; 0 = any number. Money is in whatever unit its price is."""

    jobs_per_day: int = 0
    hours_per_day: float = 0.0
    money_per_day: float = 0.0
    price_per_hour: float = 0.0
    trainers: int = 1


@dataclass(frozen=True)
class History:
    """The jobs of one model in their order, and what became of those that ended."""

    jobs: Sequence[Job]
    ends: Mapping[str, End]

    def end(self, job: Job) -> End:
        return self.ends.get(job.id, End())

    def in_flight(self, facts: Facts) -> Job | None:
        """The job that is under way. One that was promoted is, until its version has landed as well."""
        if self.jobs and self.end(self.jobs[-1]).outcome == "promoted" and self.jobs[-1].id not in facts.numbered:
            return self.jobs[-1]
        return next((job for job in reversed(self.jobs) if not self.end(job).outcome), None)

    def counted(self) -> list[Job]:
        """The jobs that count for cooldown and budget: those that were void or never begun do not."""
        return [job for job in self.jobs if self.end(job).outcome not in ("void", "cancelled")]

    def failures(self) -> list[Job]:
        """The jobs that failed, from the last one back to the last one that did not."""
        found: list[Job] = []
        for job in reversed(self.jobs):
            if self.end(job).outcome != "failed":
                break
            found.append(job)
        return found


def waits_for(
    attempt: Attempt, facts: Facts, policy: ModelPolicy, history: History, now_ms: int, *, held: str = "",
) -> dict[str, str]:  # fmt: skip
    """The unmet conditions of a job, each with its numbers; empty = it may start, when the trainer is free."""
    unmet: dict[str, str] = {}
    earned = attempt.void_before > 0
    if held:
        unmet["a person"] = f"held: {held}; `tuneloop models resume {facts.model}` lets it go on"
    if not earned:
        have, least = facts.new_examples(attempt.changed_at), least_examples(attempt, facts, policy, history)
        if have < least:
            unmet["new examples"] = f"{have:,} of {least:,} committed in shards{_after(attempt, facts, history)}"
        unmet |= _pauses(policy, history, now_ms)
        if missing := missing_tests(attempt, facts, policy):
            unmet["test rows"] = missing
    if running := history.in_flight(facts):
        unmet["running job"] = running.id
    if facts.base is None:
        unmet["base"] = f"{policy.base} is not registered yet: `tuneloop base add {policy.base} PATH`"
    return unmet


def _pauses(policy: ModelPolicy, history: History, now_ms: int) -> dict[str, str]:
    unmet: dict[str, str] = {}
    counted = history.counted()
    rested_ms = counted[-1].asked_ms + int(policy.cooldown_s * 1000) if counted else 0
    if now_ms < rested_ms:
        unmet["cooldown"] = f"until {clock(rested_ms)}"
    today = [job for job in counted if job.asked_ms > now_ms - DAY_MS]
    if len(today) >= policy.max_jobs_per_day:
        free_ms = today[-policy.max_jobs_per_day].asked_ms + DAY_MS
        used = f"{len(today)} of {policy.max_jobs_per_day} jobs in 24 h used"
        unmet["budget"] = f"{used}; the next after {clock(free_ms)}"
    if failed := history.failures():
        last = history.end(failed[0])
        again_ms = last.at_ms + round(1000 * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 4 ** (len(failed) - 1)))
        if now_ms < again_ms:
            times = "once" if len(failed) == 1 else f"{len(failed)} times in a row"
            unmet["pause"] = f"failed {times} ({last.reason}): again at {clock(again_ms)}"
    return unmet


def least_examples(attempt: Attempt, facts: Facts, policy: ModelPolicy, history: History) -> int:
    """New examples that a job asks for."""
    anew = attempt.from_base and attempt.reason != "drift"  # all data is new to it
    least = {
        "initial": policy.min_initial_examples, "age": math.ceil(AGE_SHARE * policy.min_new_examples),
    }.get(attempt.reason, 0 if anew else policy.min_new_examples)  # fmt: skip
    refused = _refused(attempt, facts, history)
    if refused is None:
        return least
    had = refused.said.new_examples
    # Of none, half again as many is none: it would be asked for without end.
    return max(least, math.ceil(GROWTH * had), had + math.ceil((GROWTH - 1) * policy.min_new_examples))


def _refused(attempt: Attempt, facts: Facts, history: History) -> Job | None:
    """The last job for the same that was refused, or whose version was rolled back: counted from the same moment, for
    the version that serves."""
    parent = 0 if attempt.from_base or facts.champion is None else facts.champion.version
    for job in reversed(history.jobs):
        undone = job.id in facts.rolled_back
        if not undone and (history.end(job).outcome != "refused" or job.asked_ms < facts.since_ms):
            continue
        if job.said.parent_version == parent and job.said.changed_at == attempt.changed_at:
            return job
    return None


def _after(attempt: Attempt, facts: Facts, history: History) -> str:
    refused = _refused(attempt, facts, history)
    if refused is None:
        return ""
    how = "was rolled back" if refused.id in facts.rolled_back else "was refused"
    return f"; {refused.id} {how} with {refused.said.new_examples:,}"


def missing_tests(attempt: Attempt, facts: Facts, policy: ModelPolicy) -> str:
    """What the gate would lack, in words; "" for nothing: no job is asked for whose candidate cannot be judged."""
    recent, older = facts.tests(attempt.changed_at)
    everything = recent + older
    if attempt.better:
        rows, people = policy.min_holdout_examples - recent.rows, LEAST_UNITS - recent.units
        if rows > 0 or people > 0:
            said = "since the change or the last training" if facts.champion else "so far"
            return (
                f"{recent.rows} of {policy.min_holdout_examples} needed, of {recent.units} of {LEAST_UNITS} people, "
                f"{said}; about one row in {_one_in(policy)} is one"
            )
    if facts.champion is None:
        return ""
    planned = plan(
        everything.rows, everything.units, last=facts.last, margin=policy.max_retention_loss,
        confidence=policy.confidence, minimum_n=policy.min_holdout_examples, small_data=policy.small_data,
    )
    return "" if planned.enough else planned.words


def _one_in(policy: ModelPolicy) -> str:
    return f"{1 / policy.test_share:.0f}" if policy.test_share else "none (test_share is 0)"


def trainer_waits(
    budget: TrainerBudget, jobs: Sequence[Job], ends: Mapping[str, End], now_ms: int
) -> dict[str, str]:  # fmt: skip
    """What keeps the trainer from taking one more job, of whichever model: it is busy, or the day's budget is spent."""
    unmet: dict[str, str] = {}
    busy = [job for job in jobs if not ends.get(job.id, End()).trained]
    if len(busy) >= budget.trainers:
        unmet["trainer"] = f"busy with {busy[0].id} of {busy[0].said.model}"
    today = [job for job in jobs if job.asked_ms > now_ms - DAY_MS]
    if budget.jobs_per_day and len(today) >= budget.jobs_per_day:
        unmet["trainer's jobs"] = f"{len(today)} of {budget.jobs_per_day} in 24 h used"
    hours = sum(ends[job.id].seconds for job in today if job.id in ends) / 3600
    if budget.hours_per_day and hours >= budget.hours_per_day:
        unmet["trainer's hours"] = f"{hours:.1f} of {budget.hours_per_day:g} in 24 h used"
    money = hours * budget.price_per_hour
    if budget.money_per_day and money >= budget.money_per_day:
        unmet["trainer's money"] = f"{money:.2f} of {budget.money_per_day:g} in 24 h spent"
    return unmet


def clock(ms: int) -> str:
    """A moment as people read it."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
