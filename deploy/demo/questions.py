"""The demo's questions: the built-in desk, or any folder with `train.csv` and `test.csv`, split by a fixed seed.

Pure but for reading the files. Every question is used once: imported as a curated example, asked live, or
kept for the final check. Which of a category's rows become curated training rows and which curated hold-out
rows follows from the product's own split (`schemas.identity.split_of`), not from a choice made here.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from schemas.identity import normalise, question_of, split_key, split_of
from schemas.policy import ModelPolicy

DESK = Path(__file__).parent / "desk"
OLD_INTENTS = ("order_status", "return_item", "refund_missing", "change_address", "invoice_copy", "cancel_order")
NEW_INTENTS = ("gift_card", "warranty_repair", "subscription_pause", "delete_account", "price_match", "login_problem")
SEED = 20
# The splits that the demo's system makes must be known here before it starts, and the same in every run. What lies in
# its data directory is as public as this secret; nobody else's data may come there. With this number the desk has 174
# curated hold-out rows, where others have 157 to 180.
SECRET = "the demo's questions are no secret, nor is this: 27"
SMALLEST_CATEGORY = 90
# Of the questions after the shift so many are about new intents. With half of them a gain may be what chance explains;
# with three quarters a job learns of so few old ones that it forgets.
NEW_SHARE = 0.6


class DataError(ValueError):
    """A data folder cannot be played; the message says what it lacks."""


@dataclass(frozen=True)
class Question:
    text: str
    intent: str
    old: bool


@dataclass(frozen=True)
class Plan:
    """How the questions are used. `after` answers are kept back for the new version."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    curated: tuple[Question, ...]
    before: tuple[Question, ...]
    drifted: tuple[Question, ...]
    after: tuple[Question, ...]
    heldout: tuple[Question, ...]

    def counts(self) -> dict[str, int]:
        return {
            "curated": len(self.curated), "before": len(self.before), "drifted": len(self.drifted),
            "after": len(self.after), "held out": len(self.heldout),
        }


@dataclass(frozen=True)
class Sizes:
    """How many questions each use gets; `curated_*` are per old category."""

    curated_train: int
    curated_test: int
    before: int
    after: int
    heldout: int = 0


DESK_SIZES = Sizes(curated_train=60, curated_test=30, before=105, after=200, heldout=12)
FOLDER_SIZES = Sizes(curated_train=60, curated_test=16, before=120, after=200)


def desk_plan(policy: ModelPolicy) -> Plan:
    """The built-in desk: 12 intents, the last rows of a fixed shuffle are held out."""
    rows: dict[str, list[str]] = {}
    heldout: dict[str, list[str]] = {}
    for intent in OLD_INTENTS + NEW_INTENTS:
        texts = (DESK / f"{intent}.txt").read_text().splitlines()
        random.Random(f"{SEED}/{intent}").shuffle(texts)
        heldout[intent], rows[intent] = texts[: DESK_SIZES.heldout], texts[DESK_SIZES.heldout :]
    return _plan("the built-in desk", OLD_INTENTS, NEW_INTENTS, rows, heldout, policy, DESK_SIZES)


def folder_plan(folder: Path, old: int, new: int, policy: ModelPolicy) -> Plan:
    """`train.csv` and `test.csv` of a folder: the first `old` and next `new` categories by sha256 of their name.

    Raises `DataError`.
    """
    train, test = _read(folder / "train.csv"), _read(folder / "test.csv")
    names = [name for name, texts in train.items() if len(texts) >= SMALLEST_CATEGORY]
    names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(names) < old + new:
        raise DataError(
            f"{folder} has {len(names)} categories with {SMALLEST_CATEGORY} or more training rows; "
            f"OLD={old} NEW={new} need {old + new}"
        )
    chosen = names[: old + new]
    known = {normalise(text) for texts in train.values() for text in texts}
    rows = {}
    for name in chosen:
        rows[name] = sorted({normalise(text): text for text in train[name]}.values())
        random.Random(f"{SEED}/{name}").shuffle(rows[name])
    heldout = {name: [text for text in test.get(name, []) if normalise(text) not in known] for name in chosen}
    return _plan(folder.name, tuple(chosen[:old]), tuple(chosen[old:]), rows, heldout, policy, FOLDER_SIZES)


def _read(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise DataError(f"{path} is missing: a data folder has train.csv and test.csv with columns text,category")
    rows: dict[str, list[str]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        if not {"text", "category"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path}: expected columns text,category, got {','.join(reader.fieldnames or ())}")
        for row in reader:
            if row["text"].strip():
                rows[row["category"]].append(row["text"].strip())
    return rows


def _plan(
    name: str, old: tuple[str, ...], new: tuple[str, ...], rows: dict[str, list[str]],
    heldout: dict[str, list[str]], policy: ModelPolicy, sizes: Sizes,
) -> Plan:
    curated: list[Question] = []
    old_live: list[Question] = []
    for intent in old:
        mine, rest = _curate([Question(text, intent, True) for text in rows[intent]], policy, sizes)
        curated += mine
        old_live += rest
    new_live = [Question(text, intent, False) for intent in new for text in rows[intent]]
    dice = random.Random(SEED)
    for pool in (curated, old_live, new_live):
        dice.shuffle(pool)
    before, old_left = old_live[: sizes.before], old_live[sizes.before :]
    after = _mixed(old_left, new_live, sizes.after, dice)
    drifted = _mixed(old_left, new_live, len(old_left) + len(new_live), dice)
    kept = [Question(text, intent, intent in old) for intent in old + new for text in heldout[intent]]
    return Plan(name, old, new, tuple(curated), tuple(before), drifted, after, tuple(kept))


def _curate(rows: list[Question], policy: ModelPolicy, sizes: Sizes) -> tuple[list[Question], list[Question]]:
    """The curated rows of one category (training rows and hold-out rows) and the rest, which is asked live."""
    room = {"train": sizes.curated_train, "test": sizes.curated_test}
    curated, rest = [], []
    for row in rows:
        split = split_of_row(row, policy)
        if room[split] > 0:
            room[split] -= 1
            curated.append(row)
        else:
            rest.append(row)
    return curated, rest


def split_of_row(row: Question, policy: ModelPolicy) -> str:
    """The split that the demo's system puts an imported row into."""
    unit = f"question-{question_of(row.text)}"  # nobody says whose an imported row is
    return split_of(unit, split_key(SECRET.encode()), policy.validation_share, policy.test_share)


def _mixed(old: list[Question], new: list[Question], count: int, dice: random.Random) -> tuple[Question, ...]:
    """Take `count` questions, or as many as there are, NEW_SHARE of them about new intents, shuffled; pools shrink."""
    count = int(min(count, len(new) / NEW_SHARE, len(old) / (1 - NEW_SHARE)))
    of_new = round(count * NEW_SHARE)
    taken = [old.pop() for _ in range(count - of_new)] + [new.pop() for _ in range(of_new)]
    dice.shuffle(taken)
    return tuple(taken)
