"""How a consumer sleeps on an event loop: it says what it waits for, and awaits the next news.

Guarantees: those of `client.sleep`; only the sleeping itself is a future, which other tasks and a cancellation may end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from zbroker.aio.connection import LoopConnection
from zbroker.aio.replay import Pause
from zbroker.client.assigned import Assigned
from zbroker.client.settings import ConsumerSettings
from zbroker.client.sleep import Sleep, watched_locally


class Rest(Sleep):
    """A Sleep whose `until_news` returns at once and leaves the sleeping to `rest`."""

    def __init__(self, connection: LoopConnection, settings: ConsumerSettings) -> None:
        super().__init__(connection, settings)
        self._loop_connection = connection
        self._timeout_ms = 0.0
        self._wait_flags = 0  # between its turns this connection sleeps, and what ends that are answers
        self._future: asyncio.Future[None] | None = None
        connection.on_turn = self._look

    def until_news(self, partitions: Sequence[Assigned], timeout_ms: float) -> bool:
        """Leave waits with the workers; `rest` sleeps then. In a call that is replayed: sleep by a pause. True: look
        again, whatever came meanwhile."""
        watched = watched_locally(partitions)
        if timeout_ms > 0 and watched:
            timeout_ms = 0 if self._is_there(watched) else min(timeout_ms, self._arm(watched))
        self._timeout_ms = max(0.0, timeout_ms)
        if self._loop_connection.is_replaying:
            raise Pause("rest", self.rest)
        return True

    def _is_there(self, watched: Sequence[Assigned]) -> bool:
        return any(one.source is not None and one.source.has_more(one.awaited) for one in watched)

    async def rest(self) -> None:
        """Sleep until there are news, as long as `until_news` has found it safe."""
        if self._has_news or self.is_woken or self._timeout_ms <= 0:
            await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            self._future = future = loop.create_future()
            timer = loop.call_later(self._timeout_ms / 1000, self._end)
            try:
                await future
            finally:
                timer.cancel()
                self._future = None
        self._has_news = False

    def _look(self) -> None:
        if self._is_over():
            self._end()

    def _end(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
