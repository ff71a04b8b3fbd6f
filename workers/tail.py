"""Where the newest batches of a led partition are in its active segment, so that followers need no search for them.

Guarantees: the same answer as the log's own search would give. It remembers `BATCHES_MAX` batches of one segment; for
older ones, and for another segment, the log is asked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

from zbroker.storage.copied_log import CopiedLog, Range

BATCHES_MAX: Final = 4_096


class Tail:
    """See the module. `note` is called after each append."""

    __slots__ = ("_base", "_ends", "_first_offset", "_first_position", "_log", "_positions")

    def __init__(self, log: CopiedLog) -> None:
        self._log = log
        self._begin()

    def _begin(self) -> None:
        log = self._log
        self._base = log.active_base
        self._first_offset, self._first_position = log.log_end, log.active_position
        self._ends: list[int] = []
        self._positions: list[int] = []

    def note(self) -> None:
        """The log ends with another batch than the last time, one further, or it is where it was."""
        log = self._log
        end = log.log_end
        if log.active_base != self._base:
            self._begin()
            return
        if end == (self._ends[-1] if self._ends else self._first_offset):
            return
        self._ends.append(end)
        self._positions.append(log.active_position)
        if len(self._ends) > BATCHES_MAX:
            half = BATCHES_MAX // 2
            self._first_offset, self._first_position = self._ends[half - 1], self._positions[half - 1]
            del self._ends[:half]
            del self._positions[:half]

    def range_from(self, offset: int, size_bytes_max: int) -> Range:
        """As `CopiedLog.range_from`; `offset` is the base of a batch."""
        ends, positions = self._ends, self._positions
        if offset < self._first_offset or self._log.active_base != self._base or not ends or ends[-1] <= offset:
            return self._log.range_from(offset, size_bytes_max)
        number = bisect_right(ends, offset)
        begins_at = ends[number - 1] if number else self._first_offset
        if begins_at != offset:
            return self._log.range_from(offset, size_bytes_max)
        position = positions[number - 1] if number else self._first_position
        last = max(number, bisect_right(positions, position + size_bytes_max, lo=bisect_left(ends, offset)) - 1)
        return Range(self._base, position, positions[last] - position, ends[last])
