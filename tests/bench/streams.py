"""The data plane measured: `python -m tests.bench.streams [--only FIGURE] [--quick]` (`make bench-streams`).

Starts a broker and a ClickHouse of its own in a temporary folder, measures each figure and prints one JSON line per
figure on stdout: {"figure", "value", "unit", "ours", "peer", "of"} and, where a figure has several lines, "part".
`value` is ours over the peer where the unit is `ratio`; `ours` and `peer` are in the unit of `of`. Progress goes to
stderr. What each figure measures, and what its peer's settings are, stands in the module that measures it. The whole
takes about a quarter of an hour on two cores and 5 GB of disk; `--quick` tries the machinery in seconds, and its
ratios mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.codec_figures import decode_vs_pydantic, produce_us
from tests.bench.landing import clickhouse_vs_slower_end
from tests.bench.measure import Figure, Parts, note
from tests.bench.memory import memory_growth
from tests.bench.pipelines import transact_vs_plain
from tests.bench.preparing import prepare_vs_datasets, prepare_vs_rules
from tests.bench.reading import typed_vs_bare, typed_vs_faust
from tests.parts import broker, clickhouse

FIGURES: dict[str, Callable[[Parts], list[Figure]]] = {
    "decode_vs_pydantic": decode_vs_pydantic,
    "typed_vs_faust": typed_vs_faust,
    "typed_vs_bare": typed_vs_bare,
    "transact_vs_plain": transact_vs_plain,
    "prepare_vs_rules": prepare_vs_rules,
    "prepare_vs_datasets": prepare_vs_datasets,
    "clickhouse_vs_slower_end": clickhouse_vs_slower_end,
    "produce_us": produce_us,
    "memory_growth_mb": memory_growth,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(FIGURES), action="append", help="this figure alone (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-streams-") as scratch:
        folder = Path(scratch)
        with broker(folder / "kafka") as bootstrap, clickhouse(folder / "clickhouse") as url:
            parts = Parts(bootstrap, url, folder, options.quick)
            for name in options.only or FIGURES:
                note(name)
                for figure in FIGURES[name](parts):
                    print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
