"""Boards: what a process publishes is what the others read, and a reader is never told half of a change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from zbroker import ids
from zbroker.errors import PolicyViolationError
from zbroker.shm import layout
from zbroker.shm.board import BoardWriter, PartitionCellWriter
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.coordinator_board import CoordinatorBoardReader, CoordinatorBoardWriter, Leader
from zbroker.shm.layout import CellState, Counter, ProcessState

NUMBER = ids.worker_number(0)


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[tuple[BoardWriter, BoardReader]]:
    writer = BoardWriter.create(tmp_path, NUMBER, ids.own_incarnation(), cells=4)
    reader = BoardReader.open(writer.path)
    yield writer, reader
    reader.close()
    writer.close(unlink=True)


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[tuple[CoordinatorBoardWriter, CoordinatorBoardReader]]:
    writer = CoordinatorBoardWriter.create(tmp_path, ids.own_incarnation(), cells=2)
    reader = CoordinatorBoardReader.open(writer.path)
    yield writer, reader
    reader.close()
    writer.close(unlink=True)


def lead(cell: PartitionCellWriter, *, epoch: int = 1, high_watermark: int = 0, segment_base: int = 0) -> None:
    cell.restate(
        leader_epoch=epoch, log_start=0, log_end=high_watermark, segment_base=segment_base, durable=0, size_bytes=0,
        position=high_watermark * 10, high_watermark=high_watermark, segment_count=1,
    )  # fmt: skip


def test_the_furthest_reader_is_shown_from_the_first_question_on(
    boards: tuple[BoardWriter, BoardReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = boards
    cell = writer.claim(1, 0)
    lead(cell, high_watermark=100)
    for asked, shown in ((None, None), (0, 0), (70, 70), (5, 70)):
        if asked is not None:
            cell.note_reader(asked)
        view = reader.read_cell(cell.slot)
        assert view is not None
        assert view.reader_offset == shown
        assert (view.readers_seen_ns > 0) == (asked is not None)
    monkeypatch.setattr("zbroker.shm.board.READERS_GONE_NS", -1)
    cell.note_reader(5)
    view = reader.read_cell(cell.slot)
    assert view is not None
    assert view.reader_offset == 5, "whoever was further has left"
    writer.free(cell)
    view = reader.read_cell(writer.claim(2, 0).slot)
    assert view is not None
    assert view.reader_offset is None, "another partition's cell begins anew"


def test_what_a_process_says_of_itself_is_read_by_others(boards: tuple[BoardWriter, BoardReader]) -> None:
    writer, reader = boards
    assert reader.state is ProcessState.STARTING
    writer.set_state(ProcessState.RUNNING)
    writer.beat(5)
    writer.io_begin(6)
    writer.count(Counter.BYTES_IN, 1000)
    writer.count(Counter.BYTES_IN, 24)
    writer.set_counter(Counter.LOOPS, 9)
    assert (reader.state, reader.beat_ns, reader.io_since_ns) == (ProcessState.RUNNING, 5, 6)
    assert reader.counters()[Counter.BYTES_IN] == 1024
    assert reader.counter(Counter.LOOPS) == 9
    writer.io_end()
    assert reader.io_since_ns == 0
    assert (reader.pid, reader.process_number, reader.incarnation) == (os.getpid(), NUMBER, ids.own_incarnation())
    assert reader.is_alive


def test_sleep_shows_on_the_board(boards: tuple[BoardWriter, BoardReader]) -> None:
    writer, reader = boards
    sleeper = writer.sleeper()
    assert not reader.is_asleep
    sleeper.prepare()
    assert reader.is_asleep
    sleeper.awake()
    assert not reader.is_asleep


def test_a_partition_is_found_by_its_ids_and_read_whole(boards: tuple[BoardWriter, BoardReader]) -> None:
    writer, reader = boards
    lead(writer.claim(9, 0))
    lead(writer.claim(9, 1), epoch=3, high_watermark=7, segment_base=5)
    found = reader.partition_cell(9, 1)
    assert found is not None
    assert found.frontier() == (7, 5, 70)
    assert found.high_watermark() == 7
    view = found.view()
    assert view is not None
    assert (view.topic_id, view.partition, view.leader_epoch, view.state) == (9, 1, 3, CellState.LEADING)
    assert [(one.topic_id, one.partition) for one in reader.partitions()] == [(9, 0), (9, 1)]
    assert reader.find_cell(9, 2) is None


def test_an_append_moves_the_frontier_without_a_new_version(boards: tuple[BoardWriter, BoardReader]) -> None:
    writer, reader = boards
    cell = writer.claim(1, 0)
    lead(cell)
    found = reader.partition_cell(1, 0)
    assert found is not None
    version = reader.words[found.at]
    cell.publish(10, 4096, 9, 4096, 123)
    assert found.frontier() == (9, 0, 4096)
    assert reader.words[found.at] == version
    cell.durable(8)
    view = found.view()
    assert view is not None
    assert (view.log_end, view.durable, view.last_append_ns, view.size_bytes) == (10, 8, 123, 4096)


def test_the_high_watermark_of_a_partition_never_goes_back(boards: tuple[BoardWriter, BoardReader]) -> None:
    cell = boards[0].claim(1, 0)
    lead(cell, high_watermark=5)
    with pytest.raises(AssertionError):
        cell.publish(9, 90, 4, 90, 1)
    with pytest.raises(AssertionError):
        lead(cell, epoch=2, high_watermark=4)


def test_a_retired_partition_keeps_its_last_high_watermark(boards: tuple[BoardWriter, BoardReader]) -> None:
    writer, reader = boards
    cell = writer.claim(1, 0)
    lead(cell, high_watermark=5)
    cell.retire()
    found = reader.partition_cell(1, 0)
    assert found is not None
    view = found.view()
    assert view is not None
    assert (view.state, view.high_watermark) == (CellState.RETIRED, 5)
    assert found.frontier() == (5, 0, 50)


def test_a_slot_given_to_another_partition_is_not_taken_for_the_old_one(
    boards: tuple[BoardWriter, BoardReader],
) -> None:
    writer, reader = boards
    cells = [writer.claim(1, partition) for partition in range(4)]
    lead(cells[0], high_watermark=5)
    found = reader.partition_cell(1, 0)
    assert found is not None
    with pytest.raises(PolicyViolationError, match="4 partitions"):
        writer.claim(2, 0)
    writer.free(cells[0])
    assert found.frontier() is None
    assert reader.read_cell(0) is None
    lead(writer.claim(2, 0), high_watermark=100)
    assert found.frontier() is None
    assert found.view() is None
    assert reader.find_cell(1, 0) is None
    assert reader.find_cell(2, 0) == 0


def test_a_writer_that_died_in_the_middle_of_a_change_is_not_waited_for(
    boards: tuple[BoardWriter, BoardReader],
) -> None:
    writer, reader = boards
    cell = writer.claim(1, 0)
    lead(cell, high_watermark=5)
    cell._open()
    found = reader.partition_cell(1, 0)
    assert found is not None
    assert found.frontier() is None
    assert found.view() is None
    assert found.high_watermark() == 5, "the word itself is still a value that was true"


def test_the_newest_live_board_is_found_and_a_dead_one_is_not(tmp_path: Path) -> None:
    assert BoardReader.find(tmp_path / "absent", "worker-0") is None
    dead = (1 << 22) + 4_000_000  # A start one tick after boot with a pid that is not in use.
    assert not ids.is_alive(dead)
    BoardWriter.create(tmp_path, NUMBER, dead, cells=1).close()
    assert BoardReader.find(tmp_path, "worker-0") is None
    live = BoardWriter.create(tmp_path, NUMBER, ids.own_incarnation(), cells=1)
    found = BoardReader.find(tmp_path, "worker-0")
    assert found is not None
    assert found.incarnation == ids.own_incarnation()
    assert [incarnation for _, incarnation, _ in find_boards(tmp_path, "worker-0")] == [ids.own_incarnation(), dead]
    assert find_boards(tmp_path, "worker-1") == []
    found.close()
    live.close()


def test_a_leader_is_read_with_the_epoch_it_belongs_to(
    coordinator: tuple[CoordinatorBoardWriter, CoordinatorBoardReader],
) -> None:
    writer, reader = coordinator
    slot = writer.claim(4, 2)
    assert writer.claim(4, 2) == slot
    cell = reader.leader_cell(slot, 4, 2)
    assert cell.leader() == Leader(0, None, None)
    version = cell.version()
    writer.set_leader(slot, 6, NUMBER, 1234)
    assert cell.version() != version
    assert cell.leader() == Leader(6, NUMBER, 1234)
    writer.set_leader(slot, 7, None, None)
    assert cell.leader() == Leader(7, None, None)
    writer.free(4, 2)
    assert cell.leader() is None


def test_freed_slots_of_the_coordinator_are_used_again_when_all_were_given_out(
    coordinator: tuple[CoordinatorBoardWriter, CoordinatorBoardReader],
) -> None:
    writer, reader = coordinator
    old = reader.leader_cell(writer.claim(1, 0), 1, 0)
    writer.claim(1, 1)
    with pytest.raises(PolicyViolationError):
        writer.claim(1, 2)
    writer.free(1, 0)
    assert writer.claim(1, 2) == 0
    assert old.leader() is None


def test_the_wanted_processes_and_ready_are_read_as_they_were_set(
    coordinator: tuple[CoordinatorBoardWriter, CoordinatorBoardReader],
) -> None:
    writer, reader = coordinator
    assert reader.wanted() is None
    assert not reader.is_ready
    writer.set_wanted([0, 1, 16, 18])
    assert reader.wanted() == [0, 1, 16, 18]
    version = reader.wanted_version()
    writer.set_wanted([])
    assert reader.wanted() == []
    assert reader.wanted_version() != version
    writer.set_ready()
    assert reader.is_ready


def test_a_successor_tells_the_readers_of_a_dead_coordinators_board(tmp_path: Path) -> None:
    CoordinatorBoardWriter.create(tmp_path, 999 << 22 | 1, cells=1).close()
    old = CoordinatorBoardReader.open(find_boards(tmp_path)[0][2])
    assert not old.is_superseded
    new = CoordinatorBoardWriter.create(tmp_path, ids.own_incarnation(), cells=1)
    assert new.supersede_older(tmp_path) == 1
    assert old.is_superseded
    found = CoordinatorBoardReader.find(tmp_path)
    assert found is not None
    assert not found.is_superseded
    assert new.supersede_older(tmp_path) == 0, "a board is marked once"
    for one in (old, found):
        one.close()
    new.close()


def test_the_words_of_the_successor_and_of_the_sleeper_share_no_line_with_others() -> None:
    lines = {name: getattr(layout, name) // 8 for name in ("H_BEAT_NS", "H_SLEEP_SEQ", "H_SUCCESSOR", "H_COUNTERS")}
    assert len(set(lines.values())) == len(lines)
