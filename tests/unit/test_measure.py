"""The measurer's loop: it looks where there is news, and what fails in it ends nothing. ClickHouse is stood in for."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from schemas.policy import ModelPolicy
from streams.monitor import measure
from streams.monitor.measure import Measurer


class Counting(Measurer):
    """Counts its looks; `rows_there` is what there is to look at, `broken` makes every look fail."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing, {"support": ModelPolicy()}, nothing)
        self.rows_there, self.looks, self.measured, self.broken = 1, 0, 0, False

    def _news(self) -> dict[str, int]:
        return {"feedback_given": self.rows_there}

    def look_for_drift(self, model: str, policy: ModelPolicy) -> None:
        self.looks += 1
        if self.broken:
            raise ConnectionError("no ClickHouse just now")

    def measure(self, model: str, policy: ModelPolicy) -> list[Any]:
        self.measured += 1
        return []


@pytest.fixture
def measurer(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(measure, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(measure, "PERFORMANCE_EVERY_S", 0.05)
    monkeypatch.setattr(measure, "LONGEST_PAUSE_S", 0.02)
    return Counting()


def run(measurer: Counting, seconds: float) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=measurer.run, args=(stop,))
    thread.start()
    time.sleep(seconds)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_without_news_nothing_is_looked_at_again(measurer: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    run(measurer, 0.5)
    assert (measurer.looks, measurer.measured) == (1, 1)
    monkeypatch.setattr(measure, "LOOK_ANYWAY_S", 0.1)
    run(measurer, 0.5)
    assert 3 <= measurer.looks <= 8


def test_news_are_looked_at(measurer: Counting) -> None:
    done = threading.Event()

    def speak() -> None:
        while not done.wait(0.02):
            measurer.rows_there += 1

    threading.Thread(target=speak, daemon=True).start()
    run(measurer, 0.5)
    done.set()
    assert measurer.looks >= 8 and measurer.measured >= 4


def test_what_fails_is_tried_again_and_ends_nothing(measurer: Counting) -> None:
    measurer.broken = True
    run(measurer, 0.5)
    assert measurer.looks >= 5
    before, measurer.broken = measurer.looks, False
    run(measurer, 0.2)
    assert measurer.looks == before + 1 and measurer.measured == 1
