"""One task at a time, and an end: how a consumer may be used on an event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from zbroker.errors import ClosedError, ConcurrentUseError


class OneTask:
    """A context manager around each use. A second task gets ConcurrentUseError and disturbs nothing."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._owner: asyncio.Task[Any] | None = None
        self._depth = 0
        self._is_free = asyncio.Event()
        self._is_free.set()
        self.is_closed = False

    def __enter__(self) -> None:
        if self.is_closed:
            raise ClosedError(f"this {self._kind} is closed")
        task = asyncio.current_task()
        if self._depth and self._owner is not task:
            raise ConcurrentUseError(f"a {self._kind} is used by one task at a time; wakeup() and close() by any")
        self._owner = task
        self._depth += 1
        self._is_free.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._is_free.set()

    async def end(self) -> None:
        """Allow no use any more, and return when the one that is under way has left, unless it is the caller's."""
        self.is_closed = True
        if self._owner is not asyncio.current_task():
            await self._is_free.wait()
