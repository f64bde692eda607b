"""A TCP proxy before the broker that knows enough of Kafka's wire protocol to lose one named response.

A request is a 4-byte length, api_key (int16), api_version (int16), correlation id (int32); a response is a length and
the correlation id. Everything is passed on unread but those. Runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import struct
import threading
from collections import defaultdict
from collections.abc import Callable

from deploy.local.ports import LOOPBACK

APIS = {
    "Produce": 0, "OffsetCommit": 8, "InitProducerId": 22, "AddOffsetsToTxn": 25, "EndTxn": 26, "TxnOffsetCommit": 28,
}  # fmt: skip
_HEAD = struct.Struct(">hhi")
_ID = struct.Struct(">i")


class Proxy:
    """Listens on `port` and passes on to `upstream`, both on the loopback."""

    def __init__(self, port: int, upstream: int) -> None:
        self._port, self._upstream = port, upstream
        self._lost: dict[int, list[threading.Event]] = defaultdict(list)
        self._watched: dict[int, list[tuple[Callable[[], None], threading.Event]]] = defaultdict(list)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def lose(self, api: str) -> threading.Event:
        """Swallow the next response of this api and cut its connection; set when that has happened."""
        happened = threading.Event()
        self._lost[APIS[api]].append(happened)
        return happened

    def at(self, api: str, action: Callable[[], None]) -> threading.Event:
        """Run `action` right after the next request of this api was passed on; set when that has happened."""
        happened = threading.Event()
        self._watched[APIS[api]].append((action, happened))
        return happened

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self._port)

    async def _mirror_absence(self) -> None:
        """Refuse connections until the broker takes some: a client backs off from a refusal, not from a hang-up."""
        self._server.close()
        while True:
            try:
                _, writer = await asyncio.open_connection(LOOPBACK, self._upstream)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await self._listen()
                return

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(LOOPBACK, self._upstream)
        except OSError:
            writer.transport.abort()
            if self._server.is_serving():
                await self._mirror_absence()
            return
        asked: dict[int, int] = {}
        pumps = [
            asyncio.ensure_future(self._requests(reader, up_writer, asked)),
            asyncio.ensure_future(self._responses(up_reader, writer, asked)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for side in (writer, up_writer):
            side.transport.abort()

    async def _requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: dict[int, int]) -> None:
        while True:
            frame = await _frame(source)
            api, _, correlation = _HEAD.unpack_from(frame, 4)
            asked[correlation] = api
            sink.write(frame)
            await sink.drain()
            if self._watched.get(api):
                action, happened = self._watched[api].pop(0)
                action()
                happened.set()

    async def _responses(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: dict[int, int]) -> None:
        while True:
            frame = await _frame(source)
            api = asked.pop(_ID.unpack_from(frame, 4)[0], -1)
            if self._lost.get(api):
                self._lost[api].pop(0).set()
                return  # the connection goes with it: a stream that misses a frame is of no use to anybody
            sink.write(frame)
            await sink.drain()


async def _frame(source: asyncio.StreamReader) -> bytes:
    """One whole frame with its length. Raises IncompleteReadError where the stream ends."""
    size = await source.readexactly(4)
    return size + await source.readexactly(_ID.unpack(size)[0])
