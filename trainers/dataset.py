"""From rows that stand to what a job trains on: nobody too much, no question of a hold-out, replayed rows their share.

Pure. What is left out is counted by reason, and named where it is much of the whole or of a class.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from schemas.policy import ModelPolicy
from streams.prepare.questions import PERIOD_MS
from streams.prepare.shard import FEWEST_SUBJECTS
from trainers.rows import Row, Rows, near_any

# Of a set one unit has at most this share, or that of one in as many units as there are.
MOST_OF_ONE = 0.1
# What is left out for the hold-outs' sake is named beyond these shares of the job's rows, and of a class's.
MOST_LEFT_OUT, MOST_OF_CLASS = 0.1, 0.5


@dataclass(frozen=True)
class TrainingSet:
    """What a job trains on: new rows and replayed ones, in a fixed shuffled order; `left_out` counts rows by reason."""

    rows: tuple[Row, ...]
    new: int
    replayed: int
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def newest_row_ms(self) -> int:
        return max((row.said_ms for row in self.rows), default=0)


def training_set(rows: Rows, policy: ModelPolicy, *, seed: int) -> TrainingSet:
    """Training rows, those of new shards mixed with replayed ones so that these make up `replay_share` of the whole.

    All replayed rows are taken where there are fewer.
    """
    gone = rows.ended()
    taught = [row for row in (*rows.said, *rows.made) if row.split == "train"]
    candidates = [row for row in taught if not (row.dated and row.answer in gone)]
    free = without_tested(candidates, rows, policy.near_duplicate_similarity)
    left_out = Counter({
        "of a class that has ended": len(taught) - len(candidates),
        "question of a hold-out": len(candidates) - len(free),
    })  # fmt: skip
    warnings = _warnings(candidates, free)
    taken = capped(free, policy.max_rows_per_subject)
    left_out["more than one may say"] = len(free) - len(taken)
    fresh = [row for row in taken if row.new]
    asked = {row.fact for row in fresh}
    old = [row for row in taken if not row.new and row.fact not in asked]
    wanted = min(len(old), policy.max_replay_examples)
    if policy.replay_share < 1:
        wanted = min(wanted, round(len(fresh) * policy.replay_share / (1 - policy.replay_share)))
    chooser = random.Random(seed)
    mixed = fresh + chooser.sample(old, wanted)
    chooser.shuffle(mixed)
    return TrainingSet(tuple(mixed), len(fresh), wanted, dict(+left_out), tuple(warnings))


def without_tested(rows: Sequence[Row], all_rows: Rows, similarity: float) -> list[Row]:
    """Rows whose question no hold-out asks, nor a near copy of it; a common question may be trained on and judged.

    Near copies are looked for again, as `Rows.common` does, but of hold-outs that were not opened: those judge no
    verdict on this job, and preparation gave most near copies one name.
    """
    common = all_rows.common(similarity)
    held = [
        row for row in (*all_rows.said, *all_rows.confirmed, *all_rows.mute)
        if row.split != "train" and row.question not in common
    ]  # fmt: skip
    questions, facts = {row.question for row in held}, {row.fact for row in held}
    free = [row for row in rows if row.question in common or not (row.question in questions or row.fact in facts)]
    near = near_any(free, held, similarity)
    return [row for row, alike in zip(free, near.tolist(), strict=True) if not alike or row.question in common]


def capped(rows: Sequence[Row], most_per_period: int) -> list[Row]:
    """Rows with at most so many of one unit said in any 30 days, and no unit with too large a share; the newest stay.

    A made-up row belongs to nobody. The share is a tenth, or 1 / number of units.
    """
    by_unit: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.order, reverse=True):
        taken = by_unit[row.unit]
        if not row.unit or _within(taken, row.said_ms) < most_per_period:
            taken.append(row)
    people = [unit for unit in by_unit if unit]
    most = _most_of_one([len(by_unit[unit]) for unit in people])
    kept = {id(row) for unit, taken in by_unit.items() for row in (taken[:most] if unit else taken)}
    return [row for row in rows if id(row) in kept]


def _within(newer: Sequence[Row], said_ms: int) -> int:
    """How many of these rows, newest first, were said within 30 days after this one."""
    return bisect_right([-row.said_ms for row in newer], -said_ms) - bisect_right(
        [-row.said_ms for row in newer], -(said_ms + PERIOD_MS)
    )


def _most_of_one(counts: Sequence[int]) -> int:
    """The most rows of one unit, where none may have more than its share of what all have then."""
    share = max(MOST_OF_ONE, 1 / max(1, len(counts)))
    ordered = sorted(counts)
    smaller = 0
    for place, count in enumerate(ordered):
        above = len(ordered) - place
        # At a bound b between the last count and this one the set has smaller + b * above rows.
        if share * above < 1:
            bound = int(share * smaller / (1 - share * above))
            if bound < count:
                return max(bound, ordered[place - 1] if place else 1)
        smaller += count
    return ordered[-1] if ordered else 0


def _warnings(before: Sequence[Row], after: Iterable[Row]) -> list[str]:
    """What is said where hold-outs take much away from training."""
    free = list(after)
    warnings = []
    gone = len(before) - len(free)
    if gone > MOST_LEFT_OUT * len(before):
        warnings.append(f"{gone} of {len(before)} training rows ask what a hold-out asks, and are left out")
    classes, left = Counter(row.class_name for row in before), Counter(row.class_name for row in free)
    # What fewer people than those said is somebody's words, no class.
    people = Counter(name for name, _ in {(row.class_name, row.unit) for row in before})
    for name in sorted(name for name in classes if name and people[name] >= FEWEST_SUBJECTS):
        if classes[name] - left[name] > MOST_OF_CLASS * classes[name]:
            lost = classes[name] - left[name]
            warnings.append(f"class {name!r}: {lost} of {classes[name]} training rows ask what a hold-out asks")
    return warnings
