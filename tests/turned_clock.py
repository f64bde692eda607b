"""`join-feedback` as `tuneloop run` runs it, with a clock that tests turn and that ticks often.

`now` beside its data directory says how many days the clock is ahead.
"""

from __future__ import annotations

import logging

from deploy.local.folders import data_folder
from deploy.processes import run_faust
from deploy.settings import load
from schemas.codec import now_ms
from schemas.topics import DAY_MS
from streams.join_feedback import GROUP, build


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load({})
    data_folder(settings.data)

    def turned_ms() -> int:
        return now_ms() + int(float((settings.data.parent / "now").read_text()) * DAY_MS)

    app = build(
        settings.kafka_bootstrap, settings.models, str(settings.data / "faust" / GROUP),
        wait_days=settings.join_wait_days, expire_every_s=0.25, now_ms=turned_ms,
    )  # fmt: skip
    run_faust(app, settings, GROUP)


if __name__ == "__main__":
    main()
