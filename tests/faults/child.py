"""What the long-job process has its warm child do: take its time, then store an artifact made of the job's id alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

from tests.stores import store_at


def content(job_id: str) -> bytes:
    """The artifact of a job: 64 KiB that follow from its id."""
    return hashlib.sha256(job_id.encode()).digest() * 2_048


def make(root: str) -> Callable[[dict[str, Any], Callable[[Any], None]], Any]:
    store = store_at(root)

    def work(request: dict[str, Any], report: Callable[[Any], None]) -> Any:
        report({"phase": "training", "step": 1})
        time.sleep(request["seconds"])
        path = f"adapters/{request['job_id']}"
        return {"path": path, "digest": store.put_bytes(path, content(request["job_id"]))}

    return work
