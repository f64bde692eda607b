"""How long the drift detector stays quiet, and how soon it speaks: simulated, printed as one line of JSON.

`python -m streams.monitor.simulate [--average-run-length A] [--baseline-n N] [--quality Q] [--runs R]
[--seed S]`. Every run learns its own baseline from its own first answers, so the figures carry the error of
an estimated baseline. A run that reaches the horizon without an alarm counts as the horizon, so a mean run
length is an underestimate whenever `censored` is above 0. A `Crowd` says who gives the answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from streams.monitor.detector import Alarm, Detector, DetectorSettings


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Answers after the baseline until a false alarm; `censored` runs of `runs` had none within `horizon`."""

    mean: float
    runs: int
    censored: int
    horizon: int


@dataclass(frozen=True, slots=True)
class Delays:
    """Answers from the change to the alarm, over the runs that alarmed after it."""

    median: float
    p90: float
    runs: int
    missed: int
    early: int


@dataclass(frozen=True, slots=True)
class Crowd:
    """`people` share the answers evenly (0 = each answer is another person's); one more, who joins once the baseline is
    learnt and calls everything wrong, gives a share of `hostile` of them."""

    people: int = 0
    hostile: float = 0.0


def false_alarm_run_lengths(
    settings: DetectorSettings,
    baseline_quality: float,
    live_quality: Callable[[Detector], float],
    *,
    runs: int,
    horizon: int,
    seed: int,
    crowd: Crowd = Crowd(),
) -> RunLengths:
    """Runs whose quality turns, once the baseline is learnt, into what `live_quality` makes of the detector."""
    rng = np.random.default_rng(seed)
    lengths, censored = [], 0
    for _ in range(runs):
        detector = Detector(settings)
        while detector.baseline is None:
            _feed(detector, rng, baseline_quality, settings.baseline_n, Crowd(crowd.people))
        alarm = _feed(detector, rng, live_quality(detector), horizon, crowd)
        censored += alarm is None
        lengths.append(alarm.n_observed if alarm else horizon)
    return RunLengths(float(np.mean(lengths)), runs, censored, horizon)


def detection_delays(
    settings: DetectorSettings, before: float, after: float, *, healthy_n: int, horizon: int, runs: int, seed: int,
    crowd: Crowd = Crowd(),
) -> Delays:  # fmt: skip
    """Runs that stay at `before` for their baseline and `healthy_n` answers more, then fall to `after`."""
    rng = np.random.default_rng(seed)
    delays, missed, early = [], 0, 0
    for _ in range(runs):
        detector = Detector(settings)
        while detector.baseline is None:
            _feed(detector, rng, before, settings.baseline_n, crowd)
        if _feed(detector, rng, before, healthy_n, crowd):
            early += 1
            continue
        changed_at = detector.n
        alarm = _feed(detector, rng, after, horizon, crowd)
        missed += alarm is None
        delays.append(alarm.index + 1 - changed_at if alarm else horizon)
    return Delays(float(np.median(delays)), float(np.quantile(delays, 0.9)), runs, missed, early)


def _feed(
    detector: Detector, rng: np.random.Generator, quality: float, n: int, crowd: Crowd = Crowd()
) -> Alarm | None:
    right, hostile = (rng.random(n) < quality).tolist(), (rng.random(n) < crowd.hostile).tolist()
    people = rng.integers(crowd.people, size=n).tolist() if crowd.people else None
    for number in range(n):
        person = f"person-{people[number]}" if people else ""
        alarm = detector.update(False, "hostile") if hostile[number] else detector.update(right[number], person)
        if alarm is not None:
            return alarm
    return None


def simulate(settings: DetectorSettings, quality: float, *, runs: int, seed: int) -> dict[str, object]:
    """Run lengths with no drift and delays with some, for versions that answer `quality` of the time right."""
    horizon = round(5 * settings.average_run_length)
    unchanged: dict[str, Callable[[Detector], float]] = {
        "at_threshold": lambda detector: detector.threshold or 0.0,
        "at_quality_less_delta": lambda _: quality - settings.delta,
        "at_quality": lambda _: quality,
    }
    lengths = {
        name: asdict(false_alarm_run_lengths(settings, quality, live, runs=runs, horizon=horizon, seed=seed))
        for name, live in unchanged.items()
    }
    lengths["at_quality_with_one_who_calls_a_fifth_of_all_wrong"] = asdict(
        false_alarm_run_lengths(
            settings, quality, lambda _: quality, runs=runs, horizon=horizon, seed=seed, crowd=Crowd(hostile=0.2)
        )
    )
    drops = [round(quality - drop, 4) for drop in (0.1, 0.2, 0.45) if quality > drop]
    delays = {
        f"{after} by {f'{people} people' if people else 'as many people as answers'}": asdict(
            detection_delays(
                settings, quality, after, healthy_n=400, horizon=horizon, runs=runs, seed=seed, crowd=Crowd(people)
            )
        )
        for people in (0, 50, 5)
        for after in drops
    }
    return {
        "settings": asdict(settings),
        "quality": quality,
        "promised_run_length": settings.average_run_length,
        "run_lengths": lengths,
        "delays_after_falling_to": delays,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the drift detector; print one line of JSON.")
    parser.add_argument("--average-run-length", type=float, default=DetectorSettings().average_run_length)
    parser.add_argument("--baseline-n", type=int, default=DetectorSettings().baseline_n)
    parser.add_argument("--quality", type=float, default=0.93)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = DetectorSettings(baseline_n=given.baseline_n, average_run_length=given.average_run_length)
    print(json.dumps(simulate(settings, given.quality, runs=given.runs, seed=given.seed)))


if __name__ == "__main__":
    main()
