"""Lives, played and measured: `python -m tests.bench.life [--life NAME|FILE] [--seeds N] [--days N]`.

Of the product broker, trainer and generation engine are stood in for (`tests.life`). Prints one JSON line per life and
seed as it has it, and one per figure at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import parts
from tests.life.figures import Diary, Nightly, figures, keep
from tests.life.plan import Life, load
from tests.life.world import playing

LIVES = Path(__file__).parents[1] / "lives"
STOOD_IN = "broker, trainer and generation engine"
UNKNOWN_QUALITY = ("thumbs-only", "thumbs-down-only", "failures-only")
WORKERS = 2


def play(path: str, seed: int, days: int) -> dict[str, Any]:
    """One life with a ClickHouse of its own."""
    life = load(Path(path))
    folder = Path(tempfile.mkdtemp(prefix="tuneloop-life-"))
    began = time.monotonic()
    try:
        with parts.clickhouse(folder / "clickhouse") as url:
            told = lived(life, seed, url, folder / "world", min(days or life.days, life.days))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"life": life.name, "seed": seed, **told, "seconds": round(time.monotonic() - began, 1), "stood_in": STOOD_IN}


def lived(life: Life, seed: int, clickhouse: str, folder: Path, days: int) -> dict[str, Any]:
    diary, nightly = Diary(), Nightly(seed)
    with playing(life, seed, clickhouse, folder) as world:
        for _ in range(days):
            world.live()
            keep(diary, world, nightly, world.under_way)
        found = figures(world, diary, world.changes())
    return {
        **asdict(found), "days": days, "q_end": round(statistics.mean(diary.q[-14:]), 3),
        "best_end": round(statistics.mean(diary.best[-14:]), 3),
        "events": [f"{e.day} {e.what} {' '.join(str(v)[:60] for v in e.about.values())}" for e in world.events],
    }


def summary(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures over all lives."""
    recovered = [share for one in told if one["life"] not in UNKNOWN_QUALITY for share in one["recovered"]]
    total = lambda name: sum(one[name] for one in told)  # noqa: E731
    share = lambda part, whole: round(part / whole, 4) if whole else None  # noqa: E731
    return [
        {"figure": "life_recovered_worst", "value": min(recovered, default=None), "asked": 0.75},
        {"figure": "life_recovered_mean", "value": statistics.mean(recovered) if recovered else None, "asked": 0.92},
        {"figure": "life_wrong_promotions", "value": share(total("wrong"), total("promotions")), "asked": 0.02},
        {"figure": "life_wrong_that_stayed", "value": total("wrong_that_stayed"), "asked": 0},
        {"figure": "life_missed_promotions", "value": share(total("missed"), total("judged_better")), "asked": 0.2},
        {"figure": "life_stalled_days", "value": total("stalled_days"), "asked": 0},
        {"figure": "life_false_jobs", "value": max((one["false_jobs"] for one in told), default=0), "asked": 1},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--life", action="append", help="a name in tests/lives, or a file (may be repeated)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--days", type=int, default=0, help="no more days than these of each")
    parser.add_argument("--tell", action="store_true", help="with everything that happened")
    given = parser.parse_args()
    files = [Path(one) if Path(one).is_file() else LIVES / f"{one}.toml" for one in given.life or ()] or sorted(LIVES.glob("*.toml"))
    told = []
    with ProcessPoolExecutor(WORKERS) as pool:
        waiting = [pool.submit(play, str(path), seed, given.days) for path in files for seed in range(1, given.seeds + 1)]
        for one in waiting:
            found = one.result()
            told.append(found)
            events = found.pop("events")
            print(json.dumps(found), flush=True)
            for event in events if given.tell else ():
                print("   ", event, file=sys.stderr)
    for line in summary(told):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
