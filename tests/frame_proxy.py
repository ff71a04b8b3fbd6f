"""A proxy between tcp clients and a broker that takes ZeroMQ messages apart and does to them what a bad network does.

It reads ZMTP 3 as it travels (greeting, then frames), so that it loses, doubles, delays, swaps and damages whole
messages, as no proxy of bytes could. Only record batches are damaged: they are what carries a checksum; tcp has one of
its own for the rest.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zbroker.load.plan import Plan, Target
from zbroker.record.layout import HEADER_BYTES as BATCH_HEADER_BYTES
from zbroker.wire.layout import HEADER, HEADER_BYTES, Api

GREETING_BYTES = 64
MORE, LONG, COMMAND = 1, 2, 4
BATCH_APIS = (Api.PRODUCE, Api.FETCH)
BATCH_BYTES_MIN = 64
IN_FLIGHT_MAX = 1_000

Frame = tuple[bytes, bytes]
"""What stands before a frame, and the frame."""


@dataclass(frozen=True)
class Weather:
    """What happens to a message: each a share of 0 to 1; `cut_s`: for so long nothing goes one way, then the other
    way, each time followed by as much time in which all is well; `resets`: the share that ends the connection."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    reset: float = 0.0
    delay_min_s: float = 0.0
    delay_max_s: float = 0.0
    cut_s: float = 0.0


class FrameProxy:
    """Listens at `address` and passes on to the broker at `upstream`, a (host, port). `done` counts what it did."""

    def __init__(self, upstream: tuple[str, int], weather: Weather, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._upstream = upstream
        self._weather = weather
        self._rng = random.Random(f"proxy {seed}")
        self._is_bad = False
        self._bad_since_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="frame proxy")
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = server.result(10)
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @contextmanager
    def over(self, plan: Plan, target: Target, places: list[tuple[str, int]]) -> Iterator[None]:
        """The weather is bad for as long as this lasts."""
        self._loop.call_soon_threadsafe(self._begin)
        try:
            yield
        finally:
            self._is_bad = False

    def _begin(self) -> None:
        self._bad_since_s = self._loop.time()
        self._is_bad = True

    def close(self) -> None:
        """End every connection, and listen no more."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.ensure_future(self._pass_on(reader, back, is_to_broker=True)),
            asyncio.ensure_future(self._pass_on(there, writer, is_to_broker=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, back):
                end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_to_broker: bool) -> None:
        await _pass_greeting(reader, writer)
        under_way: asyncio.Queue[tuple[float, list[list[Frame]]]] = asyncio.Queue(IN_FLIGHT_MAX)
        sender = asyncio.ensure_future(_send(under_way, writer, self._loop))
        try:
            await self._take_in(reader, under_way, sender, is_to_broker)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, list[list[Frame]]]],
        sender: asyncio.Future[None],
        is_to_broker: bool,
    ) -> None:
        held: list[Frame] | None = None
        due_s = 0.0
        while not sender.done():
            message = await _read_message(reader)
            is_command = bool(message[0][0][0] & COMMAND)
            if is_command or not self._is_bad:
                copies = [message]
            else:
                if self._happens("reset", self._weather.reset):
                    return
                copies, held = self._spoil(message, held, is_to_broker)
                due_s = max(due_s, self._loop.time() + self._delay_s())
            if held is not None and not self._is_bad:
                copies, held = [*copies, held], None
            await under_way.put((due_s, copies))

    def _spoil(
        self, message: list[Frame], held: list[Frame] | None, is_to_broker: bool
    ) -> tuple[list[list[Frame]], list[Frame] | None]:
        """What to send now, and what to hold back until after the next message."""
        weather = self._weather
        if self._is_cut(is_to_broker):
            self.done["cut"] += 1
            return [], held
        if self._happens("drop", weather.drop):
            return [], held
        if self._happens("corrupt", weather.corrupt * _is_batch(message)):
            message = self._damaged(message)
        if held is not None:
            return [message, held], None
        if self._happens("reorder", weather.reorder):
            return [], message
        return [message] * (2 if self._happens("duplicate", weather.duplicate) else 1), None

    def _happens(self, what: str, share: float) -> bool:
        does = self._rng.random() < share
        self.done[what] += does
        return does

    def _delay_s(self) -> float:
        weather = self._weather
        return self._rng.uniform(weather.delay_min_s, weather.delay_max_s)

    def _is_cut(self, is_to_broker: bool) -> bool:
        cut_s = self._weather.cut_s
        if not cut_s:
            return False
        return int((self._loop.time() - self._bad_since_s) / cut_s) % 4 == (0 if is_to_broker else 2)

    def _damaged(self, message: list[Frame]) -> list[Frame]:
        before, data = message[-1]
        flipped = bytearray(data)
        # Every other time in the header, where a batch's own checksum does not cover all.
        end = self._rng.choice((BATCH_HEADER_BYTES, len(data)))
        flipped[self._rng.randrange(end)] ^= 1 << self._rng.randrange(8)
        return [*message[:-1], (before, bytes(flipped))]


async def _send(
    under_way: asyncio.Queue[tuple[float, list[list[Frame]]]],
    writer: asyncio.StreamWriter,
    loop: asyncio.AbstractEventLoop,
) -> None:
    while True:
        due_s, messages = await under_way.get()
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        for one in messages:
            writer.writelines(part for frame in one for part in frame)
        await writer.drain()


async def _pass_greeting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each side waits for the other's first bytes before it sends the rest."""
    left = GREETING_BYTES
    while left:
        data = await reader.read(left)
        if not data:
            raise asyncio.IncompleteReadError(data, left)
        left -= len(data)
        writer.write(data)


async def _read_message(reader: asyncio.StreamReader) -> list[Frame]:
    frames: list[Frame] = []
    while True:
        before = await reader.readexactly(2)
        if before[0] & LONG:
            before += await reader.readexactly(7)
        frames.append((before, await reader.readexactly(int.from_bytes(before[1:], "big"))))
        if not before[0] & MORE:
            return frames


def _is_batch(message: list[Frame]) -> bool:
    header, last = message[0][1], message[-1][1]
    if len(message) < 2 or len(header) != HEADER_BYTES or len(last) < BATCH_BYTES_MIN:
        return False
    _, _, kind, api, *_ = HEADER.unpack(header)
    return api in BATCH_APIS and (api == Api.PRODUCE) == (kind == 0)
