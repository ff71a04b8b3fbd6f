"""A partition of three copies whose leader changes, with real files and boards and no processes: what a consumer meets.

The copies, the boards and the coordinator are moved by hand, one step at a time; `FakeConnection` answers
questions, late if need be. Records below the high watermark are `committed` and never change; a leader's tail above it
is cut when another copy takes over, and other records take its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zbroker import ids
from zbroker.client.assigned import Assigned
from zbroker.client.fetcher import Fetcher
from zbroker.client.settings import ConsumerSettings
from zbroker.client.sleep import Sleep
from zbroker.client.subscription import Subscription
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import NotLeaderForPartitionError, OffsetOutOfRangeError
from zbroker.ids import TopicPartition
from zbroker.record.batch import batches_in, read_header, stamp
from zbroker.record.columns import encode_columns
from zbroker.shm.board import BoardWriter, PartitionCellWriter
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.layout import CellState
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api
from zbroker.wire.messages import (
    FetchedPartition,
    FetchReply,
    FetchRequest,
    ListOffsetsReply,
    MetadataReply,
    OffsetAnswer,
    PartitionInfo,
    ProcessInfo,
    TopicInfo,
)

TP = TopicPartition("t", 0)
TOPIC_ID = 7
COPIES = 3
SEGMENT_BYTES = 4096


@dataclass
class Copy:
    """One copy, and the process that has it in its present run."""

    number: int
    directory: Path
    log: CopiedLog
    board: BoardWriter
    cell: PartitionCellWriter
    incarnation: int


class Group:
    """The partition. Every method leaves boards that a reader may see at that moment."""

    def __init__(self, directory: Path) -> None:
        self.boards_dir = directory / "boards"
        self.boards_dir.mkdir()
        self._runs = 0
        self._left: list[BoardWriter] = []
        self.coordinator = CoordinatorBoardWriter.create(self.boards_dir, ids.own_incarnation(), cells=4)
        self.slot = self.coordinator.claim(TOPIC_ID, 0)
        self.committed: list[bytes] = []
        self.tail: list[bytes] = []
        self.epoch = 1
        self.copies = [self._copy(index, directory / f"copy-{index}") for index in range(COPIES)]
        self.leader = self.copies[0]
        self._elect()
        self.lead()

    def _copy(self, index: int, directory: Path) -> Copy:
        config = TopicConfig(segment_bytes=SEGMENT_BYTES, index_interval_bytes=128, file_delete_delay_ms=0)
        log = CopiedLog.open(directory, config, Files(), ManualClock())
        board, cell, incarnation = self._run(index)
        return Copy(ids.worker_number(index), directory, log, board, cell, incarnation)

    def _run(self, index: int) -> tuple[BoardWriter, PartitionCellWriter, int]:
        self._runs += 1
        incarnation = ids.own_incarnation() + (self._runs << 22)
        board = BoardWriter.create(self.boards_dir, ids.worker_number(index), incarnation, cells=2)
        return board, board.claim(TOPIC_ID, 0), incarnation

    def _elect(self) -> None:
        self.coordinator.set_leader(self.slot, self.epoch, self.leader.number, self.leader.incarnation)

    @property
    def high_watermark(self) -> int:
        """All copies have everything before it."""
        return len(self.committed)

    def _state(self, copy: Copy, state: CellState, high_watermark: int) -> None:
        log = copy.log
        copy.cell.restate(
            leader_epoch=self.epoch, log_start=log.log_start, log_end=log.log_end, segment_base=log.active_base,
            position=log.active_position, high_watermark=high_watermark, durable=min(log.durable_end, log.log_end),
            size_bytes=log.size_bytes, segment_count=log.segment_count, state=state,
        )  # fmt: skip

    def lead(self) -> None:
        """The leader publishes."""
        self._state(self.leader, CellState.LEADING, self.high_watermark)

    def append(self, values: list[bytes]) -> None:
        """The leader appends a batch; no other copy has it yet."""
        batch = bytearray(encode_columns(values, timestamp_ms=1_700_000_000_000))
        stamp(batch, self.leader.log.log_end, self.epoch)
        self.leader.log.append(batch, read_header(batch))
        self.tail += values
        self.lead()

    def replicate(self, index: int) -> None:
        """One copy catches up, and the high watermark moves if all have."""
        copy = self.copies[index]
        self._catch_up(copy)
        held = min(copy.log.log_end for copy in self.copies)
        count = held - self.high_watermark
        self.committed += self.tail[:count]
        self.tail = self.tail[count:]
        self.lead()
        for follower in self.copies:
            if follower is not self.leader:
                self._state(follower, CellState.FOLLOWING, min(self.high_watermark, follower.log.log_end))

    def _catch_up(self, copy: Copy) -> None:
        while copy is not self.leader and copy.log.log_end < self.leader.log.log_end:
            data = self.leader.log.read(copy.log.log_end, 1 << 20, self.leader.log.log_end)
            for position, header in list(batches_in(data)):
                if copy.log.active_position + header.size_bytes > SEGMENT_BYTES and copy.log.active_position:
                    copy.log.roll()
                copy.log.append_copied(data[position : position + header.size_bytes], [header])

    def change_leader(self, index: int, *, dies: bool, between: Callable[[], None]) -> None:
        """Another copy leads. `dies`: the old leader's process ends and comes back at once, as a follower; else it
        becomes one while it runs. `between` is called wherever a reader may look meanwhile."""
        old, new = self.leader, self.copies[index]
        if dies:
            self._left.append(old.board)
            old.board, old.cell, old.incarnation = self._run(self.copies.index(old))
        else:
            old.cell.retire()
            between()
        self.epoch += 1
        self.leader = new
        self._elect()
        between()
        kept = new.log.log_end - self.high_watermark if new is not old else 0
        self.tail = self.tail[:kept]
        if new is old:
            new.log.truncate_to(self.high_watermark)
        self.lead()
        between()
        for copy in self.copies:
            if copy is new:
                continue
            copy.log.truncate_to(self.high_watermark)
            self._state(copy, CellState.FOLLOWING, self.high_watermark)
            between()

    def metadata(self) -> MetadataReply:
        """What the coordinator answers now."""
        info = PartitionInfo(
            0, self.leader.number, self.epoch, self.leader.incarnation, [0, 1, 2], [0, 1, 2], [],
            str(self.leader.directory), self.slot,
        )  # fmt: skip
        processes = [
            ProcessInfo(copy.number, ids.process_name(copy.number), copy.incarnation, str(copy.board.path), "", "")
            for copy in self.copies
        ]
        return MetadataReply(
            1, "c", str(self.coordinator.path), processes, [TopicInfo("t", TOPIC_ID, 0, {}, [info])]
        )  # fmt: skip

    def close(self) -> None:
        """Give everything back."""
        for copy in self.copies:
            copy.board.close()
            copy.log.close()
        for board in self._left:
            board.close()
        self.coordinator.close()


class FakeConnection:
    """Answers with what was true when it was asked, at the next pump. A process that has died answers nothing."""

    def __init__(self, group: Group, settings: ConsumerSettings, *, is_local: bool) -> None:
        self.settings = settings
        self.shared_memory = is_local
        self._group = group
        self._answers: list[Callable[[], None]] = []
        self._count = 0

    def submit(self, target: int, api: int, frames: Any, on_reply: Callable[..., None], **_: Any) -> int:
        """Queue the answer."""
        self._count += 1
        error, body = 0, []
        if target == ids.COORDINATOR:
            body = [encode(self._group.metadata())]
        else:
            copy = next(copy for copy in self._group.copies if copy.number == target)
            if copy is not self._group.leader:
                error = NotLeaderForPartitionError.code
            elif api == Api.FETCH:
                body = self._fetched(copy, decode(FetchRequest, frames[0]))
            elif api == Api.LIST_OFFSETS:
                ends = [OffsetAnswer(TOPIC_ID, 0, 0, end, -1) for end in (0, self._group.high_watermark)]
                body = [encode(ListOffsetsReply(ends))]
        self._answers.append(lambda: on_reply(error, body))
        return self._count

    def _fetched(self, copy: Copy, wanted: FetchRequest) -> list[bytes]:
        one, end = wanted.partitions[0], self._group.high_watermark
        data = b""
        if one.max_bytes and one.offset < end:
            data = copy.log.read(one.offset, one.max_bytes, end)
        error = 0 if one.offset <= copy.log.log_end else OffsetOutOfRangeError.code
        return [encode(FetchReply([FetchedPartition(TOPIC_ID, 0, error, end, 0, len(data))])), data]

    def try_pump(self) -> int:
        """Deliver."""
        answers, self._answers = self._answers, []
        for answer in answers:
            answer()
        return len(answers)

    def wait_for(self, is_over: Callable[[], bool], timeout_ms: float) -> None:
        """Deliver, and sleep no longer."""
        self.try_pump()

    def forget(self, correlation: int) -> None:
        """Nothing is kept."""

    def has_lane(self, target: int) -> bool:
        """There are no processes."""
        return False

    def lane(self, target: int) -> None:
        """There are no processes."""


class Reader:
    """A consumer's fetcher over the group; every record is held against what is committed at that moment."""

    def __init__(self, group: Group, *, is_local: bool = True, **settings: Any) -> None:
        self.group = group
        self.settings = ConsumerSettings(bootstrap_servers="ipc:///nowhere", auto_offset_reset="earliest", **settings)
        subscription = Subscription("earliest")
        subscription.assign([TP])
        connection: Any = FakeConnection(group, self.settings, is_local=is_local)
        self.fetcher = Fetcher(connection, self.settings, subscription, Sleep(connection, self.settings))
        self.one: Assigned = subscription.assigned[TP]
        self.offset = 0

    def poll(self, count_max: int) -> int:
        """Read records; returns how many came."""
        records = self.fetcher.collect(count_max).get(TP, [])
        for record in records:
            assert record.offset == self.offset, f"{record.offset} where {self.offset} comes next"
            assert record.offset < self.group.high_watermark, "not committed"
            assert record.value == self.group.committed[record.offset]
            self.offset += 1
        assert self.one.offset in (None, self.offset)
        return len(records)

    def batch(self) -> int:
        """Read one run of batches, as iteration over batches does."""
        one = self.fetcher.next_run(as_batches=True)
        if one is None:
            return 0
        one.was_read = True
        count = 0
        while one.ready:
            found = one.ready.popleft()
            for record in found.records_from(self.offset):
                assert record.offset == self.offset
                assert record.value == self.group.committed[record.offset]
                self.offset += 1
                count += 1
            one.offset = found.header.next_offset
        return count

    def wait(self) -> None:
        """What a consumer does that found nothing."""
        self.fetcher.wait(0.2)

    def close(self) -> None:
        """Give boards and mappings back."""
        self.fetcher.close()
