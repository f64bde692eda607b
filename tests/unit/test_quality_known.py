"""Whether live feedback tells how well a model does, in words a person can act on."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from deploy import live_quality
from deploy.cli.output import CommandError
from streams.monitor.known import LAST_OPINIONS, judged


@pytest.mark.parametrize(
    ("opinions", "said_right", "known"),
    [(500, 25, True), (500, 24, False), (20, 1, True), (21, 1, False), (1, 1, True), (1, 0, False), (500, 500, True), (0, 0, False)],
)
def test_one_opinion_in_twenty_has_to_say_that_an_answer_was_right(opinions: int, said_right: int, known: bool) -> None:
    quality = judged(opinions, said_right, opinions, 0.5)
    assert quality.known is known and quality.live == (0.5 if known else None)
    assert quality.share_right == (said_right / opinions if opinions else None) and LAST_OPINIONS == 500
    assert bool(quality.why) is not known


def test_what_is_missing_is_said_with_what_would_help() -> None:
    failures = judged(500, 3, 500).why
    assert "3 of the last 500 opinions" in failures and "right answers too" in failures and "random sample" in failures
    texts = judged(0, 0, 40).why
    assert "of 40 answers with feedback none says whether it was right" in texts and "metric" in texts
    assert "nothing was said" in judged(0, 0, 0).why


class Asked:
    """Stands in for ClickHouse: what the view holds of each model."""

    def __init__(self, **views: dict[str, Any]) -> None:
        self._views = views

    def query(self, sql: str, parameters: dict[str, str]) -> Any:
        found = self._views.get(parameters["model"])
        return type("Result", (), {"named_results": lambda _: [found] if found else []})()


def row(opinions: int, said_right: int) -> dict[str, Any]:
    return {"opinions": opinions, "said_right": said_right, "answers_with_feedback": opinions, "live": 0.9}


def test_a_line_is_said_of_each_model_whose_quality_is_unknown() -> None:
    client: Any = Asked(good=row(100, 90), bad=row(100, 1))
    lines = live_quality.in_time(lambda: client, lambda asked: live_quality.unknown(asked, ["good", "bad", "new"]))
    assert [line.partition(":")[0] for line in lines] == ["bad", "new"] and "send right answers too" in lines[0]


def test_status_is_answered_whatever_clickhouse_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise CommandError("it does not answer")

    assert live_quality.in_time(away, lambda asked: live_quality.unknown(asked, ["support"])) == []
    monkeypatch.setattr(live_quality, "ASKED_WITHIN_S", 0.05)
    over = threading.Event()

    def hangs() -> Any:
        over.wait()
        return away()

    assert live_quality.in_time(hangs, lambda asked: live_quality.unknown(asked, ["support"])) == []
    over.set()
