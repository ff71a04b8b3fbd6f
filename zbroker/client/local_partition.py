"""A partition read without its broker: files by mapping, how far by the leader's board, who leads by the coordinator's.

Guarantees: reading costs the worker nothing; the high watermark of another partition that took over the cell is never
mistaken for this one's; the board of a dead leader is read until its successor has published on its own, and the
position never goes back to follow a board. When the leader has changed, `is_moved` says so, and the metadata tells
where to go on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from zbroker.client.batch_run import MakeBatch
from zbroker.client.mapped_log import Frontier, MappedLog, Mappings, SegmentMissingError
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, OffsetOutOfRangeError, StorageError
from zbroker.ids import TopicPartition
from zbroker.record.view import RecordBatch
from zbroker.shm import layout
from zbroker.shm.board import PartitionView
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.coordinator_board import CoordinatorBoardReader, LeaderCellReader
from zbroker.shm.layout import CellState
from zbroker.wire.messages import PartitionInfo

MISSING_MS_MAX: Final = 5_000
LOOK_INTERVAL_NS: Final = 100 * NS_PER_MS


class Boards:
    """The boards that a consumer has mapped, each once."""

    def __init__(self) -> None:
        self._boards: dict[str, BoardReader] = {}
        self._coordinator: CoordinatorBoardReader | None = None
        self._next_look_ns = 0

    def process_board(self, path: str) -> BoardReader | None:
        """A process's board; None when it is gone or cannot be read."""
        board = self._boards.get(path)
        if board is None:
            try:
                board = self._boards[path] = BoardReader.open(Path(path))
            except (FileNotFoundError, BrokerError):
                return None
        return board

    def coordinator_board(self, path: str) -> CoordinatorBoardReader | None:
        """The coordinator's board; None when it is gone. The one before is unmapped when nothing uses it any more."""
        if self._coordinator is None or str(self._coordinator.path) != path:
            try:
                self._coordinator = CoordinatorBoardReader.open(Path(path))
            except (FileNotFoundError, BrokerError):
                return None
        return self._coordinator

    def is_coordinator_gone(self) -> bool:
        """Whether the coordinator's board was removed: it died, and so did all who could say so on it."""
        now_ns = time.monotonic_ns()
        if self._coordinator is None or now_ns < self._next_look_ns:
            return False
        self._next_look_ns = now_ns + LOOK_INTERVAL_NS
        return not self._coordinator.path.exists()

    def keep(self, paths: set[str]) -> None:
        """Unmap the boards of processes that lead nothing that is read here."""
        for path in self._boards.keys() - paths:
            self._boards.pop(path).close()

    def close(self) -> None:
        """Unmap all."""
        self.keep(set())
        if self._coordinator is not None:
            self._coordinator.close()
            self._coordinator = None


class LocalPartition:
    """One partition as its leader's board and files show it."""

    is_local = True

    def __init__(
        self, tp: TopicPartition, topic_id: int, info: PartitionInfo, board: BoardReader,
        coordinator: CoordinatorBoardReader | None, mappings: Mappings, make: MakeBatch, *,
        is_durable_only: bool = False,
    ) -> None:  # fmt: skip
        """Raises LookupError while the board does not show this partition as led, in this epoch or a later one."""
        cell = board.partition_cell(topic_id, info.partition)
        view = cell.view() if cell is not None else None
        if cell is None or view is None or view.state is not CellState.LEADING or view.leader_epoch < info.leader_epoch:
            raise LookupError(f"{tp} is not on {board.path}")
        self.tp, self.topic_id, self.info = tp, topic_id, info
        self.leader = info.leader
        self.board_path = str(board.path)
        self._board = board
        self._cell = cell
        self._words = board.words
        self._log_start_at = cell.at + layout.P_LOG_START
        self._durable_at = cell.at + layout.P_DURABLE
        self.coordinator_path = str(coordinator.path) if coordinator is not None else ""
        self._coordinator = coordinator
        self._leader_cell: LeaderCellReader | None = None
        self._leader_version = -1
        if coordinator is not None and info.coordinator_cell < coordinator.cell_count:
            self._leader_cell = coordinator.leader_cell(info.coordinator_cell, topic_id, info.partition)
        self._log = MappedLog(info.directory, mappings, make, str(tp))
        self._missing_since_ns = 0
        self._is_lost = False
        self.high_watermark = cell.high_watermark
        self._is_durable_only = is_durable_only
        self._epoch = view.leader_epoch
        self._cell_version = -1

    def has_more(self, offset: int) -> bool:
        """Whether `read` would have something to do or to say: one load. Not when the cell is known to be another's."""
        high_watermark = self.high_watermark()
        if high_watermark == offset or self._is_lost:
            return False
        if high_watermark < offset:
            return not self._is_awaited(offset)
        return not (self._is_durable_only and self.held_back(offset))

    def held_back(self, offset: int) -> int:
        """The high watermark, when there are records at `offset` and they are not to be read before they are synced."""
        if not self._is_durable_only:
            return 0
        high_watermark = self.high_watermark()
        return high_watermark if self._words[self._durable_at] <= offset < high_watermark else 0

    def read(self, offset: int, max_bytes: int) -> list[RecordBatch]:
        """Batches from the one that contains `offset`; none when there is nothing new.

        Raises OffsetOutOfRangeError, CorruptRecordError, StorageError.
        """
        frontier = self._frontier()
        if frontier is None:
            self._is_lost = True
            return []
        if not self._words[self._log_start_at] <= offset <= frontier[0]:
            self._check_range(offset)
            return []
        try:
            batches = self._log.read(offset, frontier, max_bytes)
        except SegmentMissingError as error:
            # Retention renames a file a moment before the board says so; the next look finds the new log start.
            self._note_missing(offset, error)
            return []
        self._missing_since_ns = 0
        return batches

    def _frontier(self) -> Frontier | None:
        """How far this reader may read: what the cell says of one instant, None when it is not to be followed any more.

        A cell that has not changed but by appends since it was looked at is believed at once.
        """
        words, at = self._words, self._cell.at
        version = words[at]
        if version == self._cell_version and not self._is_durable_only:
            frontier = self._cell.frontier()
            if words[at] == version:
                return frontier
        view = self._cell.view()
        if view is None or not self._may_follow(view):
            return None
        if words[at] == version:
            self._cell_version = version
        if not self._is_durable_only:
            return view.high_watermark, view.segment_base, view.position
        # The position is the high watermark's; it bounds the mapping only, and offsets bound what is given out.
        return min(view.durable, view.high_watermark), view.segment_base, view.position

    def _may_follow(self, view: PartitionView) -> bool:
        """Whether the files still are what the cell says of them.

        A copy that follows another one may be cut and written anew, while the mapping shows what it was before: its
        cell is not followed. A leader that has lost its office, or died, shows its last high watermark, and all before
        that stays as it is. One that leads again may have been cut in between: its files are mapped anew.
        """
        if view.state is CellState.LEADING:
            if view.leader_epoch != self._epoch:
                self._epoch = view.leader_epoch
                self._log.forget()
            return True
        return view.state is CellState.RETIRED and view.leader_epoch == self._epoch

    def bytes_ahead(self, offset: int) -> int | None:
        """Bytes that can be read from `offset` on; None: many."""
        frontier = self._frontier()
        try:
            return 0 if frontier is None else self._log.bytes_ahead(offset, frontier)
        except SegmentMissingError:
            return None

    def range(self) -> tuple[int, int] | None:
        """(log start, high watermark); None when the cell is not this partition's any more."""
        view = self._cell.view()
        if view is None or view.state is CellState.FREE:
            self._is_lost = True
            return None
        return view.log_start, view.high_watermark

    def is_moved(self) -> bool:
        """Whether the metadata should be asked who leads now: a load or two when nothing changed."""
        if self._is_lost:
            return True
        coordinator, cell = self._coordinator, self._leader_cell
        if coordinator is None or cell is None or coordinator.is_superseded:
            return True
        version = cell.version()
        if version == self._leader_version:
            return False
        leader = cell.leader()
        if leader is None or (leader.leader_epoch, leader.incarnation) != (
            self.info.leader_epoch,
            self.info.leader_incarnation,
        ):
            return True
        self._leader_version = version
        view = self._cell.view()
        return view is None or view.state is not CellState.LEADING

    def is_leader_alive(self) -> bool:
        """Whether the process whose board this reads still runs."""
        return self._board.is_alive

    def _is_awaited(self, offset: int) -> bool:
        """Whether the log reaches an offset that the high watermark has not reached: a new leader has the records and
        is about to hear that the other copies have them."""
        view = self._cell.view()
        return view is not None and view.high_watermark < offset <= view.log_end

    def _check_range(self, offset: int) -> None:
        view: PartitionView | None = self._cell.view()
        if view is None or view.state is CellState.FREE:
            self._is_lost = True
        elif not view.log_start <= offset <= max(view.high_watermark, view.log_end):
            raise OffsetOutOfRangeError(out_of_range(self.tp, offset, view.log_start, view.high_watermark))

    def _note_missing(self, offset: int, error: SegmentMissingError) -> None:
        now_ns = time.monotonic_ns()
        if self._missing_since_ns == 0:
            self._missing_since_ns = now_ns
        self._log.forget()
        self._is_lost = now_ns - self._missing_since_ns > MISSING_MS_MAX * NS_PER_MS // 10
        if now_ns - self._missing_since_ns > MISSING_MS_MAX * NS_PER_MS:
            raise StorageError(f"{self.tp}: no file holds offset {offset}: {error}")


def out_of_range(tp: TopicPartition, offset: int, log_start: int, high_watermark: int) -> str:
    """What to say about an offset that the log does not have."""
    return f"{tp}: offset {offset} is not in {log_start} to {high_watermark}"
