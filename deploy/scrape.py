"""What the processes say of themselves right now: one look at each one's /metrics, all at once.

Reads only. Whoever does not answer in time, or is somebody else on that port, has nothing to say.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

TIMEOUT_S = 3.0
# The processes are on this machine: a proxy named in the environment has no business there.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Said:
    """One process's figures. `records_per_s`: consumed, or requests of the gateway; None: not said."""

    records_per_s: float | None
    dropped: int | None
    dead: int | None
    lag: int | None


def scrape(urls: Mapping[str, str], timeout_s: float = TIMEOUT_S) -> dict[str, Said]:
    """The figures of each process that answers at its URL."""
    with ThreadPoolExecutor(max(1, len(urls))) as pool:
        looks = {process: pool.submit(_look, process, url, timeout_s) for process, url in urls.items()}
        return {process: said for process, look in looks.items() if (said := look.result()) is not None}


def _look(process: str, url: str, timeout_s: float) -> Said | None:
    try:
        with _DIRECT.open(url, timeout=timeout_s) as answer:
            return read(process, answer.read().decode())
    except (OSError, HTTPException, ValueError):  # nobody there, or somebody who speaks otherwise
        return None


def read(process: str, text: str) -> Said | None:
    """The figures in a scrape; None where it is not this process's. Raises ValueError for what is no scrape at all."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    if process == "serve":
        rate = _sum(samples, "tuneloop_requests_per_second")
        return None if rate is None else Said(rate, None, None, None)
    names = [sample.labels.get("name") for sample in samples if sample.name == "tuneloop_process_info"]
    if names != [process]:
        return None
    return Said(
        records_per_s=_sum(samples, "tuneloop_records_per_second"),
        dropped=int(_sum(samples, "tuneloop_records_dropped_total") or 0),
        dead=int(_sum(samples, "tuneloop_dead_letters_total") or 0),
        lag=_whole(_sum(samples, "tuneloop_lag_records")),
    )


def _sum(samples: Iterable[Sample], name: str) -> float | None:
    values = [sample.value for sample in samples if sample.name == name]
    return sum(values) if values else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
