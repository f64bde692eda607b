"""A life as a file: who asks what, who says what of which answers and how late, what changes and breaks when, the policy.

`tests/lives/README.md` says what each table holds.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from schemas.topics import DAY_MS


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many questions of one kind a day, from one day to another; `answer` is what is right ("" = its name)."""

    name: str
    per_day: float
    from_day: int = 0
    until_day: int = 1_000_000
    answer: str = ""


class Opinion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said of a share of the answers: `metric` is correct | demonstration, `of` all | right | wrong answers;
    `sampled` is the tag by which the app says how it chose them."""

    metric: str = "correct"
    share: float = 1.0
    of: str = "all"
    late_days: float = 0.0
    sampled: str = ""


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `day` on the right answer to an intent is another."""

    day: int
    intent: str
    answer: str


class Happening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault or a command: hold | resume | request | bad_job | fail_jobs | store_away | clickhouse_lost | erase | base.

    It lasts so many `days`, where it lasts.
    """

    day: int
    what: str
    days: int = 1


class Life(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module. `subjects`: how many different people ask (0 = each question another's). `one_person` is the share
    of all questions that one of them asks. `one_person_wrong`: of whatever they are told, they say that
    it is wrong. `context` is a system prompt; {name} and {date} in it vary. `bad_jobs` is
    the share of jobs that come out bad by plan."""

    days: int
    intents: list[Intent]
    opinions: list[Opinion] = msgspec.field(default_factory=lambda: [Opinion("correct", sampled="all"), Opinion("demonstration", sampled="all")])
    changes: list[Change] = []
    happenings: list[Happening] = []
    policy: dict[str, Any] = {}
    subjects: int = 0
    one_person: float = 0.0
    one_person_wrong: bool = False
    context: str = ""
    bad_jobs: float = 0.1
    name: str = ""


def load(path: Path) -> Life:
    """Raises `msgspec.ValidationError`, `tomllib.TOMLDecodeError`."""
    return msgspec.convert({"name": path.stem, **tomllib.loads(path.read_text())}, Life)


@dataclass(frozen=True)
class Question:
    """A question as it is asked, by whom and when (Unix ms), and what is right on that day."""

    text: str
    intent: str
    right: str
    subject: str
    at_ms: int


_COMMON = ["please", "can", "you", "help", "me", "with", "my", "the", "a", "i", "have", "about", "is", "it", "today", "now", "thanks", "where", "how", "when", "could"]


@dataclass
class Asking:
    """Makes the questions of each day; the same seed, the same questions."""

    life: Life
    seed: int
    began_ms: int
    _words: dict[str, list[str]] = field(default_factory=dict)

    def words(self, intent: str) -> list[str]:
        """The words that tell of an intent, some of them shared with others."""
        if intent not in self._words:
            dice = random.Random(f"words/{intent}")
            mine = ["".join(dice.choices("bcdfghklmnprst", k=2)) + dice.choice("aeiou") + dice.choice("lnrst") + str(dice.randrange(9))
                    for _ in range(24)]  # fmt: skip
            self._words[intent] = mine + [f"shared{dice.randrange(40)}" for _ in range(12)]
        return self._words[intent]

    def day(self, day: int) -> list[Question]:
        dice = random.Random(f"{self.seed}/{day}")
        asked = []
        for intent in self.life.intents:
            if not intent.from_day <= day < intent.until_day:
                continue
            count = int(intent.per_day) + (dice.random() < intent.per_day % 1)
            for _ in range(count):
                text = " ".join(dice.sample(_COMMON, 4) + dice.choices(self.words(intent.name), k=4))
                at_ms = self.began_ms + day * DAY_MS + dice.randrange(DAY_MS // 2)
                asked.append(Question(text, intent.name, self.right(intent, day), self._subject(dice), at_ms))
        return sorted(asked, key=lambda one: one.at_ms)

    def _subject(self, dice: random.Random) -> str:
        if dice.random() < self.life.one_person:
            return "the-one"
        return f"person-{dice.randrange(self.life.subjects)}" if self.life.subjects else f"person-{dice.getrandbits(48):x}"

    def right(self, intent: Intent, day: int) -> str:
        changed = [one for one in self.life.changes if one.intent == intent.name and one.day <= day]
        return max(changed, key=lambda one: one.day).answer if changed else intent.answer or intent.name
