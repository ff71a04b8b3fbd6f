"""A partition read by board and files: which offsets are refused, and when the leader is not believed any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_client_mapped_log import EPOCH, Writer
from zbroker import ids
from zbroker.client.batch_run import Decoding
from zbroker.client.local_partition import Boards, LocalPartition
from zbroker.client.mapped_log import Mappings
from zbroker.errors import OffsetOutOfRangeError, StorageError
from zbroker.ids import TopicPartition
from zbroker.shm.board import BoardWriter, PartitionCellWriter
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.layout import CellState
from zbroker.wire.messages import PartitionInfo

TP = TopicPartition("t", 0)
TOPIC_ID = 7


class Host:
    """A worker's and a coordinator's board over one log, kept by hand."""

    def __init__(self, directory: Path) -> None:
        self.boards_dir = directory / "boards"
        self.boards_dir.mkdir()
        self.writer = Writer(directory / "copy")
        self.worker = BoardWriter.create(self.boards_dir, ids.worker_number(0), ids.own_incarnation(), cells=4)
        self.coordinator = CoordinatorBoardWriter.create(self.boards_dir, ids.own_incarnation(), cells=4)
        self.slot = self.coordinator.claim(TOPIC_ID, 0)
        self.cell: PartitionCellWriter = self.worker.claim(TOPIC_ID, 0)
        self.boards = Boards()
        self.elect(EPOCH)
        self.publish()

    def elect(self, epoch: int) -> None:
        self.coordinator.set_leader(self.slot, epoch, ids.worker_number(0), ids.own_incarnation())

    def publish(self, *, log_start: int | None = None, epoch: int = EPOCH) -> None:
        log = self.writer.log
        self.cell.restate(
            leader_epoch=epoch,
            log_start=log.log_start if log_start is None else log_start,
            log_end=log.log_end,
            segment_base=log.active_base,
            position=log.active_position,
            high_watermark=log.log_end,
            durable=0,
            size_bytes=log.size_bytes,
            segment_count=log.segment_count,
        )

    def info(self, epoch: int = EPOCH) -> PartitionInfo:
        number, directory = ids.worker_number(0), str(self.writer.directory)
        return PartitionInfo(0, number, epoch, ids.own_incarnation(), [1], [1], [], directory, self.slot)

    def open(self, info: PartitionInfo | None = None, *, is_durable_only: bool = False) -> LocalPartition:
        board = self.boards.process_board(str(self.worker.path))
        assert board is not None
        coordinator = self.boards.coordinator_board(str(self.coordinator.path))
        return LocalPartition(
            TP, TOPIC_ID, info or self.info(), board, coordinator, Mappings(), Decoding().maker(*TP),
            is_durable_only=is_durable_only,
        )  # fmt: skip

    def close(self) -> None:
        self.boards.close()
        self.worker.close()
        self.coordinator.close()
        self.writer.log.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def test_what_the_leader_published_is_read_without_asking_it(host: Host) -> None:
    one = host.open()
    assert not one.has_more(0)
    host.writer.fill(2)
    assert one.read(0, 1 << 20) == [], "what is not published is not there"
    host.publish()
    assert one.has_more(0)
    assert [batch.base_offset for batch in one.read(0, 1 << 20)] == [0, 3]
    assert one.high_watermark() == 6
    assert one.range() == (0, 6)
    assert one.bytes_ahead(0) == host.writer.log.active_position


@pytest.mark.parametrize("offset", [2, 7])
def test_offsets_outside_the_log_are_refused_with_its_range(host: Host, offset: int) -> None:
    host.writer.fill(2)
    host.publish(log_start=3)
    with pytest.raises(OffsetOutOfRangeError, match=f"t:0: offset {offset} is not in 3 to 6"):
        host.open().read(offset, 1 << 20)


def test_a_file_deleted_a_moment_before_the_board_says_so_is_no_error(host: Host) -> None:
    host.writer.fill(100)
    host.publish()
    one = host.open()
    host.writer.log.truncate_before(host.writer.log.active_base)
    assert one.read(0, 1 << 20) == []
    host.publish()
    with pytest.raises(OffsetOutOfRangeError):
        one.read(0, 1 << 20)


def test_a_file_that_stays_away_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.writer.fill(100)
    host.publish()
    one = host.open()
    for path in host.writer.directory.glob("*.log"):
        path.rename(path.with_suffix(".hidden"))
    assert one.read(0, 1 << 20) == []
    monkeypatch.setattr("zbroker.client.local_partition.MISSING_MS_MAX", 0)
    with pytest.raises(StorageError, match="t:0"):
        one.read(0, 1 << 20)


def test_nothing_has_moved_while_the_coordinators_word_stays(host: Host) -> None:
    one = host.open()
    assert not one.is_moved()
    host.writer.fill(1)
    host.publish()
    assert not one.is_moved()


def test_an_election_is_noticed_and_the_old_board_still_read(host: Host) -> None:
    host.writer.fill(1)
    host.publish()
    one = host.open()
    host.elect(EPOCH + 1)
    assert one.is_moved()
    assert [batch.base_offset for batch in one.read(0, 1 << 20)] == [0]


def test_a_retired_or_reused_cell_is_not_read_as_this_partition(host: Host) -> None:
    host.writer.fill(1)
    host.publish()
    one = host.open()
    host.cell.retire()
    assert len(one.read(0, 1 << 20)) == 1, "the last high watermark stays valid"
    host.worker.free(host.cell)
    for partition in range(1, 5):
        host.worker.claim(TOPIC_ID, partition)
    assert one.read(0, 1 << 20) == []
    assert one.range() is None
    assert one.is_moved()


def test_a_superseded_coordinator_is_not_believed(host: Host) -> None:
    one = host.open()
    CoordinatorBoardWriter.create(host.boards_dir, ids.own_incarnation() + 1, cells=4).supersede_older(host.boards_dir)
    assert one.is_moved()


def test_a_partition_that_is_not_led_on_the_board_cannot_be_opened(host: Host) -> None:
    host.cell.retire()
    with pytest.raises(LookupError):
        host.open()


def test_boards_are_mapped_once_and_unmapped_when_nobody_reads_them(host: Host) -> None:
    path = str(host.worker.path)
    first = host.boards.process_board(path)
    assert host.boards.process_board(path) is first
    host.boards.keep({path})
    assert host.boards.process_board(path) is first
    host.boards.keep(set())
    assert host.boards.process_board(path) is not first
    assert host.boards.process_board(path + "x") is None
    assert host.boards.coordinator_board(path + "x") is None


def test_read_durable_gives_out_nothing_behind_the_durable_offset_of_the_board(host: Host) -> None:
    one, other = host.open(is_durable_only=True), host.open()
    host.writer.fill(3)
    host.publish()
    assert one.high_watermark() == 9
    assert not one.has_more(0)
    assert one.read(0, 1 << 20) == []
    assert one.held_back(0) == 9, "what is awaited comes by a sync, not by an append"
    assert (one.bytes_ahead(0), other.held_back(0)) == (0, 0)
    host.cell.durable(6)
    assert one.has_more(0)
    assert one.held_back(0) == 0
    assert [batch.base_offset for batch in one.read(0, 1 << 20)] == [0, 3]
    assert not one.has_more(6)
    assert one.read(6, 1 << 20) == []
    assert one.range() == (0, 9), "both isolation levels end at the high watermark"
    assert [batch.base_offset for batch in other.read(0, 1 << 20)] == [0, 3, 6]
    host.cell.durable(9)
    assert [batch.base_offset for batch in one.read(6, 1 << 20)] == [6]
    assert (one.has_more(9), one.held_back(9)) == (False, 0)


def test_read_durable_does_not_step_back_when_the_next_leader_has_synced_less(host: Host) -> None:
    host.writer.fill(3)
    host.publish()
    host.cell.durable(3)
    one = host.open(is_durable_only=True)
    assert one.read(6, 1 << 20) == [], "an offset that is read and not synced here is waited for, and no error"
    with pytest.raises(OffsetOutOfRangeError):
        one.read(10, 1 << 20)


def test_a_board_of_an_older_epoch_than_the_metadata_is_not_followed(host: Host) -> None:
    with pytest.raises(LookupError):
        host.open(host.info(EPOCH + 1))
    host.publish(epoch=EPOCH + 1)
    host.open(host.info(EPOCH + 1))
    host.open(host.info(EPOCH))


def test_an_offset_that_the_log_has_and_the_high_watermark_has_not_reached_is_waited_for(host: Host) -> None:
    host.writer.fill(3)
    log = host.writer.log
    host.cell.restate(
        leader_epoch=EPOCH, log_start=0, log_end=9, segment_base=log.active_base, position=log.active_position,
        high_watermark=3, durable=0, size_bytes=0, segment_count=1,
    )  # fmt: skip
    one = host.open()
    assert not one.has_more(6), "the other copies have it soon"
    assert one.read(6, 1 << 20) == []
    assert one.has_more(10)
    with pytest.raises(OffsetOutOfRangeError):
        one.read(10, 1 << 20)
    host.publish()
    assert [batch.base_offset for batch in one.read(6, 1 << 20)] == [6]


def test_a_cell_that_follows_another_copy_is_not_read_and_one_that_retired_is_read_to_its_end(host: Host) -> None:
    host.writer.fill(2)
    host.publish()
    one, other = host.open(), host.open()
    assert [batch.base_offset for batch in one.read(0, 1 << 20)] == [0, 3]
    host.cell.retire()
    assert [batch.base_offset for batch in other.read(0, 1 << 20)] == [0, 3], "what was readable stays so"
    log = host.writer.log
    host.cell.restate(
        leader_epoch=EPOCH + 1, log_start=0, log_end=6, segment_base=log.active_base, position=log.active_position,
        high_watermark=6, durable=0, size_bytes=0, segment_count=1, state=CellState.FOLLOWING,
    )  # fmt: skip
    assert one.read(3, 1 << 20) == []
    assert one.is_moved()
