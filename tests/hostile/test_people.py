"""One person who would own the loop: raise a drift, roll a version back, choose the hold-out. None of it works alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Envelope
from schemas.events import PerformanceMeasured, RecordSubmitted
from schemas.identity import split_key, split_of
from schemas.policy import ModelPolicy
from streams.monitor.detector import DetectorSettings, detect
from streams.monitor.intervals import wilson
from streams.monitor.measure import performance_event
from streams.prepare.admit import Admission
from streams.prepare.rules import Prepared, prepare
from tests.ids import SECRET
from trainers.gate.review import MOST_ASKED, surely_worse
from trainers.rows import JudgingRow, Row

POLICY, SETTINGS = ModelPolicy(), DetectorSettings()
Said = tuple[bool, str]


def crowd(n: int, quality: float = 0.93, people: int = 0, seed: int = 7) -> Iterator[Said]:
    """`n` answers, right by `quality`, of `people` people (0 = of another each)."""
    dice = random.Random(f"{seed}/{n}/{people}")
    for number in range(n):
        yield dice.random() < quality, f"person-{dice.randrange(people) if people else (n, number)}"


def between(n: int, every: int, mine: Said, quality: float = 0.95, people: int = 0) -> Iterator[Said]:
    """A crowd's answers, every so many one of somebody's own."""
    for number, said in enumerate(crowd(n, quality, people)):
        yield said
        if number % every == 0:
            yield mine


ATTACKS: dict[str, list[Said]] = {
    "ten wrong in a row": [*crowd(1_100), *[(False, "one")] * 10],
    "a hundred wrong in a row": [*crowd(1_100), *[(False, "one")] * 100],
    "ten thousand wrong in a row": [*crowd(300), *[(False, "one")] * 10_000],
    "a probe that always fails, one answer in five": [*crowd(300), *between(4_000, 4, (False, "probe"))],
    "a probe that always fails, half of all answers": [*crowd(300), *between(4_000, 1, (False, "probe"))],
    "bursts": [*crowd(300), *[one for n in range(40) for one in [*crowd(20, seed=n), *[(False, "one")] * 20]]],
    "one of five people": [*crowd(500, people=5), *between(2_000, 4, (False, "one"), people=5)],
    "the only person": [*[(True, "one")] * 2_500, *[(False, "one")] * 2_500],
    "right at first, to be wrong": [*between(400, 1, (True, "one")), *between(2_000, 1, (False, "one"))],
    "between nobody known": [(right, "") for right, _ in crowd(400)] + [(False, "one")] * 500,
}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_no_one_person_raises_a_drift(attack: str) -> None:
    assert detect(ATTACKS[attack], SETTINGS) is None


@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "the only person"], ids=str)
def test_a_fall_that_people_feel_is_found_all_the_same(attack: str) -> None:
    alarm = detect([*ATTACKS[attack], *crowd(400, 0.3)], SETTINGS)
    assert alarm is not None and alarm.index >= len(ATTACKS[attack]) and alarm.people > 5


def test_who_calls_everything_right_hides_no_fall() -> None:
    alarm = detect([*crowd(500), *between(2_000, 1, (True, "one"), quality=0.5)], SETTINGS)
    assert alarm is not None


def test_a_few_angry_people_count_once_each() -> None:
    angry = [(False, f"angry-{n // 7}") for n in range(4 * 7)]
    assert detect([*crowd(1_100), *angry], SETTINGS) is None
    assert detect([*crowd(1_100), *((right, "") for right, _ in angry)], SETTINGS) is not None


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 30)), max_size=30), st.sampled_from([0, 6, 40]),
)
@pytest.mark.fuzz
def test_whatever_one_person_says_and_when_raises_no_drift(script: list[tuple[int, bool, int]], people: int) -> None:
    """Others are right throughout; one person says anything, in any runs, from the first answer on."""
    said: list[Said] = []
    for times, right, others in script:
        said += [(right, "one")] * times
        said += [(True, f"person-{n % people if people else (len(said), n)}") for n in range(others)]
    assert detect(said, SETTINGS) is None


# -- rolling back -------------------------------------------------------------------------------------


def measured(shares: list[float], answers: list[int]) -> PerformanceMeasured:
    """What is published of people with these shares of right answers and so many answers each."""
    row = {
        "version": 2, "requests": sum(answers), "feedback_share": 1.0, "rating": None, "p50": 1.0, "p99": 1.0,
        "quality_n": sum(answers), "quality_people": len(shares), "good": sum(shares),
        "recent_n": sum(answers), "recent_people": len(shares), "recent_good": sum(shares),
    }  # fmt: skip
    return performance_event("support", POLICY, row)


def undone(shares: list[float], answers: list[int]) -> bool:
    """Whether a promotion is undone on the word of people with these shares of right answers, so many each, of whom those
    who say that it is worse say so where the version before was right."""
    rows, new, old = [], list[float](), list[float]()
    for person, (share, count) in enumerate(zip(shares, answers, strict=True)):
        for number in range(min(count, MOST_ASKED)):
            row = Row((), "answer", "train", f"{person}/{number}", (1, 0, number), unit=f"person-{person}", sampled="all")
            rows.append(JudgingRow(row, 1.0, False))
            right = number < share * count
            new.append(float(right))
            old.append(1.0 if share == 0 else float(right))
    return not surely_worse(rows, np.array(new), np.array(old), POLICY, live=0.5, look=1).passed


@pytest.mark.parametrize(
    ("shares", "answers"),
    [
        ([0.0], [100]),
        ([0.0], [1_000_000]),
        ([0.0] + [1.0] * 19, [1_000] + [5] * 19),
        ([0.0] + [1.0] * 100, [100] + [1] * 100),
        ([0.0] * 5, [200] * 5),
        ([0.0] * 19, [100] * 19),
    ],
    ids=["alone", "alone, a million times", "of twenty", "of a hundred", "five people, no others", "nineteen people"],
)
def test_few_people_roll_nothing_back_however_much_they_say(shares: list[float], answers: list[int]) -> None:
    assert not undone(shares, answers)


def test_bounds_are_of_people_and_not_of_what_they_say() -> None:
    said = measured([0.5] * 20, [100] * 20)
    assert (said.recent_low, said.recent_high) == wilson(10, 20) == (said.quality_low, said.quality_high)
    assert (said.recent_n, said.recent_people, said.recent_quality) == (2_000, 20, 0.5)


def test_a_hundred_people_do() -> None:
    assert undone([0.0] * 100 + [1.0] * 50, [1] * 150)
    assert undone([0.0] * 60 + [1.0] * 40, [1] * 100)


# -- the hold-out -------------------------------------------------------------------------------------

OTHER = split_key(b"another installation's secret, as long as any")


def held_out_share(key: bytes, names: list[str]) -> float:
    return sum(split_of(name, key, 0.0, 0.2) == "test" for name in names) / len(names)


AIMED = {
    "with the salt that once was public": b"tuneloop",
    "with no key": b"",
    "with the secret of another installation": OTHER,
    "with the bare secret's own name": b"split",
    "with the key's purpose": b"tuneloop/split",
}


@pytest.mark.parametrize("guess", AIMED, ids=str)
def test_ids_that_were_chosen_for_the_hold_out_land_in_it_by_chance_alone(guess: str) -> None:
    names = [f"made-up-{n}" for n in range(20_000)]
    chosen = [name for name in names if split_of(name, AIMED[guess], 0.0, 0.2) == "test"]
    assert 3_500 < len(chosen) < 4_500
    assert held_out_share(split_key(SECRET), chosen) == pytest.approx(0.2, abs=0.03)


def test_what_prepare_holds_out_follows_the_key_that_it_is_given() -> None:
    def held_out(key: bytes) -> list[int]:
        rows = []
        for n in range(300):
            # Each asks for something else: of a question that many ask, rows of later askers hold no words.
            event = RecordSubmitted(model="support", prompt=f"{n * 7919} {n}", completion="here", subject_id=f"s{n}")
            made = prepare(event, Envelope(f"id {n}", "RecordSubmitted", "", 1), POLICY, key)
            assert isinstance(made, Prepared)
            rows.append({**made.row, "offset": n, "partition": 0})
        return [row["offset"] for row in Admission(key).admit(rows, POLICY).rows if row["split"] == "test"]

    mine, other = held_out(split_key(SECRET)), held_out(OTHER)
    assert mine == held_out(split_key(SECRET)) and mine != other
    assert 30 < len(mine) < 90 and 30 < len(other) < 90


def test_no_setting_chooses_the_key() -> None:
    for name in ("split_salt", "split_key"):
        with pytest.raises(msgspec.ValidationError, match=name):
            msgspec.convert({name: "chosen"}, ModelPolicy)
