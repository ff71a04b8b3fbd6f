"""What was begun of one partition and in which order, and how far everything is done.

Guarantees: `committable` never passes a record that was begun and is not finished, whatever order they finish in.
"""

from __future__ import annotations

from collections import deque


class Unfinished:
    """See the module. Offsets rise, with gaps where the log has them."""

    def __init__(self) -> None:
        self._offsets: deque[int] = deque()
        self._done: set[int] = set()
        self.committable: int | None = None
        """Every record before this one that was begun is finished; None: no first one is yet."""

    def __len__(self) -> int:
        return len(self._offsets) - len(self._done)

    def begin(self, offset: int) -> None:
        """A record is worked on from now on, or waits to be. One that lies before the last one begins a new history:
        what was read before is gone from the log."""
        if self._offsets and offset <= self._offsets[-1]:
            self._offsets.clear()
            self._done.clear()
        self._offsets.append(offset)

    def finish(self, offset: int) -> None:
        """The work on it is done."""
        if self._offsets and self._offsets[0] <= offset <= self._offsets[-1]:
            self._done.add(offset)
        while self._offsets and self._offsets[0] in self._done:
            first = self._offsets.popleft()
            self._done.remove(first)
            self.committable = first + 1
