"""The readers' side of a process's board. Why these reads are safe stands at the top of `board`.

Guarantees: a reader maps read-only, never blocks on the writer, and works as well on the board of a dead process. Every
result is a value or a set of values that was true at one instant, or None where the cell is no longer that partition's.
"""

from __future__ import annotations

import os
from pathlib import Path

from zbroker import ids
from zbroker.errors import StorageError
from zbroker.shm import layout, region
from zbroker.shm.board import SNAPSHOT_TRIES_MAX, PartitionView, parse_board_name
from zbroker.shm.fence import WEAK_ORDER, fence
from zbroker.shm.layout import CellState, Counter, ProcessState

_YIELD_EVERY = 50


def find_boards(boards_dir: Path, process_name: str | None = None) -> list[tuple[str, int, Path]]:
    """(process name, incarnation, path) of every board that is there, newest first. Empty without the directory."""
    try:
        names = os.listdir(boards_dir)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        parsed = parse_board_name(name)
        if parsed is not None and process_name in (None, parsed[0]):
            found.append((*parsed, boards_dir / name))
    return sorted(found, key=lambda entry: -entry[1])


class HeaderReader:
    """The header page, the same on every board."""

    def __init__(self, area: region.Region, path: Path, kind: int) -> None:
        words = area.u64
        self.path = path
        self._region = area
        self._words = words
        layout.check_header(words, layout.BOARD_MAGIC, layout.BOARD_VERSION, str(path))
        self.kind: int = words[layout.H_KIND]
        if kind != self.kind:
            raise StorageError(f"{path}: a board of kind {self.kind}, not {kind}", hint="another process's board")
        self.process_number: int = words[layout.H_NUMBER]
        self.incarnation: int = words[layout.H_INCARNATION]
        self.pid: int = words[layout.H_PID]
        self.cell_count: int = words[layout.H_CELL_COUNT]
        self._cells_word: int = words[layout.H_CELLS_POSITION] // layout.WORD_BYTES

    @property
    def words(self) -> memoryview:
        """The board's words, for a Bell on `layout.H_SLEEP_SEQ`."""
        return self._words

    @property
    def beat_ns(self) -> int:
        """When its loop last turned, on the monotonic clock."""
        return int(self._words[layout.H_BEAT_NS])

    @property
    def io_since_ns(self) -> int:
        """Since when it waits for the disk; 0 when it does not."""
        return int(self._words[layout.H_IO_SINCE_NS])

    @property
    def state(self) -> ProcessState:
        """What the process says about itself."""
        return ProcessState(self._words[layout.H_STATE])

    @property
    def is_asleep(self) -> bool:
        """Whether the process waits for a doorbell."""
        return bool(self._words[layout.H_SLEEP_SEQ] & 1)

    @property
    def is_alive(self) -> bool:
        """Whether exactly this incarnation still runs."""
        return ids.is_alive(self.incarnation)

    def counter(self, counter: Counter) -> int:
        """One counter."""
        return int(self._words[layout.H_COUNTERS + counter])

    def counters(self) -> dict[Counter, int]:
        """All counters."""
        return {counter: self.counter(counter) for counter in Counter}

    def close(self) -> None:
        """Unmap."""
        self._region.close()


def _check_extent(area: region.Region, path: Path, cell_words: int) -> None:
    needed = area.u64[layout.H_CELLS_POSITION] + area.u64[layout.H_CELL_COUNT] * cell_words * layout.WORD_BYTES
    if needed > area.size_bytes:
        raise StorageError(f"{path}: {area.size_bytes} bytes where its header needs {needed}", hint="zbroker status")


def attach_board(path: Path, kind: int, cell_words: int) -> region.Region:
    """Map a board and check its size against its header. The caller's reader checks the rest, and owns the region."""
    area = region.attach_file(path)
    try:
        layout.check_header(area.u64, layout.BOARD_MAGIC, layout.BOARD_VERSION, str(path))
        if area.u64[layout.H_KIND] == kind:
            _check_extent(area, path, cell_words)
    except BaseException:
        area.close()
        raise
    return area


class PartitionCellReader:
    """A partition's cell on one board, for a consumer: the hot path."""

    __slots__ = ("_high_watermark_index", "_words", "at", "key", "slot")

    def __init__(self, words: memoryview, at: int, slot: int, key: int) -> None:
        self._words = words
        self._high_watermark_index = at + layout.P_HIGH_WATERMARK
        self.at = at
        self.slot = slot
        self.key = key

    def high_watermark(self) -> int:
        """One load. Enough to see that nothing is new; before reading further, ask `frontier`."""
        return self._words[self._high_watermark_index]

    def frontier(self) -> tuple[int, int, int] | None:
        """(high watermark, base offset of the segment that holds it, byte position in it), of one instant.

        None when the cell is not this partition's any more, or its process died while changing it: ask the metadata.
        """
        words, at = self._words, self.at
        for attempt in range(SNAPSHOT_TRIES_MAX):
            version = words[at]
            if WEAK_ORDER:
                fence()
            high_watermark = words[at + layout.P_HIGH_WATERMARK]
            if WEAK_ORDER:
                fence()
            position = words[at + layout.P_POSITION]
            segment_base = words[at + layout.P_SEGMENT_BASE]
            key = words[at + layout.P_KEY]
            if WEAK_ORDER:
                fence()
            if words[at] == version and not version & 1:
                return (high_watermark, segment_base, position) if key == self.key else None
            if attempt % _YIELD_EVERY == 0:
                os.sched_yield()
        return None

    def view(self) -> PartitionView | None:
        """Everything in the cell, of one instant; None as for `frontier`."""
        found = read_cell(self._words, self.at)
        return found if found is not None and layout.cell_key(found.topic_id, found.partition) == self.key else None


def read_cell(words: memoryview, at: int) -> PartitionView | None:
    """A consistent look at the cell at word `at`; None for a free cell, or one whose process died while changing it."""
    for attempt in range(SNAPSHOT_TRIES_MAX):
        version = words[at]
        if WEAK_ORDER:
            fence()
        # The high watermark on its own and first: `publish` stores it last, outside the seqlock.
        high_watermark = words[at + layout.P_HIGH_WATERMARK]
        if WEAK_ORDER:
            fence()
        cell = words[at : at + layout.PARTITION_CELL_WORDS].tolist()
        if WEAK_ORDER:
            fence()
        if words[at] == version and not version & 1:
            if cell[layout.P_KEY] == 0:
                return None
            cell[layout.P_HIGH_WATERMARK] = high_watermark
            state = CellState(cell[layout.P_STATE])
            key = layout.split_key(cell[layout.P_KEY])
            stated = cell[layout.P_LEADER_EPOCH : layout.P_STATE]
            return PartitionView._make(
                (*key, *stated, state, *cell[layout.P_READERS_NEXT : layout.P_READERS_SEEN_NS + 1])
            )
        if attempt % _YIELD_EVERY == 0:
            os.sched_yield()
    return None


class BoardReader(HeaderReader):
    """A process's board, for everybody else."""

    @classmethod
    def open(cls, path: Path) -> BoardReader:
        """Map a board. Raises FileNotFoundError, StorageError, UnsupportedVersionError."""
        area = attach_board(path, layout.KIND_PROCESS, layout.PARTITION_CELL_WORDS)
        try:
            return cls(area, path, layout.KIND_PROCESS)
        except BaseException:
            area.close()
            raise

    @classmethod
    def find(cls, boards_dir: Path, process_name: str) -> BoardReader | None:
        """The board of the newest live incarnation of a process; None when none lives."""
        for _, incarnation, path in find_boards(boards_dir, process_name):
            if ids.is_alive(incarnation):
                try:
                    return cls.open(path)
                except FileNotFoundError:
                    continue
        return None

    @property
    def cells_used(self) -> int:
        """Slots below this have been given out at some time."""
        return min(int(self._words[layout.H_CELLS_USED]), self.cell_count)

    def find_cell(self, topic_id: int, partition: int) -> int | None:
        """The slot of a partition, or None when it is not on this board. About 10 ns a slot."""
        first = self._cells_word + layout.P_KEY
        step = layout.PARTITION_CELL_WORDS
        keys = self._words[first : first + self.cells_used * step : step].tolist()
        try:
            return keys.index(layout.cell_key(topic_id, partition))
        except ValueError:
            return None

    def read_cell(self, slot: int) -> PartitionView | None:
        """One consistent look at the partition in a slot; None when it is free."""
        assert 0 <= slot < self.cell_count, f"slot {slot} of {self.cell_count}"
        return read_cell(self._words, self._cells_word + slot * layout.PARTITION_CELL_WORDS)

    def partition_cell(self, topic_id: int, partition: int) -> PartitionCellReader | None:
        """A reader for one partition's cell, or None when it is not on this board."""
        slot = self.find_cell(topic_id, partition)
        return None if slot is None else self.cell_at(slot, topic_id, partition)

    def cell_at(self, slot: int, topic_id: int, partition: int) -> PartitionCellReader:
        """A reader for a slot that is known to be the partition's (it says None later when it is not)."""
        assert 0 <= slot < self.cell_count, f"slot {slot} of {self.cell_count}"
        at = self._cells_word + slot * layout.PARTITION_CELL_WORDS
        return PartitionCellReader(self._words, at, slot, layout.cell_key(topic_id, partition))

    def partitions(self) -> list[PartitionView]:
        """Every partition on the board."""
        views = (self.read_cell(slot) for slot in range(self.cells_used))
        return [view for view in views if view is not None]
