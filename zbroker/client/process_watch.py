"""Notice the end of the broker's processes, by pidfd: no time-out decides that a process is dead.

A process of another pid namespace cannot be watched; its requests have their deadlines.
"""

from __future__ import annotations

import os
import select
from typing import Protocol

from zbroker import ids


class Poll(Protocol):
    """What waits for descriptors: a `select.poll`, or an event loop."""

    def register(self, fd: int, events: int, /) -> object:
        """Wait for this one too."""

    def unregister(self, fd: int, /) -> None:
        """Wait for it no more."""


class ProcessWatch:
    """The processes that one client watches. Its descriptors are in the caller's poll. The caller holds its lock."""

    def __init__(self, poll: Poll) -> None:
        self._poll = poll
        self._watched: dict[int, tuple[int, int]] = {}  # process number -> (pidfd, incarnation)

    def watch(self, number: int, incarnation: int) -> bool:
        """Watch this incarnation, and no older one. False: it has ended, or cannot be seen from here."""
        watched = self._watched.get(number)
        if watched is not None and watched[1] == incarnation:
            return True
        self.forget(number)
        fd = ids.open_pidfd(incarnation)
        if fd is None:
            return False
        self._watched[number] = (fd, incarnation)
        self._poll.register(fd, select.POLLIN)
        return True

    def forget(self, number: int) -> None:
        """Watch this process no more."""
        watched = self._watched.pop(number, None)
        if watched is not None:
            self._poll.unregister(watched[0])
            os.close(watched[0])

    def ended(self) -> list[int]:
        """The watched processes that have ended, without waiting."""
        if not self._watched:
            return []
        poll = select.poll()
        for fd, _ in self._watched.values():
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        return [number for number, (fd, _) in self._watched.items() if fd in ready]

    def close(self) -> None:
        """Watch nothing more."""
        for number in list(self._watched):
            self.forget(number)
