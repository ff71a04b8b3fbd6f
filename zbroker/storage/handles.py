"""The segment files that a process keeps open: at most so many, the longest unused is closed first.

Guarantees: a call that finds no free descriptor closes the longest unused one here and tries again. One
instance serves all logs of a process, so that thousands of partitions need no more descriptors than the limit plus one
lock each. Single-threaded: another thread works on a duplicate.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from zbroker.storage.files import Files

OPEN_SEGMENTS_MAX = 512
LOADED_INDEXES_MAX = 32


class Openable(Protocol):
    """What can be opened again at any time."""

    def open_fd(self) -> int:
        """Open it."""


class Indexed(Protocol):
    """What holds indexes in memory that it can load again."""

    def forget_indexes(self) -> None:
        """Free them."""


class Handles:
    """Open descriptors by owner, and holders of loaded indexes, least recently used first."""

    def __init__(self, files: Files, open_max: int = OPEN_SEGMENTS_MAX) -> None:
        assert open_max >= 2
        self._files = files
        self._open_max = open_max
        files.make_room = self.make_room
        self._open: OrderedDict[Openable, int] = OrderedDict()
        self._loaded: OrderedDict[Indexed, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def fd(self, owner: Openable) -> int:
        """The owner's descriptor, opened if need be."""
        fd = self._open.get(owner)
        if fd is not None:
            self._open.move_to_end(owner)
            return fd
        fd = owner.open_fd()
        self.adopt(owner, fd)
        return fd

    def make_room(self) -> bool:
        """Close the longest unused descriptor, for a call that finds no free one. False: none is open."""
        if not self._open:
            return False
        self._close_oldest()
        return True

    def adopt(self, owner: Openable, fd: int) -> None:
        """Take over a descriptor that the owner has opened."""
        while len(self._open) >= self._open_max:
            self._close_oldest()
        self._open[owner] = fd

    def drop(self, owner: Openable) -> None:
        """Close the owner's descriptor if it is open."""
        fd = self._open.pop(owner, None)
        if fd is not None:
            self._files.close(fd)

    def use_indexes(self, owner: Indexed) -> None:
        """The owner's indexes are in memory and in use: those unused for longest are freed."""
        self._loaded[owner] = None
        self._loaded.move_to_end(owner)
        if len(self._loaded) > LOADED_INDEXES_MAX:
            self._loaded.popitem(last=False)[0].forget_indexes()

    def drop_indexes(self, owner: Indexed) -> None:
        """The owner is going away."""
        self._loaded.pop(owner, None)

    def _close_oldest(self) -> None:
        _, fd = self._open.popitem(last=False)
        self._files.close(fd)
