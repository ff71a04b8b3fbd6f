"""The leader epochs of a log: noted, kept in Kafka's file, corrected by the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import FailingFiles, append, kill, open_log
from zbroker.storage.epochs import Epochs, EpochStart, format_epochs, parse_epochs
from zbroker.storage.files import Files
from zbroker.storage.layout import EPOCHS


def test_the_file_is_kafkas(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3, epoch=2)
    append(log, 3, epoch=2)
    append(log, 3, epoch=5)
    assert (tmp_path / "p" / EPOCHS).read_text() == "0\n2\n2 0\n5 6\n"
    log.close()


@pytest.mark.parametrize(
    "text",
    ["", "0\n", "1\n1\n2 0\n", "0\n2\n2 0\n", "0\n2\n2 0\n2 5\n", "0\n2\n2 5\n3 5\n", "0\n1\n-1 0\n", "0\n1\nx y\n",
     "0\n1\n1 2 3\n"],
)  # fmt: skip
def test_a_text_that_contradicts_itself_is_no_epoch_file(text: str) -> None:
    assert parse_epochs(text.encode()) is None


def test_formatting_and_parsing_are_inverse() -> None:
    starts = [EpochStart(1, 0), EpochStart(4, 17), EpochStart(5, 1 << 60)]
    assert parse_epochs(format_epochs(starts)) == starts


def test_the_end_of_an_epoch_is_where_the_next_begins(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path, Files())
    assert epochs.end_offset_for(3, 0) == (-1, -1)
    for epoch, start in ((2, 0), (5, 6), (6, 9)):
        epochs.note_epoch(epoch, start)
    assert [epochs.end_offset_for(epoch, 20) for epoch in (1, 2, 3, 5, 6, 9)] == [
        (-1, -1), (2, 6), (2, 6), (5, 9), (6, 20), (6, 20),
    ]  # fmt: skip
    assert [epochs.epoch_at(offset) for offset in (0, 5, 6, 8, 9, 99)] == [2, 2, 5, 5, 6, 6]


def test_an_epoch_that_appended_nothing_is_replaced(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path, Files())
    epochs.note_epoch(2, 0)
    epochs.note_epoch(3, 6)
    epochs.note_epoch(4, 6)
    assert epochs.starts == [EpochStart(2, 0), EpochStart(4, 6)]


def test_epochs_follow_both_ends_of_the_log(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path, Files())
    for epoch, start in ((2, 0), (5, 6), (6, 9)):
        epochs.note_epoch(epoch, start)
    epochs.cut_start(7)
    assert epochs.starts == [EpochStart(5, 7), EpochStart(6, 9)]
    epochs.cut_end(9)
    assert epochs.starts == [EpochStart(5, 7)]


def test_a_noted_epoch_is_on_file_before_its_first_batch(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3, epoch=2)
    log.epochs.note_epoch(3, log.log_end)
    append(log, 3, epoch=3)
    kill(log)
    assert (tmp_path / "p" / EPOCHS).read_text() == "0\n2\n2 0\n3 3\n"
    log = open_log(tmp_path / "p")
    assert log.epochs.latest == 3
    log.close()


def test_a_lower_epoch_than_the_latest_is_a_programmers_error(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3, epoch=3)
    with pytest.raises(AssertionError):
        append(log, 3, epoch=2)
    log.close()


def test_a_batch_of_a_later_epoch_than_the_grant_is_not_taken_over(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3, epoch=3)
    append(log, 3, epoch=7)
    kill(log)
    log = open_log(tmp_path / "p", leader_epoch_hint=5)
    assert (log.log_end, log.epochs.latest) == (3, 3)
    log.close()


def test_a_failover_with_a_sound_tail_syncs_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path / "p")
    append(log, 3, epoch=3)
    kill(log)
    files = FailingFiles()
    log = open_log(tmp_path / "p", files=files, leader_epoch_hint=4)
    assert not log.recovery.was_torn
    assert "fdatasync" not in files.calls
    log.epochs.note_epoch(4, log.log_end)
    append(log, 3, epoch=4)
    assert "fdatasync" not in files.calls
    log.flush()
    assert "fdatasync" in files.calls
    log.close()
