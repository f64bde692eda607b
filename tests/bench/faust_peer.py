"""The Faust worker of `typed_vs_faust`: `python -m tests.bench.faust_peer BOOTSTRAP TOPIC COUNT GROUP FOLDER`.

Reads COUNT records of TOPIC, decodes each with the project's codec, prints one JSON line {"seconds",
"partitions"} and ends. The clock runs from the first event to the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from typing import Any

import mode.loop

mode.loop.use("uvloop")

import asyncio  # noqa: E402 - the loop is chosen first

import faust  # noqa: E402

from schemas import codec  # noqa: E402
from streams.faust_app import bytes_topic, faust_app  # noqa: E402


def main() -> None:
    bootstrap, topic, count, group, folder = sys.argv[1:]
    left = int(count)
    app = faust_app(group, bootstrap, folder, 4)

    @app.agent(bytes_topic(app, topic))
    async def read(stream: Any) -> None:
        sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        done, begun = 0, 0.0
        async for event in stream.events():
            begun = begun or time.perf_counter()
            message = event.message
            _, said = codec.decode(
                topic, message.value, message.headers.items() if isinstance(message.headers, dict) else message.headers,
                partition=message.partition, offset=message.offset, timestamp_ms=int(message.timestamp * 1000),
            )  # fmt: skip
            of_partition = sums[message.partition]
            of_partition[0] += 1
            of_partition[1] += len(said.subject_id)
            done += 1
            if done == left:
                print(json.dumps({"seconds": time.perf_counter() - begun, "partitions": sums}), flush=True)
                os._exit(0)  # a worker's orderly end takes seconds and measures nothing

    worker = faust.Worker(app, loglevel="ERROR", override_logging=False, loop=asyncio.new_event_loop())
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
