"""A copy's log in memory, one record to a batch, with a disk that keeps only what was synced; and what all logs of a
world have in common."""

from __future__ import annotations

import random
from bisect import bisect_right
from operator import itemgetter

Item = tuple[int, int]  # (leader epoch, value)
_epoch_of = itemgetter(0)


class ViolationError(AssertionError):
    """A promise was broken; the text says which."""


class Written:
    """Every record that any leader wrote. Log matching follows if (epoch, offset) always has one value and one record
    before it."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def check(self, offset: int, item: Item, epoch_before: int) -> None:
        """`item` was appended somewhere at `offset`, behind a record of `epoch_before` (-1: nothing is known of it)."""
        epoch, value = item
        found = (value, epoch_before)
        known = self._known.setdefault((epoch, offset), found)
        if known == found and epoch_before <= epoch:
            return
        if known[0] != value or (known[1] != epoch_before and -1 not in (known[1], epoch_before)):
            raise ViolationError(f"log matching: {epoch}@{offset} is {known} and {(value, epoch_before)}")
        if epoch_before > epoch:
            raise ViolationError(f"epoch {epoch} behind {epoch_before} at {offset}")


class MemoryLog:
    """Answers as `CopiedLog` does. `items[0]` lies at `base`."""

    __slots__ = ("base", "items", "log_start", "starts", "synced", "written")

    def __init__(self, written: Written) -> None:
        self.written = written
        self.base = 0
        self.log_start = 0
        self.synced = 0
        self.items: list[Item] = []
        self.starts: list[tuple[int, int]] = []

    @property
    def log_end(self) -> int:
        return self.base + len(self.items)

    @property
    def last_epoch(self) -> int:
        return self.starts[-1][0] if self.starts else -1

    def end_offset_for(self, epoch: int) -> tuple[int, int]:
        number = bisect_right(self.starts, epoch, key=_epoch_of) - 1
        if number < 0:
            return -1, -1
        end = self.starts[number + 1][1] if number + 1 < len(self.starts) else self.log_end
        return self.starts[number][0], end

    def batch_base(self, offset: int) -> int:
        return offset

    def append(self, item: Item) -> None:
        items, starts = self.items, self.starts
        offset = self.base + len(items)
        self.written.check(offset, item, items[-1][0] if items else -1)
        if not starts or item[0] != starts[-1][0]:
            starts.append((item[0], offset))
        items.append(item)

    def at(self, offset: int) -> Item:
        return self.items[offset - self.base]

    def slice(self, start: int, end: int) -> list[Item]:
        return self.items[start - self.base : end - self.base]

    def cut(self, offset: int) -> None:
        assert self.base <= offset <= self.log_end
        del self.items[offset - self.base :]
        self.synced = min(self.synced, offset)
        self.log_start = min(self.log_start, offset)
        while self.starts and self.starts[-1][1] >= offset:
            self.starts.pop()

    def reset(self, offset: int) -> None:
        self.base = self.log_start = self.synced = offset
        self.items.clear()
        self.starts.clear()

    def trim(self, offset: int) -> None:
        self.log_start = max(self.log_start, min(offset, self.log_end))

    def lose(self, rng: random.Random) -> int:
        """Lose 80 to 100 % of what was not synced; give how many records."""
        unsynced = self.log_end - self.synced
        lost = min(unsynced, round(unsynced * rng.uniform(0.8, 1.0)))
        if lost:
            self.cut(self.log_end - lost)
        return lost
