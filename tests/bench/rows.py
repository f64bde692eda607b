"""What is learned from and judged by, measured: `python -m tests.bench.rows [--only FIGURE]`.

Prints one JSON line per measurement on stdout, as soon as there is one: {"figure", "value", "asked"} and, where a
figure has several lines, "part". `asked` is what the value must keep to, null where it only informs. Progress goes to
stderr. To add a figure, write a function that yields `Measured` values and name it in `FIGURES`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable

from tests.bench.kept import holdout_leak, kept_share
from tests.bench.measure import Measured, note, rounded
from tests.bench.opening import open_1m_vs_10k
from tests.bench.promotions import pass_rate_200x5, promotion_rate_20x10, promotion_rate_50x10

FIGURES: dict[str, Callable[[], Iterable[Measured]]] = {
    "kept_share": kept_share,
    "holdout_leak": holdout_leak,
    "promotion_rate_50x10": promotion_rate_50x10,
    "promotion_rate_20x10": promotion_rate_20x10,
    "pass_rate_200x5": pass_rate_200x5,
    "open_1m_vs_10k": open_1m_vs_10k,
}


def line(figure: str, measured: Measured) -> str:
    """One measurement as it is printed."""
    told = {"figure": figure, "value": rounded(measured.value), "asked": measured.asked}
    return json.dumps(told | ({"part": measured.part} if measured.part else {}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(FIGURES), action="append", help="this figure alone (may be repeated)")
    for name in parser.parse_args().only or FIGURES:
        note(name)
        for measured in FIGURES[name]():
            print(line(name, measured), flush=True)


if __name__ == "__main__":
    main()
