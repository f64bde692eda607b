"""What asks for a job, when it has been answered, and which job would answer it. Pure.

Triggers stand side by side; one job may answer several. A job goes on from the version that serves, or begins anew from
the base, on all there is. Where something asks for the latter the former is not started: it would be superseded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.events import TriggerOpened
from schemas.identity import content_hash
from schemas.policy import ModelPolicy, must_be_better
from schemas.topics import DAY_MS
from streams.conduct.ledger import Job, Trigger
from streams.conduct.situation import End, Facts, Recovery
from streams.planning import LEAST_UNITS

# Which goes first where one trainer has several to choose from, and whose rule holds where a job answers several.
PRIORITY = ("initial", "drift", "person", "erasure", "base", "volume", "age")
# Of a drift that is over: so many answers since, of as many people as any judgement needs, and surely above its
# threshold.
RECOVERED_ANSWERS = 100


@dataclass(frozen=True)
class Closing:
    """Why a trigger asks no more (`TriggerClosed`)."""

    because: str
    reason: str
    job_id: str = ""


@dataclass(frozen=True)
class Attempt:
    """A job that may be asked for: the triggers that it answers, and the one by whose rule its candidate is judged.

    `void_before` counts the jobs for the same that ended void in a row.
    """

    lead: Trigger
    answers: tuple[Trigger, ...]
    from_base: bool
    void_before: int = 0

    @property
    def reason(self) -> str:
        return self.lead.kind

    @property
    def changed_at(self) -> int:
        return self.lead.said.changed_at

    @property
    def better(self) -> bool:
        """Whether its candidate must be better than what serves, not only no worse."""
        return must_be_better(self.lead.kind, self.lead.said.accept)


def trigger_id(model: str, kind: str, *cause: object) -> str:
    """The same for the same cause, however often it is seen."""
    return "trigger-" + content_hash(model, kind, *map(str, cause))


def asked_for(facts: Facts, policy: ModelPolicy, now_ms: int) -> Iterator[TriggerOpened]:
    """The triggers that follow from how things stand, each with the number 0: whether it was opened before is the
    ledger's to know. One that a person closed is not opened again while the same version serves."""
    champion = facts.champion

    def opened(kind: str, reason: str, *cause: object) -> TriggerOpened:
        identity = trigger_id(facts.model, kind, facts.epoch, *cause)
        return TriggerOpened(
            model=facts.model, trigger_id=identity, ordinal=0, kind=kind, reason=reason,
            version=champion.version if champion else 0, actor="conduct",
        )

    if champion is None:
        if facts.new:
            yield opened("initial", "nothing that was trained serves yet")
        return
    if "volume" in policy.triggers and facts.new_examples() >= (least := volume_needed(facts, policy)):
        yield opened("volume", f"{least:,} or more new examples since version {champion.version} learned")
    age_days = (now_ms - facts.since_ms) / DAY_MS
    if "age" in policy.triggers and age_days >= policy.max_age_days:
        yield opened("age", f"version {champion.version} has served for {age_days:.0f} days")
    if "erasure" in policy.triggers and champion.erasures:
        people = "one who was" if len(champion.erasures) == 1 else f"{len(champion.erasures)} who were"
        yield opened("erasure", f"version {champion.version} learned from {people} forgotten since")
    if "base" in policy.triggers and facts.base is not None and facts.base.digest != champion.base_digest:
        reason = f"the settings name base {policy.base}; version {champion.version} is on {champion.base}"
        yield opened("base", reason, facts.base.digest)


def yet_to_come(facts: Facts, policy: ModelPolicy) -> dict[str, str]:
    """What would open a trigger of its own accord, and how far that is; for whoever asks why nothing does."""
    champion = facts.champion
    if champion is None:
        return {"data": "nothing was submitted yet that could be learned"} if not facts.new else {}
    found = {}
    if "volume" in policy.triggers:
        had, least = facts.new_examples(), volume_needed(facts, policy)
        found["new examples"] = f"{had:,} of {least:,} since version {champion.version} learned"
    if "age" in policy.triggers:
        old_ms = facts.since_ms + round(policy.max_age_days * DAY_MS)
        found["age"] = f"version {champion.version} is old on {datetime.fromtimestamp(old_ms / 1000, UTC):%Y-%m-%d}"
    if "drift" in policy.triggers:
        found["drift"] = "none was found"
    return found


def volume_needed(facts: Facts, policy: ModelPolicy) -> int:
    """New examples at which a version is trained on for their number alone."""
    return max(policy.min_new_examples, facts.learned_from // 2)


def begins_anew(trigger: Trigger) -> bool:
    """Whether only a model that is trained from the base answers it."""
    return trigger.kind in ("initial", "erasure", "base") or trigger.said.from_base


def over(trigger: Trigger, facts: Facts, policy: ModelPolicy, jobs: Mapping[str, Job]) -> Closing | None:
    """Why a trigger is to be closed, None while it goes on asking. (What a drift's recovery says: `recovered`.)"""
    champion = facts.champion
    job = jobs.get(champion.job_id) if champion else None
    by_job = job is not None and trigger.id in job.said.answers
    serves = f"version {champion.version} serves" if champion else "the base serves"
    if trigger.kind == "initial":
        done = champion is not None
    elif trigger.kind == "erasure":
        done = champion is None or not champion.erasures
    elif trigger.kind == "base":
        done = champion is None or facts.base is None or facts.base.digest == champion.base_digest
    elif trigger.said.from_base:
        done = by_job
    else:
        # A person may have been quicker than what has landed; what a drift noticed had.
        known = trigger.kind == "drift" or facts.since_ms > trigger.opened_ms
        done = known and (champion.version if champion else 0) != trigger.said.version
    if done:
        return Closing("answered", serves, job.id) if by_job and job else Closing("superseded", serves)
    if trigger.kind not in (*policy.triggers, "initial", "person"):
        return Closing("superseded", f"the settings name no trigger {trigger.kind!r} any more")
    return None


def recovered(recovery: Recovery | None, threshold: float) -> Closing | None:
    """Whether the answers since a drift show that there is none, or none any more."""
    if recovery is None or recovery.answers < RECOVERED_ANSWERS or recovery.people < LEAST_UNITS:
        return None
    if recovery.low <= threshold:
        return None
    said = f"{recovery.answers} answers of {recovery.people} people"
    share = f"{recovery.quality:.3f} right (at least {recovery.low:.3f})"
    return Closing("recovered", f"{share} of {said} since, over the threshold of {threshold:.3f}")


def attempts(triggers: Sequence[Trigger], jobs: Sequence[Job], ends: Mapping[str, End]) -> list[Attempt]:
    """The jobs that these open triggers may become, the one to start first; at most one of them is started.

    A job that ended void is asked for again before anything else.
    """
    anew = _ordered(one for one in triggers if begins_anew(one))
    onward = _ordered(one for one in triggers if not begins_anew(one))
    drifts = [one for one in onward if one.kind == "drift"]
    found = [Attempt(lead, tuple(triggers), True) for lead in ([*drifts, *anew] if anew else [])]
    # What is open beside a drift waits for what the drift waits for, unless a person asks.
    leads = [one for one in onward if one.kind in ("drift", "person")] if drifts else onward
    found += [Attempt(lead, tuple(onward), False) for lead in leads]
    last = jobs[-1] if jobs else None
    if last is None or ends.get(last.id, End()).outcome != "void":
        return found
    again = [one for one in found if one.lead.id in last.said.answers and one.from_base == last.from_base]
    again.sort(key=lambda one: one.reason != last.said.reason)
    if not again:
        return found
    return [Attempt(again[0].lead, again[0].answers, again[0].from_base, last.said.void_before + 1)]


def _ordered(triggers: Iterator[Trigger]) -> list[Trigger]:
    return sorted(triggers, key=lambda one: (PRIORITY.index(one.kind), one.said.ordinal))
