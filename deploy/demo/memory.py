"""Peak memory of the whole run: the summed resident size of every process of it, sampled while it plays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil

from deploy.local.supervised import read_spec


class PeakMemory:
    """Samples once a second; `peak_gb` is in GB (10^9 bytes). Shared pages count once per process that maps them."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir, self._stop, self.peak_gb = data_dir, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> float:
        self._stop.set()
        self._thread.join(10)
        return self.peak_gb

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.peak_gb = max(self.peak_gb, self._sum() / 1e9)

    def _sum(self) -> int:
        from deploy.local.lineage import members

        spec = read_spec(self._data_dir)
        total = 0
        for process in [psutil.Process(os.getpid()), *(members(spec.run_id) if spec else [])]:
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it ended while we were counting
                continue
        return total
