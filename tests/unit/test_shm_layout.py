"""The byte layouts of shared memory stay what they are: golden files, and refusal of unknown versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zbroker import ids
from zbroker.errors import StorageError, UnsupportedVersionError
from zbroker.shm import layout
from zbroker.shm.board import BoardWriter, board_path, parse_board_name
from zbroker.shm.board_reader import BoardReader
from zbroker.shm.coordinator_board import CoordinatorBoardReader, CoordinatorBoardWriter
from zbroker.shm.lane import Lane
from zbroker.shm.layout import Counter, ProcessState

GOLDEN = Path(__file__).parents[1] / "golden"
INCARNATION = 0x1122334455667788


def dump(view: memoryview) -> str:
    """Offset and 16 bytes a line in hex, lines of zeros left out."""
    lines = []
    for at in range(0, len(view), 16):
        piece = bytes(view[at : at + 16])
        if piece.strip(b"\0"):
            lines.append(f"{at:06x} {piece.hex(' ', 8)}")
    return "\n".join(lines) + "\n"


def check_golden(name: str, found: str) -> None:
    """Compare with the golden file; its lines that begin with '#' are words for the reader."""
    expected = "".join(
        line for line in (GOLDEN / name).read_text().splitlines(keepends=True) if not line.startswith("#")
    )
    assert found == expected, f"{name} differs; found:\n{found}"


def make_board(directory: Path) -> BoardWriter:
    board = BoardWriter.create(directory, ids.worker_number(2), INCARNATION, cells=2)
    board.beat(0x0101)
    board.io_begin(0x0202)
    board.set_state(ProcessState.RUNNING)
    board.count(Counter.RECORDS_IN, 0x0303)
    board.count(Counter.DEATHS_SEEN)
    board.sleeper().prepare()
    cell = board.claim(0xAB, 5)
    cell.restate(
        leader_epoch=7, log_start=1, log_end=30, segment_base=20, position=0x999, high_watermark=29, durable=10,
        size_bytes=0x5000, segment_count=3, last_append_ns=0x7777,
    )  # fmt: skip
    cell.publish(31, 0xAAA, 30, 0x5100, 0x8888)
    return board


def test_a_process_board_has_exactly_the_golden_bytes(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    path = board.path
    board.close()
    check_golden("shm_board.txt", dump(memoryview(path.read_bytes())))


def test_a_coordinator_board_has_exactly_the_golden_bytes(tmp_path: Path) -> None:
    board = CoordinatorBoardWriter.create(tmp_path, INCARNATION, cells=2)
    board.set_wanted([1, 0, 16, 18])
    board.set_ready()
    board.set_leader(board.claim(0xAB, 5), 7, ids.worker_number(2), INCARNATION + 1)
    board.claim(0xAC, 0)
    path = board.path
    board.close()
    check_golden("shm_coordinator_board.txt", dump(memoryview(path.read_bytes())))


def test_a_lane_has_exactly_the_golden_bytes() -> None:
    worker = Lane.create(0x42, INCARNATION, 4096, 8192)
    client = Lane.attach(os.dup(worker.fd))
    assert client.requests.try_write([b"header", b"12345678", b"x"])
    assert client.requests.try_write([b"two", b"frames"])
    assert worker.requests.take() is not None
    assert worker.replies.try_write([b"reply"])
    client.words[layout.L_CLIENT_SLEEP_SEQ] = 9
    client.close()
    found = dump(worker._region.bytes)
    worker.close()
    check_golden("shm_lane.txt", found)


@pytest.mark.parametrize("number", [ids.COORDINATOR, ids.ROUTER, ids.worker_number(3), ids.replica_number(12)])
def test_a_board_name_gives_back_its_process_and_incarnation(number: int) -> None:
    path = board_path(Path("/x"), number, INCARNATION)
    assert parse_board_name(path.name) == (ids.process_name(number), INCARNATION)


@pytest.mark.parametrize(
    "name", ["worker-0.board", "worker-0.12.board", "x-0.1122334455667788.board", "worker-0.1122334455667788", "lock-a"]
)
def test_other_names_are_no_boards(name: str) -> None:
    assert parse_board_name(name) is None


def test_keys_tell_partitions_apart_and_zero_names_none() -> None:
    keys = {layout.cell_key(topic_id, partition) for topic_id in (1, 2, 2**32 - 1) for partition in (0, 1, 2**31)}
    assert len(keys) == 9
    assert 0 not in keys
    assert all(layout.cell_key(*layout.split_key(key)) == key for key in keys)


def patch_word(path: Path, index: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(index * 8)
        file.write(value.to_bytes(8, "little"))


@pytest.mark.parametrize("version", [0, layout.BOARD_VERSION + 1])
def test_a_board_of_an_unknown_version_is_refused_by_name(tmp_path: Path, version: int) -> None:
    board = make_board(tmp_path)
    board.close()
    patch_word(board.path, layout.H_VERSION, version)
    with pytest.raises(UnsupportedVersionError, match=f"version {version}, this zbroker reads"):
        BoardReader.open(board.path)


def test_a_file_that_is_no_board_is_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.close()
    patch_word(board.path, layout.H_MAGIC, 1)
    with pytest.raises(StorageError, match="not a zbroker file"):
        BoardReader.open(board.path)
    short = tmp_path / "short"
    short.write_bytes(b"zbBOARD\0")
    with pytest.raises(StorageError, match="no region"):
        BoardReader.open(short)


def test_a_board_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.close()
    with pytest.raises(StorageError, match="kind 1, not 2"):
        CoordinatorBoardReader.open(board.path)


def test_a_board_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    board = make_board(tmp_path)
    board.close()
    patch_word(board.path, layout.H_CELL_COUNT, 1000)
    with pytest.raises(StorageError, match="where its header needs"):
        BoardReader.open(board.path)
