"""Two months of simulated use over the product's own functions (`tests.life`): what the loop must do without anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import parts
from tests.bench.life import LIVES, lived
from tests.life.plan import load

pytestmark = pytest.mark.slow
DAYS = 85


def told(name: str, folder: Path, days: int = DAYS) -> dict[str, Any]:
    with parts.clickhouse(folder / "clickhouse") as url:
        return lived(load(LIVES / f"{name}.toml"), 1, url, folder / "world", days)


def test_a_new_intent_is_noticed_learned_and_undone_by_nobody(tmp_path: Path) -> None:
    found = told("quick", tmp_path, 70)
    assert found["jobs"]["initial"] == 1 and found["jobs"].get("drift", 0) + found["jobs"].get("volume", 0) >= 1
    assert found["recovered"] and min(found["recovered"]) >= 0.75
    assert (found["wrong"], found["rollbacks"], found["stalled_days"]) == (0, 0, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in LIVES.glob("*.toml")))
def test_no_life_stalls_or_keeps_what_is_worse(tmp_path: Path, name: str) -> None:
    found = told(name, tmp_path)
    assert (found["stalled_days"], found["wrong_that_stayed"]) == (0, 0), found["events"]
