"""The benchmark's machinery at small sizes: every figure comes out and both sides make the same. Not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.measure import DifferentOutputError, Parts, Timed, same_output
from tests.bench.streams import FIGURES

QUICKEST = ("decode_vs_pydantic", "prepare_vs_datasets")
LINES = {"memory_growth_mb": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICKEST else pytest.mark.long) for name in FIGURES]
)
def test_every_figure_comes_out(name: str, own_bootstrap: str, clickhouse_url: str, tmp_path: Path) -> None:
    figures = FIGURES[name](Parts(own_bootstrap, clickhouse_url, tmp_path, quick=True))
    lines = [json.loads(figure.line()) for figure in figures]
    assert len(lines) == LINES.get(name, 1)
    for line in lines:
        assert line["figure"] == name and line["unit"] in ("ratio", "us/event", "MB") and line["ours"] > 0
        assert line["value"] == pytest.approx(line["ours"] / line["peer"], rel=0.05) or line["unit"] != "ratio"


def test_different_outputs_of_the_same_work_are_refused() -> None:
    same_output("x", [Timed(5, 1.0, "a"), Timed(5, 2.0, "a"), Timed(4, 1.0, "b"), Timed(5, 1.0)])
    with pytest.raises(DifferentOutputError, match="x: of the same 5 items"):
        same_output("x", [Timed(5, 1.0, "a"), Timed(5, 2.0, "b")])
