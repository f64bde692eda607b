"""One consumer process: `python -m tests.faults.process LANE NAME SPEC`, a real loop with the machine's pace.

SPEC is JSON: bootstrap, folder, clickhouse, session_ms, transaction_ms, poll_ms. The environment may lift the bound on
poison (FAULTS_BUDGET=0) and have the sink read everything again (FAULTS_REPLAY=1).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams import failpoints, kafka, metrics, watchdog
from streams.dead_letters import Budget
from tests.stores import store_at

MODEL = "m"
# Bounds of the real consumers are 1,000 and 2,000: smaller here, so that a flood need not be long.
MAX_RUN = 200


def _budget() -> Budget:
    return Budget(int(os.environ.get("FAULTS_BUDGET", MAX_RUN)))


def _copy(spec: dict[str, Any], name: str, stop: threading.Event, ready: Callable[[], None]) -> None:
    from streams import transact
    from tests.faults.steps import NUMBERS, Copy

    ready()
    transact.run(spec["bootstrap"], "copy", [NUMBERS], Copy(_budget()), stop, transactional_id=name)


def _prepare(spec: dict[str, Any], name: str, stop: threading.Event, ready: Callable[[], None]) -> None:
    from schemas.policy import ModelPolicy
    from streams import transact
    from streams.erased import Erased
    from streams.prepare.step import PrepareStep, read_committed
    from tests.ids import SECRET, SPLIT_KEY

    store, bootstrap = store_at(f"{spec['folder']}/artifacts"), spec["bootstrap"]
    erased = Erased(bootstrap, SECRET, store)
    step = PrepareStep(
        {MODEL: ModelPolicy()}, store, lambda: read_committed(bootstrap), SPLIT_KEY, _budget(), erased
    )
    ready()
    transact.run(
        bootstrap, "prepare", ["training.raw"], step, stop, transactional_id=name, linger_s=spec["linger_s"]
    )


def _sink(spec: dict[str, Any], name: str, stop: threading.Event, ready: Callable[[], None]) -> None:
    from streams import sink
    from streams.clickhouse import connect
    from streams.monitor.land import ClickHouseStore
    from tests.ids import IDS

    class Replayed(ClickHouseStore):
        def resume_at(self, topic: str, partition: int) -> int | None:
            return None

    kind = Replayed if os.environ.get("FAULTS_REPLAY") else ClickHouseStore
    store = kind(connect(spec["clickhouse"]), kafka.producer(spec["bootstrap"], linger_ms=0), _budget(), ids=IDS)
    ready()
    sink.run(spec["bootstrap"], "monitor", ["usage.feedback"], store, stop, instance=name)


def _work(spec: dict[str, Any], name: str, stop: threading.Event, ready: Callable[[], None]) -> None:
    from streams import long_job
    from tests.faults.steps import Work

    long_job.HEARTBEAT_S = 0.5
    child = long_job.WarmChild("tests.faults.child", (f"{spec['folder']}/artifacts",))
    child.wait_warm(stop)
    job = Work(spec["bootstrap"])
    ready()
    long_job.run(spec["bootstrap"], "work", "training.jobs", job, child, stop, transactional_id=name)


def _erase(spec: dict[str, Any], name: str, stop: threading.Event, ready: Callable[[], None]) -> None:
    from streams import long_job
    from streams.erase.job import GROUP, TOPIC, EraseJob
    from tests.ids import KEY_ID

    told = (spec["bootstrap"], spec["clickhouse"], f"{spec['folder']}/artifacts", 3 * spec["transaction_ms"] / 1000)
    child = long_job.WarmChild("tests.faults.erase_child", told, at_once=False)
    ready()
    job = EraseJob(spec["bootstrap"], KEY_ID)
    long_job.run(spec["bootstrap"], GROUP, TOPIC, job, child, stop, transactional_id=name)


LANES = {"erase": _erase, "copy": _copy, "prepare": _prepare, "sink": _sink, "work": _work}


def _at_pace(spec: dict[str, Any]) -> None:
    """The machine's sessions, and a poll interval that the long-job loop would set itself."""
    kafka.SESSION_TIMEOUT_MS, kafka.TRANSACTION_TIMEOUT_MS = spec["session_ms"], spec["transaction_ms"]
    own = kafka.consumer

    def impatient(bootstrap: str, group: str, instance: str = "", **more: Any) -> Any:
        return own(bootstrap, group, instance, **more | ({"max.poll.interval.ms": spec["poll_ms"]} if group == "work" else {}))

    kafka.consumer = impatient


def _follow(arming: Path) -> None:
    """Arm whatever failpoints the file names, whenever it changes."""
    before = ""
    while True:
        time.sleep(0.03)
        text = arming.read_text() if arming.exists() else before
        if text != before:
            failpoints.arm(text)
            before = text


def main() -> int:
    lane, name, spec = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    folder, stop = Path(spec["folder"]), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_follow, args=(folder / f"{name}.arm",), daemon=True).start()
    _at_pace(spec)

    def ready() -> None:
        (folder / f"{name}.ready").write_text(str(os.getpid()))
        metrics.heartbeat()
        watchdog.watch(metrics.silent_s)

    LANES[lane](spec, name, stop, ready)
    return 0


if __name__ == "__main__":
    sys.exit(main())
