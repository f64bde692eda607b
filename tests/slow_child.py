"""What the long-job tests have a warm child do: sleep, report, fail or be killed, as the request says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(folder: str) -> Callable[[dict[str, Any], Callable[[Any], None]], Any]:
    """The work: requests are dictionaries of what to do; `folder` keeps what outlives a killed child."""

    def work(request: dict[str, Any], report: Callable[[Any], None]) -> Any:
        with (Path(folder) / request["job_id"]).open("a") as tries:
            tries.write(".")
        attempt = len((Path(folder) / request["job_id"]).read_text())
        report({"phase": "training", "step": attempt})
        if attempt <= request.get("killed", 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if request.get("fails"):
            raise ValueError(request["fails"])
        time.sleep(request.get("seconds", 0))
        return {"attempt": attempt, "pid": os.getpid()}

    return work
