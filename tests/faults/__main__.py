"""The long run: `python -m tests.faults [--events N] [--faults N] [--seed S]`.

Progress goes to stderr; the last line of stdout is one JSON object. Exit status 1 where anything was lost, doubled or
torn, or a failpoint was never hit although there were faults enough for all.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.faults import plan
from tests.faults.feed import Steady
from tests.faults.machine import NEVER_S, Machine
from tests.faults.oracle import Verdict
from tests.faults.plan import FAILPOINTS, KINDS, Strike

REST_S = 0.5
SLOW_S = 8.0  # from here on it is told which lane took so long


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def strike(machine: Machine, strikes: list[Strike], random: Random) -> dict[str, list[float]]:
    """Every fault in turn; recoveries in seconds by kind."""
    times: dict[str, list[float]] = defaultdict(list)
    for number, one in enumerate(strikes, 1):
        began = time.monotonic()
        seconds = one.kind.fault(machine, random, one.lane)
        times[one.kind.name].append(seconds)
        tell(
            f"{number:4}/{len(strikes)} {one.kind.name} ({one.lane}): recovered in {seconds:.1f} s, "
            f"{time.monotonic() - began:.0f} s in all, {machine.feed.events:,} events"
        )
        if seconds > SLOW_S:
            tell(f"     {', '.join(f'{lane} after {after:.1f} s' for lane, after in machine.recovered.items())}")
        time.sleep(REST_S)
    return times


def table(machine: Machine, times: dict[str, list[float]]) -> None:
    tell("\nfailpoint                        hit")
    for name in FAILPOINTS:
        tell(f"  {name:30} {machine.hits[name]:3}")
    tell("\nfault                                    n   p50 s   max s")
    for kind in KINDS:
        if seconds := times.get(kind.name):
            tell(f"  {kind.name:36} {len(seconds):3} {percentile(seconds, 0.5):7.1f} {max(seconds):7.1f}")


def run(folder: Path, options: argparse.Namespace) -> int:
    strikes = plan.drawn(options.seed, options.faults)
    with Machine(folder, options.seed) as machine:
        tell(f"the machine runs in {folder}, seed {options.seed}")
        with Steady(machine.feed, machine.aborter, options.rate):
            machine.warm()
            times = strike(machine, strikes, Random(options.seed))
            while machine.feed.events < options.events:
                time.sleep(1)
        tell(f"{machine.feed.events:,} events said; waiting for the last to come through")
        machine.settle(600)
        verdict = machine.verdict()
        table(machine, times)
        return report(machine, verdict, times, len(strikes))


def report(machine: Machine, verdict: Verdict, times: dict[str, list[float]], faults: int) -> int:
    for finding in verdict.findings:
        tell(f"!! {finding}")
    everything = [seconds for kind in times.values() for seconds in kind]
    said = {
        "events": machine.feed.events, "faults": faults,
        **{kind: verdict.counts[kind] for kind in ("lost", "doubled", "torn")},
        "recovery_p99_s": round(percentile(everything, 0.99), 2),
    }  # fmt: skip
    print(json.dumps(said), flush=True)
    missed = [name for name in FAILPOINTS if not machine.hits[name]] if faults >= len(KINDS) else []
    if missed:
        tell(f"!! never hit: {', '.join(missed)}")
    stood = sum(seconds >= NEVER_S for seconds in everything)
    if stood:
        tell(f"!! {stood} recoveries did not come about within {NEVER_S:.0f} s")
    return int(not verdict.clean or bool(missed) or stood > 0)


def positive(said: str) -> int:
    if (number := int(said)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--events", type=positive, default=1_000_000, help="say at least this many (default: %(default)s)")
    parser.add_argument("--faults", type=positive, default=200, help="this many faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn (default: %(default)s)")
    parser.add_argument("--rate", type=positive, default=600, help="events a second (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where it all lies, kept; else a temporary folder")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        return run(options.folder, options)
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        return run(Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
