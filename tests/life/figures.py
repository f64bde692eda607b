"""What a life comes to, by the truth that the bench alone holds.

Q(v, day) is the true share right of version v over all questions of that day; Q° that of the same learner trained every
night on right answers to everything asked so far; Q⁻ that of the version of before a change, left alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.life.learner import Weights, train
from tests.life.plan import Question
from tests.life.world import Event, World

NIGHTLY_REPLAY = 400
AHEAD_DAYS, WORSE, BETTER, GAP = 14, 0.02, 0.05, 0.05
LOST_BY_CHANGE = 0.10


def quality(weights: Weights, questions: Sequence[Question]) -> float:
    answers = weights.answer([one.text for one in questions])
    return float(np.mean([answer == one.right for answer, one in zip(answers, questions, strict=True)])) if questions else 0.0


@dataclass
class Diary:
    """What was asked each day, what served at its end, and how well the nightly learner did by then."""

    questions: list[list[Question]] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    q: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    waits: list[dict[str, str]] = field(default_factory=list)
    jobs_open: list[bool] = field(default_factory=list)


class Nightly:
    """The learner that is told everything."""

    def __init__(self, seed: int) -> None:
        self.weights, self._past = Weights(), list[Question]()
        self._dice, self._rng = random.Random(f"{seed}/nightly"), np.random.default_rng(seed)
        self._right: dict[str, str] = {}

    def night(self, asked: Sequence[Question]) -> None:
        self._right.update({one.intent: one.right for one in asked})
        some = [*asked, *self._dice.sample(self._past, min(len(self._past), NIGHTLY_REPLAY))]
        self._past += asked
        if some:
            answers = [self._right[one.intent] for one in some]
            self.weights = train(self.weights, [one.text for one in some], answers, self._rng, epochs=4)


@dataclass(frozen=True)
class Life:
    """A life's figures; None where it says nothing of one."""

    recovered: list[float]
    promotions: int
    wrong: int
    wrong_that_stayed: int
    judged_better: int
    missed: int
    stalled_days: int
    jobs: dict[str, int]
    false_jobs: int
    rollbacks: int
    last_waits: dict[str, str]


def keep(diary: Diary, world: World, nightly: Nightly, under_way: bool) -> None:
    """The day that has just passed."""
    diary.questions.append(world.questions)
    diary.served.append(world.champion)
    diary.q.append(quality(world.weights[world.champion], world.questions))
    diary.best.append(quality(nightly.weights, world.questions))
    diary.waits.append(world.told())
    diary.jobs_open.append(under_way)
    nightly.night(world.questions)


def ahead(diary: Diary, day: int) -> list[Question]:
    return [one for asked in diary.questions[day : day + AHEAD_DAYS] for one in asked]


def figures(world: World, diary: Diary, changes: Sequence[int]) -> Life:
    promotions, wrong, stayed = _promotions(world, diary)
    better, missed = _missed(world, diary)
    jobs: dict[str, int] = {}
    for event in world.events:
        if event.what == "job":
            jobs[event.about["reason"]] = jobs.get(event.about["reason"], 0) + 1
    expected = {"initial", "age", "volume"}
    return Life(
        recovered=[share for day in changes if (share := _recovered(world, diary, day, changes)) is not None],
        promotions=promotions, wrong=wrong, wrong_that_stayed=stayed, judged_better=better, missed=missed,
        stalled_days=_stalled(diary), jobs=jobs,
        false_jobs=sum(count for reason, count in jobs.items() if reason not in expected) if not changes else 0,
        rollbacks=sum(e.what == "decision" and e.about["decision"] == "rolled-back" for e in world.events),
        last_waits=world.waits,
    )


def _recovered(world: World, diary: Diary, day: int, changes: Sequence[int]) -> float | None:
    """Mean of (Q − Q⁻)/(Q° − Q⁻) from a week after the asked-for rows can have come to the next change.

    They can have come when `min_new_examples` answers were given since; a change where Q⁻ loses under 10 points, or that
    comes too late in the life, does not count.
    """
    if day >= len(diary.served) or not diary.served[day - 1]:
        return None
    needed, at = world.policy.min_new_examples / max(0.05, 1 - world.policy.test_share), day
    said = 0.0
    while at < len(diary.questions) and said < needed:
        said += len(diary.questions[at]) * max((one.share for one in world.life.opinions if one.metric == "demonstration"), default=0)
        at += 1
    end = min([one for one in changes if one > day] + [len(diary.questions)])
    days = range(at + 7, end)
    if len(days) < 5:
        return None
    old = world.weights[diary.served[day - 1]]
    before = [quality(old, diary.questions[d]) for d in days]
    lost = np.mean([diary.best[d] for d in days]) - np.mean(before)
    if lost < LOST_BY_CHANGE:
        return None
    return float((np.mean([diary.q[d] for d in days]) - np.mean(before)) / lost)


def _promotions(world: World, diary: Diary) -> tuple[int, int, int]:
    """Promotions over an adapter, those that made it worse by over 2 points, and those by over 5 that stayed a month."""
    count = wrong = stayed = 0
    serving = ""
    for event in world.events:
        if event.what != "decision" or event.about["decision"] not in ("promoted", "rolled-back"):
            continue
        new = event.about["digest"] or world.digest_of(event.about["version"])
        if event.about["decision"] == "promoted" and serving:
            asked = ahead(diary, event.day + 1)
            if len(asked) >= 20:
                count += 1
                loss = quality(world.weights[serving], asked) - quality(world.weights[new], asked)
                wrong += loss > WORSE
                stayed += loss > 0.05 and new in diary.served[event.day + 30 : event.day + 31]
        serving = new
    return count, wrong, stayed


def _missed(world: World, diary: Diary) -> tuple[int, int]:
    """Candidates that were judged and are at least 5 points better on the next 14 days' questions; of these the refused."""
    better = missed = 0
    trained = {event.about["job"]: event.about["digest"] for event in world.events if event.what == "trained"}
    for event in world.events:
        if event.what == "decision" and event.about["decision"] in ("promoted", "refused") and event.about["job"] in trained:
            asked = ahead(diary, event.day + 1)
            serving = diary.served[event.day - 1] if event.day else ""
            if len(asked) >= 20 and quality(world.weights[trained[event.about["job"]]], asked) >= quality(world.weights[serving], asked) + BETTER:
                better += 1
                missed += event.about["decision"] == "refused"
    return better, missed


def _stalled(diary: Diary) -> int:
    """Days after the first fourteen in a row on which the nightly learner is 5 points better, no job is under way and
    nothing is named that a job waits for."""
    stalled = run = 0
    for best, q, under_way, waits in zip(diary.best, diary.q, diary.jobs_open, diary.waits, strict=True):
        run = run + 1 if best - q >= GAP and not under_way else 0
        stalled += run >= 14 and not waits
    return stalled


def happened(events: Sequence[Event], what: str) -> list[Event]:
    return [event for event in events if event.what == what]
