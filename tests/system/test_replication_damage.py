"""T24: bytes of one copy change under a running broker; it is found, fetched again, and never served or led from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripted_copies import Copies
from tests.system.test_replication_copies import SMALL, log_files, values
from zbroker.errors import CopyDamagedError, StorageError
from zbroker.storage.checkpoint import Positions
from zbroker.storage.files import Files
from zbroker.storage.layout import LOG

SCRUB = {"storage": {"scrub_interval_ms": 100, "scrub_bytes_per_s": 64 << 20}}
NO_SCRUB = {"storage": {"scrub_bytes_per_s": 0}}


def flip(directory: Path, number: int = 0, position: int = 5_000) -> Path:
    """Flip a bit of the segment of this number, oldest first."""
    path = sorted(directory.glob(f"*{LOG}"))[number]
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 4]))
    return path


def fill(copies: Copies, count: int = 1_000) -> None:
    for begin in range(0, count, 50):
        assert copies.produce(values(50, begin)).produced()[0] == begin
    copies.wait_equal()


def test_t24_a_follower_finds_damage_says_so_and_is_fetched_again() -> None:
    with Copies(2, topic=SMALL, config=SCRUB) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies)
        before = log_files(copies.copy_directory(first))
        flip(copies.copy_directory(second))
        copies.pump_until(lambda: bool(copies.suspects))
        assert copies.suspects[0].copy_id == 2
        copies.give_news()
        copies.wait_in_sync(2)
        assert copies.batches(first) == copies.batches(second)
        assert log_files(copies.copy_directory(first)) == before
        assert not (copies.copy_directory(second) / "suspect").exists()


def test_t24_a_suspect_copy_confirms_nothing_before_the_coordinator_has_noted_it() -> None:
    with Copies(2, topic=SMALL, config=SCRUB) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies)
        copies.answers_suspect = False
        flip(copies.copy_directory(second))
        copies.pump_until(lambda: len(copies.suspects) >= 2)
        waiting = copies.ask_produce([b"waits"])
        reports = len(copies.suspects)
        copies.pump_until(lambda: len(copies.suspects) > reports)
        assert not copies.has_answer(waiting)
        copies.answers_suspect = True
        copies.pump_until(lambda: copies.isr == [1])
        copies.give_news()
        copies.answer(waiting).produced()
        copies.wait_in_sync(2)


def test_t24_a_leader_finds_damage_and_leads_and_serves_no_more() -> None:
    with Copies(2, topic=SMALL, config=SCRUB) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies)
        sound = log_files(copies.copy_directory(second))
        flip(copies.copy_directory(first))
        copies.pump_until(lambda: bool(copies.suspects))
        assert copies.suspects[0].copy_id == 1
        with pytest.raises(StorageError):
            copies.produce([b"refused"]).produced()
        board = str(copies.board_path(first))
        copies.leader, copies.epoch, copies.isr, copies.partition_epoch = second, 2, [2], 9
        copies.predecessor, copies.predecessor_board = -1, board
        assert copies.grant(second).error == 0
        result = copies.grant(first)
        assert (result.error, result.is_suspect, result.log_end) == (0, True, 0)
        copies.wait_in_sync(2)
        assert copies.batches(first) == copies.batches(second)
        assert log_files(copies.copy_directory(second)) == sound


def test_t24_a_copy_marked_as_damaged_is_not_opened_to_lead_by_the_next_process() -> None:
    with Copies(2, topic=SMALL, config=SCRUB) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies)
        flip(copies.copy_directory(first))
        copies.pump_until(lambda: bool(copies.suspects))
        copies.kill(first)
        copies.start(first)
        copies.epoch, copies.partition_epoch = 2, 9
        result = copies.grant(first)
        assert (result.error, result.is_suspect) == (CopyDamagedError.code, True)
        copies.leader, copies.epoch, copies.isr, copies.predecessor = second, 3, [2], -1
        assert copies.grant(second).error == 0
        assert copies.grant(first).is_suspect
        copies.wait_in_sync(2)


def test_t24_bytes_that_are_wrong_in_the_leaders_file_are_not_copied() -> None:
    with Copies(2, topic=SMALL, config=NO_SCRUB) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies, 100)
        copies.kill(second)
        copies.isr, copies.partition_epoch = [1], copies.partition_epoch + 1
        copies.give_news()
        for begin in range(100, 1_000, 50):
            copies.produce(values(50, begin)).produced()
        sound = copies.batches(first)
        flip(copies.copy_directory(first), number=3)
        copies.start(second)
        copies.grant(second)
        # The follower sees that a CRC does not match and asks for the bytes; so the leader finds its own damage.
        copies.pump_until(lambda: bool(copies.suspects))
        assert copies.suspects[0].copy_id == 1
        assert 0 < copies.log_end(second) < 1_000
        assert copies.batches(second) == sound[: len(copies.batches(second))]


def test_damage_below_the_high_watermark_at_a_start_sets_the_copy_aside() -> None:
    config = {"storage": {"scrub_bytes_per_s": 0, "high_watermark_checkpoint_interval_ms": 50}}
    with Copies(2, config=config) as copies:
        first, second = copies.numbers
        copies.elect(first)
        fill(copies)
        directory = copies.copy_directory(second)
        copies.pump_until(lambda: Positions(directory, Files()).saved.high_watermark == 1_000)
        copies.kill(second)
        flip(copies.copy_directory(second))
        copies.start(second)
        result = copies.grant(second)
        assert (result.error, result.is_suspect, result.log_end) == (0, True, 0)
        copies.wait_equal()
        assert copies.batches(first) == copies.batches(second)
        assert copies.copy_directory(second).with_name("t00000001-0.damaged").is_dir()


def test_the_only_copy_goes_on_with_its_damage_and_says_so() -> None:
    with Copies(1, topic=SMALL, config=SCRUB) as copies:
        copies.elect(copies.numbers[0])
        fill(copies)
        flip(copies.copy_directory(copies.numbers[0]))
        copies.pump_until(lambda: bool(copies.suspects))
        assert copies.produce([b"goes on"]).produced()[0] == 1_000
