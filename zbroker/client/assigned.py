"""Where a consumer stands in one partition: the position, and what was fetched and not given out yet.

Guarantees: the position is the offset of the next record that is given out, or lies before it where compaction took
records away; it moves only when records are given out, over such gaps, or by a seek.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from zbroker.client.source import Source
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord
from zbroker.record.view import RecordBatch

Reset = Literal["earliest", "latest", "none"]


class Assigned:
    """One partition that is read: the position, and what was fetched and not given out yet."""

    __slots__ = (
        "_end", "_first", "_offsets", "_records", "_run_max", "_shown", "goal", "offset", "paused", "ready", "reset",
        "source", "topic_id", "tp", "was_read",
    )  # fmt: skip

    def __init__(self, tp: TopicPartition, reset: Reset) -> None:
        self.tp = tp
        self.topic_id = 0
        self.offset: int | None = None
        self.reset: Reset = reset
        self.paused = False
        self.source: Source | None = None
        self.ready: deque[RecordBatch] = deque()
        self.was_read = False
        self.goal = 0
        self._records: list[ConsumerRecord[Any, Any]] = []
        self._first = self._end = 0
        self._run_max = 0
        self._shown = 0
        self._offsets: Sequence[int] | None = None  # of `_records`, when compaction left gaps between them

    @property
    def has_some(self) -> bool:
        """Whether something that was fetched waits to be given out."""
        return bool(self.ready or self._records)

    @property
    def awaited(self) -> int:
        """Something is new when the high watermark is above this; `goal` is ahead while too little is there."""
        assert self.offset is not None
        return max(self.offset, self.goal)

    def high_watermark(self) -> int | None:
        """As the source shows it, but never below what was shown before, nor below what was read; None while there is
        no source.

        A new leader begins with what it knew as a follower, and hears within moments how far the others are. A seek
        begins anew: after an election that lost records the log may really be shorter.
        """
        found = None if self.source is None else self.source.high_watermark()
        if found is None:
            return None
        read = self.offset if self.was_read and self.offset is not None else 0
        self._shown = max(self._shown, found, read)
        return self._shown

    def seek(self, offset: int) -> None:
        """The next record is the one at `offset`."""
        self.offset = offset
        self._shown = 0
        self.was_read = False
        self.drop()

    def seek_to(self, reset: Reset) -> None:
        """Find the position anew: at the beginning, at the end, or not at all ("none")."""
        self.offset = None
        self._shown = 0
        self.reset = reset
        self.was_read = False
        self.drop()

    def drop(self) -> None:
        """Forget what was fetched."""
        self.ready.clear()
        self._records, self._offsets = [], None

    def fill(self, max_bytes: int) -> bool:
        """Whether a batch with the position in it is at hand, fetched now if need be. Raises what the source raises."""
        offset, ready = self.offset, self.ready
        if offset is None:
            return False
        if ready:
            head = ready[0].header
            if head.base_offset <= offset < head.next_offset:
                return True
            ready.clear()
        source = self.source
        if source is None or not source.has_more(offset):
            return False
        ready.extend(source.read(offset, max_bytes))
        return bool(ready)

    def current(self, max_bytes: int) -> tuple[list[ConsumerRecord[Any, Any]], int] | None:
        """The records of the batch that holds the position, and the position's index in them; None: nothing is there.

        Raises what the source, the decoding of the batch or a deserializer raises; the position stays.
        """
        offset = self.offset
        if offset is None:
            return None
        index = offset - self._first
        if self._offsets is None and 0 <= index < len(self._records):
            return self._records, index
        while True:
            if self._offsets is not None and self._first <= offset < self._end:
                index = bisect_left(self._offsets, offset)
                if index < len(self._records):
                    return self._records, index
                # What lay between the last record and the end of its batch was compacted away.
                self.offset = offset = self._end
            if not self.fill(max_bytes):
                return None
            batch = self.ready.popleft()
            self._records, self._first, self._end = batch.records(), batch.base_offset, batch.header.next_offset
            self._offsets = batch.offsets() if batch.header.is_compacted else None
            if self._offsets is None:
                return self._records, offset - self._first

    def take(self, count_max: int, max_bytes: int) -> list[ConsumerRecord[Any, Any]]:
        """Up to `count_max` records; the position is behind them. Raises as `current`, unless records came first."""
        found: list[ConsumerRecord[Any, Any]] = []
        while count_max > 0:
            try:
                current = self.current(max_bytes)
            except Exception:
                if not found:
                    raise
                break
            if current is None:
                break
            records, index = current
            is_part = index > 0 or len(records) > count_max
            piece = records[index : index + count_max] if is_part else records
            end = index + len(piece)
            if end < len(records):
                self.offset = piece[-1].offset + 1
            else:
                # The list itself may be given out: it belongs to the caller now.
                self._records, self._offsets = [], None
                self.offset = self._end
            self.was_read = True
            count_max -= len(piece)
            if found:
                found += piece
            else:
                found = piece
            if not (self._records or self.ready or (self.source is not None and self.source.has_more(self.offset))):
                break
        return found

    def rest(self) -> list[ConsumerRecord[Any, Any]]:
        """What `current` found, from the position on."""
        assert self.offset is not None
        index = bisect_left(self._offsets, self.offset) if self._offsets is not None else self.offset - self._first
        if self._run_max:
            return self._records[index : index + self._run_max]
        return self._records[index:] if index else self._records

    def keep_run(self, count_max: int) -> int:
        """Let `rest` give no more than that. Returns how many it gives."""
        self._run_max = count_max
        return len(self.rest())

    def keep_first(self) -> int:
        """Forget all batches that were fetched but the first. Returns how many records it has."""
        while len(self.ready) > 1:
            self.ready.pop()
        return self.ready[0].header.record_count

    def go_back(self, offset: int) -> None:
        """What was taken from `offset` on was not given out after all."""
        self.offset = offset
        self.drop()
