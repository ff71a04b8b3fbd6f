"""A process's board: one mapped page file on which it publishes what others may know without asking.

WHY A READER IS NEVER MISLED. Every word of a board is stored by the process that the file is named after (by one thread
of it), except `successor`; everybody else maps it read-only. A board belongs to one incarnation, so a process that is
thought dead and still runs writes to a board that nobody follows any more.

In a partition's cell, an append stores log_end, position, ..., and the high watermark last. x86 keeps stores in order,
and loads in order: a reader that loads the high watermark first and the position second gets a position that covers
it. It may get a later position with an earlier high watermark; that is safe, because the position only bounds the
mapping, and bytes below it are written before it is stored. One load of the high watermark alone is always a value
that was true.

What changes more than that (a roll, retention, a new leader epoch, a slot given to another partition) is stored between
two stores of `version`, odd and then even (a seqlock). A reader loads version, high watermark, position, version: even
and equal means that no such change lay between. It tries a bounded number of times, since the writer may have died at
odd; then the cell is reported as gone, and the reader asks the metadata. Key and state are part of what is read, so a
slot that was given to another partition can not be taken for the old one.

Counters and beats are single words that may be stale by one store; no decision needs two of them from one instant.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from zbroker import ids
from zbroker.errors import PolicyViolationError
from zbroker.shm import layout, region
from zbroker.shm.doorbell import Sleeper
from zbroker.shm.fence import WEAK_ORDER, fence
from zbroker.shm.layout import CellState, Counter, ProcessState

CELLS_DEFAULT = 4096
SNAPSHOT_TRIES_MAX = 2_000
READERS_GONE_NS = 60_000_000_000  # without a question for so long, those who asked are taken to have left
_SUFFIX = ".board"


def board_path(boards_dir: Path, process_number: int, incarnation: int) -> Path:
    """Where the board of one run of one process lies."""
    return boards_dir / f"{ids.process_name(process_number)}.{incarnation:016x}{_SUFFIX}"


def parse_board_name(name: str) -> tuple[str, int] | None:
    """(process name, incarnation) of a board's file name; None for any other name."""
    stem, _, incarnation = name.removesuffix(_SUFFIX).rpartition(".")
    try:
        ids.process_number(stem)
        parsed = int(incarnation, 16)
    except ValueError:
        return None
    return (stem, parsed) if name == f"{stem}.{parsed:016x}{_SUFFIX}" else None


class PartitionView(NamedTuple):
    """One consistent look at a partition's cell."""

    topic_id: int
    partition: int
    leader_epoch: int
    log_start: int
    log_end: int
    segment_base: int
    position: int
    high_watermark: int
    durable: int
    last_append_ns: int
    size_bytes: int
    segment_count: int
    state: CellState
    readers_next: int = 0
    readers_seen_ns: int = 0

    @property
    def reader_offset(self) -> int | None:
        """The highest offset that a reader has asked for; None: none has asked since this process leads.

        `readers_seen_ns` says when one asked last, on the monotonic clock.
        """
        return self.readers_next - 1 if self.readers_next else None


class PartitionCellWriter:
    """A partition's cell, for the process that leads it. `free` on the board gives it back."""

    __slots__ = ("_high_watermark", "_version", "_words", "key", "slot")

    def __init__(self, words: memoryview, slot: int, key: int) -> None:
        self.slot = slot
        self.key = key
        at = layout.HEADER_BYTES // layout.WORD_BYTES + slot * layout.PARTITION_CELL_WORDS
        self._words = words[at : at + layout.PARTITION_CELL_WORDS]
        self._version: int = self._words[layout.P_VERSION]
        self._high_watermark: int = 0

    def publish(self, log_end: int, position: int, high_watermark: int, size_bytes: int, last_append_ns: int) -> None:
        """After an append, or when the high watermark moves within its segment: the hot path, high watermark last."""
        words = self._words
        assert high_watermark >= self._high_watermark, f"{high_watermark} after {self._high_watermark}"
        words[layout.P_LOG_END] = log_end
        words[layout.P_POSITION] = position
        words[layout.P_SIZE_BYTES] = size_bytes
        words[layout.P_LAST_APPEND_NS] = last_append_ns
        if WEAK_ORDER:
            fence()
        self._high_watermark = words[layout.P_HIGH_WATERMARK] = high_watermark

    def restate(
        self,
        *,
        leader_epoch: int,
        log_start: int,
        log_end: int,
        segment_base: int,
        position: int,
        high_watermark: int,
        durable: int,
        size_bytes: int,
        segment_count: int,
        state: CellState = CellState.LEADING,
        last_append_ns: int | None = None,
    ) -> None:
        """Publish everything at once (new leader, roll, retention): readers see all of it or none."""
        assert high_watermark >= self._high_watermark, f"{high_watermark} after {self._high_watermark}"
        words = self._words
        self._open()
        words[layout.P_LEADER_EPOCH] = leader_epoch
        words[layout.P_LOG_START] = log_start
        words[layout.P_LOG_END] = log_end
        words[layout.P_SEGMENT_BASE] = segment_base
        words[layout.P_POSITION] = position
        self._high_watermark = words[layout.P_HIGH_WATERMARK] = high_watermark
        words[layout.P_DURABLE] = durable
        words[layout.P_SIZE_BYTES] = size_bytes
        words[layout.P_SEGMENT_COUNT] = segment_count
        words[layout.P_STATE] = state
        if last_append_ns is not None:
            words[layout.P_LAST_APPEND_NS] = last_append_ns
        self._close()

    def durable(self, offset: int) -> None:
        """Publish the offset below which everything is on the disk."""
        self._words[layout.P_DURABLE] = offset

    def note_reader(self, offset: int) -> None:
        """A reader asks for what is at `offset`: remembered if it is the furthest, or the first after a long time."""
        now_ns = time.monotonic_ns()
        words = self._words
        if offset >= words[layout.P_READERS_NEXT] or now_ns - words[layout.P_READERS_SEEN_NS] > READERS_GONE_NS:
            words[layout.P_READERS_NEXT] = offset + 1
        words[layout.P_READERS_SEEN_NS] = now_ns

    def retire(self) -> None:
        """This process leads the partition no more. The last high watermark stays readable until the slot is freed."""
        self._open()
        self._words[layout.P_STATE] = CellState.RETIRED
        self._close()

    def _open(self) -> None:
        self._version += 1
        self._words[layout.P_VERSION] = self._version
        if WEAK_ORDER:
            fence()

    def _close(self) -> None:
        if WEAK_ORDER:
            fence()
        self._version += 1
        self._words[layout.P_VERSION] = self._version

    def _reset(self, key: int) -> None:
        self._open()
        self._words[layout.P_KEY] = key
        for index in range(layout.P_LEADER_EPOCH, layout.PARTITION_CELL_WORDS):
            self._words[index] = 0
        self._high_watermark = 0
        self._close()


class HeaderWriter:
    """The header page, the same on every board."""

    def __init__(self, area: region.Region, path: Path) -> None:
        self._region = area
        self._words = area.u64
        self.path = path

    @property
    def words(self) -> memoryview:
        """The board's words, for a Sleeper or Bell on `layout.H_SLEEP_SEQ`."""
        return self._words

    def sleeper(self) -> Sleeper:
        """The sleeper's side of this process's `sleep_seq`. Make it once."""
        return Sleeper(self._words, layout.H_SLEEP_SEQ)

    def beat(self, now_ns: int) -> None:
        """Say that the loop turns."""
        self._words[layout.H_BEAT_NS] = now_ns

    def io_begin(self, now_ns: int) -> None:
        """Say that the loop may now be held up by the disk, so that a late beat is not taken for a hang."""
        self._words[layout.H_IO_SINCE_NS] = now_ns

    def io_end(self) -> None:
        """The disk has answered."""
        self._words[layout.H_IO_SINCE_NS] = 0

    def set_state(self, state: ProcessState) -> None:
        """STARTING, RUNNING or STOPPING."""
        self._words[layout.H_STATE] = state

    def count(self, counter: Counter, by: int = 1) -> None:
        """Add to a counter."""
        self._words[layout.H_COUNTERS + counter] += by

    def set_counter(self, counter: Counter, value: int) -> None:
        """Set a counter that is kept elsewhere."""
        self._words[layout.H_COUNTERS + counter] = value

    def close(self, *, unlink: bool = False) -> None:
        """Unmap. `unlink` removes the file too: at a clean stop, when nobody needs the last values."""
        self._region.close()
        if unlink:
            self.path.unlink(missing_ok=True)


def create_region(path: Path, size_bytes: int, kind: int, identity: tuple[int, int, int, int]) -> region.Region:
    """A board's file with the constants of its header: (process number, incarnation, cells, their byte position)."""
    number, incarnation, cell_count, cells_position = identity
    area, temporary = region.create_file(path, size_bytes)
    constants = (
        layout.BOARD_MAGIC,
        layout.BOARD_VERSION,
        kind,
        number,
        incarnation,
        ids.pid_of(incarnation),
        cell_count,
        cells_position,
    )
    for index, value in enumerate(constants):
        area.u64[index] = value
    area.u64[layout.H_STATE] = ProcessState.STARTING
    region.publish_file(temporary, path)
    return area


class BoardWriter(HeaderWriter):
    """A process's board, for that process."""

    def __init__(self, area: region.Region, path: Path, cells: int) -> None:
        super().__init__(area, path)
        self._cells = cells
        self._used = 0
        self._free: deque[int] = deque()
        self._by_slot: dict[int, PartitionCellWriter] = {}

    @classmethod
    def create(
        cls, boards_dir: Path, process_number: int, incarnation: int, *, cells: int = CELLS_DEFAULT
    ) -> BoardWriter:
        """Make the board of this incarnation. Raises DiskFullError when /dev/shm has no room."""
        assert cells >= 0
        path = board_path(boards_dir, process_number, incarnation)
        size_bytes = layout.HEADER_BYTES + cells * layout.PARTITION_CELL_WORDS * layout.WORD_BYTES
        identity = (process_number, incarnation, cells, layout.HEADER_BYTES)
        return cls(create_region(path, size_bytes, layout.KIND_PROCESS, identity), path, cells)

    def claim(self, topic_id: int, partition: int) -> PartitionCellWriter:
        """Give a partition a cell, FREE until its first `restate`. Raises PolicyViolationError when all are taken.

        A freed slot is used again as late as possible: a reader that still has it finds another key there.
        """
        if self._used < self._cells:
            slot = self._used
            self._used += 1
        elif self._free:
            slot = self._free.popleft()
        else:
            hint = "[limits] partitions_per_process_max"
            raise PolicyViolationError(f"{self._cells} partitions are led here already", hint=hint)
        key = layout.cell_key(topic_id, partition)
        cell = PartitionCellWriter(self._words, slot, key)
        cell._reset(key)
        self._by_slot[slot] = cell
        self._words[layout.H_CELLS_USED] = self._used
        return cell

    def cell(self, slot: int) -> PartitionCellWriter:
        """The cell claimed at a slot."""
        return self._by_slot[slot]

    def free(self, cell: PartitionCellWriter) -> None:
        """Take a cell back. Its readers see that it is not their partition's any more."""
        assert self._by_slot.pop(cell.slot) is cell, "the cell was claimed on this board, and once"
        cell._reset(0)
        cell._words.release()
        self._free.append(cell.slot)

    def close(self, *, unlink: bool = False) -> None:
        """Unmap, and remove the file when told."""
        for cell in self._by_slot.values():
            cell._words.release()
        self._by_slot.clear()
        super().close(unlink=unlink)
