"""The coordinator's board: who leads each partition, which processes are wanted, and whether the broker is ready.

WHY A READER IS NEVER MISLED. Every word is stored by the coordinator named in the file's name, except `successor`. A
cell's leader epoch, incarnation and process number are stored between two stores of the cell's `version` (odd, then
even), so a reader that sees one even version before and after has a leader and an epoch that belong together. A cell
changes only by an election, so comparing `version` with the one seen last, one load, says that nothing changed. The
wanted list has a seqlock of its own.

A dead coordinator's board says what was true when it died, and would say so for ever: its successor, which holds the
data directory's lock and so knows that it is the only one, stores its own incarnation into `successor` of every older
board, and only then elects anybody. Nobody else ever stores that word. A reader that finds it set attaches the newer
board. A stale leader epoch is then a redirected request, not a wrong record: leaders check epochs themselves.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zbroker import ids
from zbroker.errors import PolicyViolationError, StorageError
from zbroker.shm import layout, region
from zbroker.shm.board import SNAPSHOT_TRIES_MAX, HeaderWriter, board_path, create_region
from zbroker.shm.board_reader import HeaderReader, attach_board, find_boards
from zbroker.shm.fence import WEAK_ORDER, fence

CELLS_DEFAULT = 16_384
_YIELD_EVERY = 50
_NAME = "coordinator"


class Leader(NamedTuple):
    """Who leads a partition: `number` and `incarnation` are None while nobody does."""

    leader_epoch: int
    number: int | None
    incarnation: int | None


class CoordinatorBoardWriter(HeaderWriter):
    """The coordinator's board, for the coordinator."""

    def __init__(self, area: region.Region, path: Path, cells: int) -> None:
        super().__init__(area, path)
        self._cells = cells
        self._used = 0
        self._free: deque[int] = deque()
        self._slots: dict[int, int] = {}

    @classmethod
    def create(cls, boards_dir: Path, incarnation: int, *, cells: int = CELLS_DEFAULT) -> CoordinatorBoardWriter:
        """Make the board of this incarnation. Raises DiskFullError when /dev/shm has no room."""
        path = board_path(boards_dir, ids.COORDINATOR, incarnation)
        position = layout.COORDINATOR_CELLS_POSITION
        size_bytes = position + cells * layout.COORDINATOR_CELL_WORDS * layout.WORD_BYTES
        identity = (ids.COORDINATOR, incarnation, cells, position)
        return cls(create_region(path, size_bytes, layout.KIND_COORDINATOR, identity), path, cells)

    def claim(self, topic_id: int, partition: int) -> int:
        """The slot of a partition, a new one the first time. Raises PolicyViolationError when all are taken."""
        key = layout.cell_key(topic_id, partition)
        slot = self._slots.get(key)
        if slot is not None:
            return slot
        if self._used < self._cells:
            slot = self._used
            self._used += 1
        elif self._free:
            slot = self._free.popleft()
        else:
            raise PolicyViolationError(f"the broker has {self._cells} partitions already", hint="[limits] topics_max")
        self._slots[key] = slot
        self._store(slot, key, 0, layout.NO_LEADER, layout.NO_LEADER)
        self._words[layout.H_CELLS_USED] = self._used
        return slot

    def free(self, topic_id: int, partition: int) -> None:
        """Take a partition's slot back."""
        slot = self._slots.pop(layout.cell_key(topic_id, partition))
        self._store(slot, 0, 0, layout.NO_LEADER, layout.NO_LEADER)
        self._free.append(slot)

    def set_leader(self, slot: int, leader_epoch: int, number: int | None, incarnation: int | None) -> None:
        """Publish a partition's leader, or with None that it has none."""
        key = self._words[self._at(slot) + layout.C_KEY]
        assert key != 0, f"slot {slot} is free"
        no_leader = layout.NO_LEADER
        self._store(
            slot,
            key,
            leader_epoch,
            no_leader if incarnation is None else incarnation,
            no_leader if number is None else number,
        )

    def set_wanted(self, numbers: Sequence[int]) -> None:
        """Publish which processes the supervisor should keep alive."""
        assert len(numbers) <= layout.WANTED_MAX, f"{len(numbers)} processes, at most {layout.WANTED_MAX}"
        words = self._words
        version = words[layout.W_VERSION]
        words[layout.W_VERSION] = version + 1
        if WEAK_ORDER:
            fence()
        words[layout.W_COUNT] = len(numbers)
        for index, number in enumerate(numbers, layout.W_NUMBERS):
            words[index] = number
        if WEAK_ORDER:
            fence()
        words[layout.W_VERSION] = version + 2

    def set_ready(self, is_ready: bool = True) -> None:
        """Say that the broker answers: the wanted processes have registered, and partitions have leaders."""
        self._words[layout.H_READY] = int(is_ready)

    def supersede_older(self, boards_dir: Path) -> int:
        """Tell the readers of dead coordinators' boards to come here. Returns how many boards were marked.

        Call it with the data directory's lock held, before the first election.
        """
        own = int(self._words[layout.H_INCARNATION])
        marked = 0
        for _, incarnation, path in find_boards(boards_dir, _NAME):
            if incarnation == own:
                continue
            try:
                older = region.attach_file(path, is_writable=True)
            except (FileNotFoundError, StorageError):
                continue
            if older.u64[layout.H_MAGIC] == layout.BOARD_MAGIC and not older.u64[layout.H_SUCCESSOR]:
                older.u64[layout.H_SUCCESSOR] = own
                marked += 1
            older.close()
        return marked

    def _at(self, slot: int) -> int:
        assert 0 <= slot < self._cells, f"slot {slot} of {self._cells}"
        return layout.COORDINATOR_CELLS_POSITION // layout.WORD_BYTES + slot * layout.COORDINATOR_CELL_WORDS

    def _store(self, slot: int, key: int, leader_epoch: int, incarnation: int, number: int) -> None:
        words, at = self._words, self._at(slot)
        version = words[at]
        words[at] = version + 1
        if WEAK_ORDER:
            fence()
        words[at + layout.C_KEY] = key
        words[at + layout.C_LEADER_EPOCH] = leader_epoch
        words[at + layout.C_LEADER_INCARNATION] = incarnation
        words[at + layout.C_LEADER_NUMBER] = number
        if WEAK_ORDER:
            fence()
        words[at] = version + 2


class LeaderCellReader:
    """One partition's cell: a consumer looks at `version` on every empty poll."""

    __slots__ = ("_at", "_words", "key")

    def __init__(self, words: memoryview, at: int, key: int) -> None:
        self._words = words
        self._at = at
        self.key = key

    def version(self) -> int:
        """One load: the same value as last time means the same leader and epoch."""
        return self._words[self._at]

    def leader(self) -> Leader | None:
        """The leader of one instant; None when the cell is not this partition's any more."""
        words, at = self._words, self._at
        for attempt in range(SNAPSHOT_TRIES_MAX):
            version = words[at]
            if WEAK_ORDER:
                fence()
            _, key, epoch, incarnation, number = words[at : at + 5].tolist()
            if WEAK_ORDER:
                fence()
            if words[at] == version and not version & 1:
                if key != self.key:
                    return None
                none = layout.NO_LEADER
                return Leader(epoch, None if number == none else number, None if incarnation == none else incarnation)
            if attempt % _YIELD_EVERY == 0:
                os.sched_yield()
        return None


class CoordinatorBoardReader(HeaderReader):
    """The coordinator's board, for everybody else."""

    @classmethod
    def open(cls, path: Path) -> CoordinatorBoardReader:
        """Map a board. Raises FileNotFoundError, StorageError, UnsupportedVersionError."""
        area = attach_board(path, layout.KIND_COORDINATOR, layout.COORDINATOR_CELL_WORDS)
        try:
            return cls(area, path, layout.KIND_COORDINATOR)
        except BaseException:
            area.close()
            raise

    @classmethod
    def find(cls, boards_dir: Path) -> CoordinatorBoardReader | None:
        """The live coordinator's board, or None."""
        for _, incarnation, path in find_boards(boards_dir, _NAME):
            if ids.is_alive(incarnation):
                try:
                    return cls.open(path)
                except FileNotFoundError:
                    continue
        return None

    @property
    def is_superseded(self) -> bool:
        """Whether a newer coordinator has taken over: attach its board. One load."""
        return bool(self._words[layout.H_SUCCESSOR])

    @property
    def is_ready(self) -> bool:
        """Whether the broker answers."""
        return bool(self._words[layout.H_READY])

    def wanted_version(self) -> int:
        """One load: the same value as last time means the same wanted processes."""
        return int(self._words[layout.W_VERSION])

    def wanted(self) -> list[int] | None:
        """Numbers of the processes that should run; None when the coordinator has not said, or died while saying."""
        words = self._words
        for attempt in range(SNAPSHOT_TRIES_MAX):
            version = words[layout.W_VERSION]
            if version == 0:
                return None
            if WEAK_ORDER:
                fence()
            count = min(words[layout.W_COUNT], layout.WANTED_MAX)
            numbers: list[int] = words[layout.W_NUMBERS : layout.W_NUMBERS + count].tolist()
            if WEAK_ORDER:
                fence()
            if words[layout.W_VERSION] == version and not version & 1:
                return numbers
            if attempt % _YIELD_EVERY == 0:
                os.sched_yield()
        return None

    def leader_cell(self, slot: int, topic_id: int, partition: int) -> LeaderCellReader:
        """A reader for a partition's cell, whose slot the metadata names."""
        assert 0 <= slot < self.cell_count, f"slot {slot} of {self.cell_count}"
        at = self._cells_word + slot * layout.COORDINATOR_CELL_WORDS
        return LeaderCellReader(self._words, at, layout.cell_key(topic_id, partition))
