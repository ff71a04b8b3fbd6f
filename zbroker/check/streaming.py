"""The checker for histories too long to keep: each value is a producer and a counter, and only intervals are stored.

Guarantees: O(1) for a record in order, a few numbers for each gap; what is reported is exact. It sees losses (told
apart by where they lie: the middle is the worst), duplicates and records out of a producer's order, not the finer
anomalies of `checker`. The way of counting is that of NATS' JetStream tests by Jepsen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct

Stream = tuple[str, str]
"""(producer, key): counters of a producer rise by one with each record that it sends to a key."""


class Intervals:
    """A set of numbers as half-open intervals, cheap where numbers come in order."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, number: int) -> bool:
        """Put a number in. False: it was there."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, number) - 1
        if at >= 0 and number < ends[at]:
            return False
        joins_before = at >= 0 and ends[at] == number
        joins_after = at + 1 < len(starts) and starts[at + 1] == number + 1
        if joins_before and joins_after:
            ends[at] = ends[at + 1]
            del starts[at + 1], ends[at + 1]
        elif joins_before:
            ends[at] = number + 1
        elif joins_after:
            starts[at + 1] = number
        else:
            starts.insert(at + 1, number)
            ends.insert(at + 1, number + 1)
        return True

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def __len__(self) -> int:
        return sum(end - start for start, end in zip(self._starts, self._ends, strict=True))

    def __iter__(self) -> Iterator[int]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield from range(start, end)

    @property
    def bounds(self) -> tuple[int, int]:
        """(smallest, largest), or (0, -1)."""
        return (self._starts[0], self._ends[-1] - 1) if self._starts else (0, -1)


class Losses(Struct):
    """Acknowledged records that were not read, by where they lie among those that were."""

    prefix: int = 0
    middle: int = 0
    postfix: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.prefix + self.middle + self.postfix


class Summary(Struct):
    """What a run came to."""

    acknowledged: int
    read: int
    lost: Losses
    duplicated: int
    reordered: int
    unacknowledged_read: int
    examples: list[str]

    @property
    def is_sound(self) -> bool:
        """Nothing acknowledged was lost, nothing came twice, nothing out of order."""
        return not (self.lost.total or self.duplicated or self.reordered)


class CounterChecker:
    """See the module. `acknowledged` and `read` may be called in any order between each other; one thread at a time."""

    def __init__(self) -> None:
        self._acknowledged: dict[Stream, Intervals] = {}
        self._read: dict[Stream, Intervals] = {}
        self._latest: dict[Stream, int] = {}
        self._duplicated = self._reordered = 0
        self._examples: list[str] = []

    def acknowledged(self, producer: str, key: str, counter: int) -> None:
        """The producer was told that its record is safe."""
        self._acknowledged.setdefault((producer, key), Intervals()).add(counter)

    def read(self, producer: str, key: str, counter: int) -> None:
        """The next record of `key` is this one. Read each key once, from its start."""
        stream = (producer, key)
        found = self._read.get(stream)
        if found is None:
            found = self._read[stream] = Intervals()
        if not found.add(counter):
            self._duplicated += 1
            self._note(f"{key}: {producer}-{counter} twice")
            return
        latest = self._latest.get(stream, -1)
        if counter < latest:
            self._reordered += 1
            self._note(f"{key}: {producer}-{counter} after {producer}-{latest}")
        else:
            self._latest[stream] = counter

    def summary(self) -> Summary:
        """What it comes to; call it when everything has been read."""
        lost = Losses()
        for stream, acknowledged in self._acknowledged.items():
            found = self._read.get(stream, Intervals())
            first, last = found.bounds
            for counter in acknowledged:
                if counter in found:
                    continue
                self._note(f"{stream[1]}: {stream[0]}-{counter} acknowledged and gone")
                if counter < first or last < 0:
                    lost.prefix += 1
                elif counter > last:
                    lost.postfix += 1
                else:
                    lost.middle += 1
        extra = sum(
            sum(counter not in self._acknowledged.get(stream, ()) for counter in found)
            for stream, found in self._read.items()
        )
        return Summary(
            acknowledged=sum(map(len, self._acknowledged.values())),
            read=sum(map(len, self._read.values())),
            lost=lost,
            duplicated=self._duplicated,
            reordered=self._reordered,
            unacknowledged_read=extra,
            examples=self._examples,
        )

    def _note(self, what: str) -> None:
        if len(self._examples) < 20:
            self._examples.append(what)
