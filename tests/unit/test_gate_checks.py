"""Which rows a candidate is judged by, against whom, and what a verdict says: pure functions over made-up scores."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.events import Check, FileRef, ModelStateChanged, ShardSet, VerdictReached, Version
from schemas.policy import ModelPolicy
from streams.planning import Disagreement
from streams.registry import anchor_of, on_verdict
from tests.examples import example
from tests.unit.test_dataset import row
from trainers.gate.checks import Checks, Judged, weights_of
from trainers.gate.known import unknown_because
from trainers.gate.parts import MOST_TEST_ROWS, parted
from trainers.gate.validate import attempts
from trainers.rows import JudgingRow

POLICY = ModelPolicy()
DAY = 86_400_000


def asked_of(count: int, *, at: int = 0, common: bool = False, **fields: Any) -> list[JudgingRow]:
    values = {"answer": f"answer {at % 3}", "split": "test", **fields}
    return [JudgingRow(row(f"{at} question {n}", at=at + n, unit=f"u{n % 200}", **values), 1.0, common) for n in range(count)]


def scored(count: int, right: float, seed: int = 0) -> np.ndarray:
    scores = np.zeros(count)
    scores[: round(count * right)] = 1.0
    np.random.default_rng(seed).shuffle(scores)
    return scores


def judged(tests: list[JudgingRow], champion: Any, candidate: Any, anchor: Any = None, **fields: Any) -> Judged:
    champion = np.asarray(champion, dtype=float)
    return Judged(tests, champion, np.asarray(candidate, dtype=float), champion if anchor is None else np.asarray(anchor), **fields)


def verdict(one: Judged, reason: str = "volume", policy: ModelPolicy = POLICY, **about: Any) -> dict[tuple[str, str], Check]:
    parts = parted(one.tests, reason=reason, **about)
    return {(check.check, check.dataset): check for check in Checks(one, policy, parts).all()}


REASONS = [
    ("drift", 5 * DAY, 9 * DAY, 5 * DAY, True), ("volume", 0, 9 * DAY, 9 * DAY, True), ("person", 0, 9 * DAY, 9 * DAY, True),
    ("base", 0, 9 * DAY, 9 * DAY, True), ("initial", 0, 0, 0, True), ("age", 0, 9 * DAY, 9 * DAY, False),
    ("erasure", 0, 9 * DAY, 9 * DAY, False),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "changed", "newest", "since", "better"), REASONS)
def test_recent_is_what_was_said_since_what_the_job_answers(
    reason: str, changed: int, newest: int, since: int, better: bool
) -> None:
    tests = [one for day in range(12) for one in asked_of(1, at=day * DAY + 1)]
    recent, *older = parted(tests, reason=reason, changed_ms=changed, newest_row_ms=newest)
    assert {one.row.said_ms > since for one in recent.rows} == {True} and recent.better is better
    assert len(recent.rows) + sum(len(part.rows) for part in older) == 12
    assert all(one.row.said_ms <= since and not part.better for part in older for one in part.rows)
    assert not parted(tests, reason=reason, accept="no worse", newest_row_ms=newest)[0].better


def test_an_import_without_times_is_old_and_a_part_without_rows_may_still_not_pass() -> None:
    undated = asked_of(200, at=50 * DAY, dated=False)
    recent, older = parted(undated, reason="volume", newest_row_ms=DAY)
    assert (recent.rows, len(older.rows)) == ((), 200)
    found = verdict(judged(undated, scored(200, 0.5), scored(200, 1.0)), newest_row_ms=DAY)
    assert not found["superiority", "recent"].passed


def test_a_better_candidate_passes_and_an_equal_one_does_not() -> None:
    tests = [*asked_of(200), *asked_of(200, at=10 * DAY)]
    old, new = scored(400, 0.6), np.ones(400)
    found = verdict(judged(tests, old, new), newest_row_ms=5 * DAY)
    assert all(check.passed for check in found.values()), found
    assert {*found} == {("superiority", "recent"), ("non_inferiority", "older"), ("classes", "classes")}
    assert not verdict(judged(tests, old, old), newest_row_ms=5 * DAY)["superiority", "recent"].passed


def test_what_is_lost_on_older_rows_is_refused_however_much_is_won_on_recent_ones() -> None:
    tests = [*asked_of(300), *asked_of(300, at=10 * DAY)]
    old = np.concatenate([np.ones(300), scored(300, 0.2)])
    new = np.concatenate([scored(300, 0.8), np.ones(300)])
    found = verdict(judged(tests, old, new), newest_row_ms=5 * DAY)
    assert found["superiority", "recent"].passed and not found["non_inferiority", "older"].passed


def test_losses_since_the_anchor_share_one_margin() -> None:
    tests = [*asked_of(600), *asked_of(200, at=10 * DAY)]
    anchor = np.ones(800)
    champion = np.concatenate([scored(600, 0.94), scored(200, 0.5)])  # it lost some already, as it might
    candidate = np.concatenate([champion[:600] * scored(600, 0.95, 1), np.ones(200)])  # and this one loses as much again
    alone = verdict(judged(tests, champion, candidate), newest_row_ms=5 * DAY)
    held = verdict(judged(tests, champion, candidate, anchor, anchor_name="version 3"), newest_row_ms=5 * DAY)
    assert alone["non_inferiority", "older"].passed and not held["non_inferiority", "older"].passed
    assert json.loads(held["non_inferiority", "older"].details)["against"] == "version 3"


def test_few_rows_widen_the_margin_and_too_few_say_what_is_missing() -> None:
    some = asked_of(150)
    found = verdict(judged(some, np.ones(150), np.ones(150)), "age")["non_inferiority", "recent"]
    assert found.passed and found.margin > POLICY.max_retention_loss and "margin" in found.reason
    few = asked_of(60)
    found = verdict(judged(few, np.ones(60), np.ones(60)), "age")["non_inferiority", "recent"]
    assert not found.passed and "61 test rows missing" in found.reason
    wait = verdict(judged(some, np.ones(150), np.ones(150)), "age", ModelPolicy(small_data="wait"))
    assert not wait["non_inferiority", "recent"].passed


def test_rows_of_few_people_are_not_enough_however_many() -> None:
    tests = [JudgingRow(row(f"q{n}", unit=f"u{n % 5}", conversation=f"c{n % 8}", split="test"), 1.0, False) for n in range(900)]
    found = verdict(judged(tests, np.zeros(900), np.ones(900)), "initial")["superiority", "recent"]
    assert not found.passed and "not enough people" in found.reason


def test_common_and_unseen_questions_are_judged_apart() -> None:
    tests = [*asked_of(300, common=True), *asked_of(300, at=DAY)]
    old = np.ones(600)
    new = np.concatenate([np.ones(300), scored(300, 0.75)])  # remembers what it was told, and no longer understands
    found = verdict(judged(tests, old, new), "age")
    assert found["non_inferiority", "recent common"].passed and not found["non_inferiority", "recent unseen"].passed


def test_a_class_that_is_surely_lost_is_refused_by_name() -> None:
    tests = [*asked_of(900), *asked_of(40, at=DAY, answer="rare")]
    old, new = np.ones(940), np.concatenate([np.ones(900), scored(40, 0.3)])
    found = verdict(judged(tests, old, new), "age")["classes", "classes"]
    assert not found.passed and "rare" in found.details


def test_recent_rows_that_people_picked_weigh_as_often_right_as_live_answers_are() -> None:
    said, imported, old = asked_of(100), asked_of(100, at=DAY, origin="import"), asked_of(100, at=2 * DAY)
    sampled = asked_of(100, at=3 * DAY, sampled="random")
    everything = [*said, *imported, *old, *sampled]
    champion = np.tile(scored(100, 0.2), 4)
    weights = weights_of(judged(everything, champion, champion, live=0.9), [*said, *imported, *sampled])
    assert np.average(champion[:100], weights=weights[:100]) == pytest.approx(0.9)
    assert (weights[100:] == 1).all(), "imports, a random sample, and what was asked before the change stand as they are"
    assert (weights_of(judged(said, champion[:100], champion[:100]), said) == 1).all(), "live quality is not known"


def test_a_fall_of_today_excuses_no_loss_of_before() -> None:
    """Live quality is of after the change; weighted by it, half of what is lost on older rows would not count."""
    tests = [*asked_of(400), *asked_of(100, at=10 * DAY)]
    champion = np.concatenate([scored(400, 0.8), np.zeros(100)])
    candidate = np.concatenate([champion[:400] * scored(400, 0.8, 1), np.ones(100)])  # a fifth of it is lost
    found = verdict(judged(tests, champion, candidate, live=0.2), "drift", changed_ms=5 * DAY)
    assert found["superiority", "recent"].passed and not found["non_inferiority", "older"].passed
    assert found["non_inferiority", "older"].champion_mean == pytest.approx(0.8)


def test_recent_rows_are_not_crowded_out_by_years_of_older_ones() -> None:
    tests = [*asked_of(9_000), *asked_of(80, at=10 * DAY)]
    recent, older = parted(tests, reason="volume", newest_row_ms=5 * DAY)
    assert (len(recent.rows), len(older.rows)) == (80, MOST_TEST_ROWS)
    again = parted([*tests[::-1], *asked_of(50, at=11 * DAY)], reason="volume", newest_row_ms=5 * DAY)
    assert set(map(id, again[1].rows)) == set(map(id, older.rows)), "the same choice as data grows"


def test_mending_what_people_complain_of_shows_nothing_where_they_only_complain() -> None:
    tests = asked_of(300)
    champion = np.zeros(300)
    candidate = scored(300, 0.3)
    assert verdict(judged(tests, champion, candidate), "initial")["superiority", "recent"].passed
    unknown = unknown_because([row(f"q{n}", at=n, was_right=n % 40 == 0) for n in range(300)])
    assert "8 of the last 300 opinions" in unknown and "right answers" in unknown
    found = verdict(judged(tests, champion, candidate, unknown=unknown), "initial")["superiority", "recent"]
    assert not found.passed and "live quality is unknown" in found.reason
    curated = [*tests, *asked_of(300, at=DAY, origin="import")]
    both = judged(curated, np.zeros(600), np.concatenate([candidate, scored(300, 0.5)]), unknown=unknown)
    assert verdict(both, "initial")["superiority", "recent"].passed, "rows that somebody chose to judge by show it"
    assert unknown_because([row("q", was_right=n % 10 == 0, at=n) for n in range(300)]) == ""


@pytest.mark.parametrize(("sampled", "known"), [("all", True), ("random", True), ("", False), ("bad", False)])
def test_a_base_that_is_never_right_can_be_replaced_where_all_answers_are_rated(sampled: str, known: bool) -> None:
    tests = asked_of(300, sampled=sampled)
    unknown = unknown_because([row(f"q{n}", at=n, was_right=False, sampled=sampled) for n in range(300)])
    found = verdict(judged(tests, np.zeros(300), scored(300, 0.5), unknown=unknown), "initial")["superiority", "recent"]
    assert (unknown == "", found.passed) == (known, known)


def version(number: int, superior: bool) -> Version:
    nothing = ShardSet(path="sets/x", digest="0", shards=0, rows=0)
    return example(Version, "", version=number, digest=f"d{number}", superior=superior, new_data=nothing)


def state(*versions: Version, champion: int) -> ModelStateChanged:
    return example(ModelStateChanged, "m", versions=list(versions), champion=champion)


def test_the_anchor_is_the_last_version_shown_to_be_better() -> None:
    chain = [version(1, True), version(2, True), version(3, False), version(4, False), version(5, True)]
    assert anchor_of(state(*chain, champion=4)).version == 2
    assert anchor_of(state(*chain, champion=5)).version == 5
    assert anchor_of(state(version(1, False), champion=1)).version == 1, "nothing was shown: the champion"
    assert anchor_of(None) is None and anchor_of(state(*chain, champion=0)) is None


def test_only_a_judge_that_the_policy_names_is_heeded() -> None:
    said = example(VerdictReached, "m", passed=True, champion_version=0, judge="somebody", void=False)
    ignored = on_verdict(None, said, "c")
    assert ignored.state is None and ignored.decision.decision == "command-refused" and "somebody" in ignored.decision.reason
    assert on_verdict(None, said, "c", judges=("gate", "somebody")).state.champion == 1


def test_attempts_on_the_same_rows_are_counted_and_new_rows_begin_anew() -> None:
    def said(rows: int, champion: int = 2, passed: bool = False) -> VerdictReached:
        files = FileRef(path="tests/x", digest="d", rows=rows)
        return example(VerdictReached, "m", champion_version=champion, passed=passed, test_rows=files)

    assert attempts([said(100), said(110), said(120)], 2) == 3
    assert attempts([said(100), said(300)], 2) == 1, "most rows are new"
    assert attempts([said(100), said(110)], 2, changed_at=5) == 0, "what was said since a change are other rows"
    since = [msgspec.structs.replace(said(100), changed_at=5), said(110)]
    assert (attempts(since, 2, changed_at=5), attempts(since, 2)) == (1, 1)
    assert attempts([said(100, champion=1), said(100, passed=True)], 2) == 0


def test_the_margin_is_what_the_last_verdict_lets_expect() -> None:
    """Fixed before the rows are looked at: the same rows are judged by a wider margin where models disagreed more."""
    tests = asked_of(400)
    right = np.ones(400)
    margins = [
        verdict(judged(tests, right, right, last=Disagreement(share)), "age")["non_inferiority", "recent"].margin
        for share in (0.1, 0.25)
    ]
    assert POLICY.max_retention_loss < margins[0] < margins[1]
