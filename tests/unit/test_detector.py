"""The drift detector: quiet as long as it promises, quick when quality falls, the same on every replay.

The run lengths are honest simulations: each run learns its own baseline from its own answers, and a run
without an alarm counts only as its horizon, so a mean that reaches the promise does so in spite of the cut.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from streams.monitor import detector as module
from streams.monitor.detector import BETS, Alarm, Detector, DetectorSettings
from streams.monitor.intervals import lower_bound, wilson
from streams.monitor.simulate import Crowd, detection_delays, false_alarm_run_lengths

SETTINGS = DetectorSettings()
QUICK = DetectorSettings(average_run_length=500)


def detect(outcomes: Iterable[bool], settings: DetectorSettings) -> Alarm | None:
    """The alarm of answers that are another person's each."""
    return module.detect(((correct, "") for correct in outcomes), settings)


def answers(seed: int, *stretches: tuple[float, int]) -> list[bool]:
    rng = np.random.default_rng(seed)
    return [bool(x) for quality, n in stretches for x in rng.random(n) < quality]


def falling(seed: int) -> list[bool]:
    return answers(seed, (0.93, 500), (0.48, 300))


def test_silent_while_the_baseline_is_learnt() -> None:
    detector = Detector(SETTINGS)
    for correct in answers(0, (0.95, 50), (0.05, 49)):
        assert detector.update(correct) is None
    assert detector.baseline is None and detector.threshold is None and detector.evidence == 0.0


def test_baseline_is_a_lower_bound_and_the_threshold_lies_delta_below() -> None:
    detector = Detector(SETTINGS)
    for correct in [True] * 93 + [False] * 7:
        detector.update(correct)
    assert detector.baseline == lower_bound(93, 100, 0.95) < 0.93
    assert detector.threshold == pytest.approx(lower_bound(93, 100, 0.95) - 0.05)


def test_a_large_fall_is_found_within_about_thirty_answers() -> None:
    delays = detection_delays(SETTINGS, 0.93, 0.48, healthy_n=400, horizon=500, runs=100, seed=1)
    assert delays.early == 0 and delays.missed == 0
    assert delays.median <= 30 and delays.p90 <= 60


def test_the_alarm_says_where_quality_fell_and_to_what() -> None:
    alarm = detect(falling(2), SETTINGS)
    assert alarm is not None
    assert 500 <= alarm.index < 560 and abs(alarm.changed_at - 500) <= 10
    assert alarm.n_since_change == alarm.people == alarm.index - alarm.changed_at + 1
    assert alarm.n_observed == alarm.index + 1 - 100
    assert alarm.evidence >= SETTINGS.average_run_length
    assert alarm.quality < alarm.threshold < alarm.baseline
    assert json.loads(json.dumps(asdict(alarm))) == asdict(alarm)


def test_the_detector_rests_after_its_alarm() -> None:
    detector = Detector(SETTINGS)
    raised = [a for x in falling(3) + [False] * 500 if (a := detector.update(x))]
    assert len(raised) == 1 and detector.alarm == raised[0]


def test_no_alarm_when_quality_improves() -> None:
    for seed in range(20):
        assert detect(answers(seed, (0.7, 300), (0.95, 3000)), SETTINGS) is None


def test_a_threshold_below_zero_never_alarms() -> None:
    assert detect([False] * 20_000, SETTINGS) is None


@pytest.mark.parametrize("quality", [0.93, 0.6])
@pytest.mark.slow
def test_mean_run_length_at_the_threshold_keeps_the_promise(quality: float) -> None:
    """The worst case the promise covers: quality exactly b - delta of that run's own baseline."""
    found = false_alarm_run_lengths(
        QUICK, quality, lambda detector: detector.threshold or 0.0, runs=300, horizon=5000, seed=4
    )
    standard_error = found.mean / np.sqrt(found.runs)  # run lengths are close to exponential
    assert found.mean + 2 * standard_error >= QUICK.average_run_length


@pytest.mark.parametrize("loss", [0.0, 0.05])
@pytest.mark.slow
def test_estimating_the_baseline_does_not_cost_the_promise(loss: float) -> None:
    """A baseline estimated too high would alarm early: an unchanged version, and one that lost just delta."""
    found = false_alarm_run_lengths(QUICK, 0.93, lambda _: 0.93 - loss, runs=150, horizon=2500, seed=5)
    assert found.mean >= 2 * QUICK.average_run_length


@pytest.mark.slow
def test_a_baseline_taken_as_exact_would_break_the_promise() -> None:
    """Why b is a lower bound. Where the promise holds, a tenth of it passes with at most 10% false alarms
    (Doob's inequality); with a bare mean taken as the baseline it is more."""
    bare = DetectorSettings(baseline_confidence=0.501, delta=0.001)

    def early_share(settings: DetectorSettings) -> float:
        horizon = round(settings.average_run_length / 10)
        found = false_alarm_run_lengths(settings, 0.93, lambda _: 0.93, runs=200, horizon=horizon, seed=5)
        return 1.0 - found.censored / found.runs

    assert early_share(SETTINGS) <= 0.10
    assert early_share(bare) > 0.10


@pytest.mark.parametrize(
    "crowd",
    [Crowd(people=5), Crowd(people=50), Crowd(hostile=0.05), Crowd(hostile=0.5), Crowd(people=5, hostile=0.2)],
    ids=str,
)
def test_whoever_answers_and_whatever_one_of_them_says_the_promise_holds(crowd: Crowd) -> None:
    found = false_alarm_run_lengths(
        QUICK, 0.93, lambda detector: detector.threshold or 0.0, runs=60, horizon=5000, seed=4, crowd=crowd
    )
    assert found.mean + 2 * found.mean / np.sqrt(found.runs) >= QUICK.average_run_length


@pytest.mark.parametrize(("people", "median"), [(50, 60), (20, 80), (5, 120)])
def test_few_people_are_enough_and_cost_some_answers(people: int, median: int) -> None:
    crowd = Crowd(people)
    delays = detection_delays(SETTINGS, 0.93, 0.48, healthy_n=400, horizon=1000, runs=40, seed=1, crowd=crowd)
    assert delays.early == 0 and delays.missed == 0 and delays.median <= median


crowds = st.lists(st.tuples(st.floats(0, 1).map(lambda u: u < 0.8), st.sampled_from("abcdefgh")), max_size=250)


@given(tail=crowds)
def test_no_alarm_rests_on_one_person(tail: list[tuple[bool, str]]) -> None:
    """The definition, computed anew: with the factors of any one person taken as 1 the evidence is enough, too."""
    detector, heard = Detector(QUICK), []
    for correct, who in [(True, f"early {n}") for n in range(100)] + tail:
        before = detector.counted
        detector.update(correct, who)
        if detector.counted > before:
            heard.append((correct, who))
    if detector.alarm is None:
        return
    odds = detector.alarm.threshold / (1.0 - detector.alarm.threshold)
    for left_out in {who for _, who in heard}:
        by_bet = [0.0] * len(BETS)
        for correct, who in heard[100:]:
            for bet, f in enumerate(BETS):
                factor = 1.0 if who == left_out else 1.0 - f if correct else 1.0 + f * odds
                by_bet[bet] = (by_bet[bet] + 1.0) * factor
        assert sum(by_bet) / len(BETS) >= QUICK.average_run_length * (1 - 1e-9), left_out


@given(outcomes=st.lists(st.booleans(), min_size=90, max_size=400), cut=st.integers(0, 400))
def test_a_replay_repeats_the_alarm(outcomes: list[bool], cut: int) -> None:
    whole = detect(outcomes, QUICK)
    assert detect(iter(outcomes), QUICK) == whole

    detector = Detector(QUICK)
    raised: list[Alarm] = [a for part in (outcomes[:cut], outcomes[cut:]) for x in part if (a := detector.update(x))]
    assert raised == ([whole] if whole else [])
    if whole is not None:  # nothing after the alarm, and nothing less than its prefix, has a say
        assert detect(outcomes[: whole.index + 1], QUICK) == whole
        assert detect(outcomes[: whole.index], QUICK) is None


@given(quality=st.floats(0.5, 1.0), seed=st.integers(0, 2**32 - 1))
def test_the_alarm_comes_on_a_wrong_answer(quality: float, seed: int) -> None:
    outcomes = answers(seed, (quality, 100), (0.2, 200))
    alarm = detect(outcomes, QUICK)
    if alarm is not None:
        assert outcomes[alarm.index] is False and alarm.n_since_change >= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("baseline_n", 99), ("delta", 0.0), ("average_run_length", 5), ("baseline_confidence", 1.0)],
)
def test_settings_that_break_the_promise_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DetectorSettings(**{field: value})


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (93, 100), (100, 100)])
def test_intervals_agree_with_scipy(successes: int, n: int) -> None:
    assert wilson(successes, n) == pytest.approx(tuple(binomtest(successes, n).proportion_ci(method="wilson")))
    exact = binomtest(successes, n, alternative="greater").proportion_ci(0.95, method="exact")
    assert lower_bound(successes, n) == pytest.approx(exact.low)


def test_intervals_of_nothing_and_of_the_impossible() -> None:
    assert wilson(0, 0) == (0.0, 1.0) and lower_bound(0, 0) == 0.0
    with pytest.raises(ValueError, match="successes is 5 of n=4"):
        lower_bound(5, 4)


@pytest.mark.slow
def test_the_simulation_prints_one_line_of_json() -> None:
    command = [sys.executable, "-m", "streams.monitor.simulate", "--runs", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 1
    report = json.loads(printed)
    assert report["promised_run_length"] == 10_000
    assert set(report["run_lengths"]) == {
        "at_threshold", "at_quality_less_delta", "at_quality", "at_quality_with_one_who_calls_a_fifth_of_all_wrong",
    }  # fmt: skip
