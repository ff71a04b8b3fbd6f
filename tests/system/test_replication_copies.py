"""Real processes lead and follow, die, come back and change roles; router and coordinator are played by the test."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.scripted_copies import Copies
from zbroker.errors import NotEnoughReplicasError, NotLeaderForPartitionError
from zbroker.storage.layout import LOG

SMALL = {"segment.bytes": "16384"}
QUICK = {"replicas": {"lag_max_ms": 500}}


def values(count: int, begin: int = 0, size_bytes: int = 100) -> list[bytes]:
    return [b"%08d" % number + bytes(size_bytes) for number in range(begin, begin + count)]


def log_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes().rstrip(b"\0") for path in directory.glob(f"*{LOG}")}


def test_acks_all_is_answered_when_the_follower_has_the_record() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        assert copies.produce([b"one"]).produced()[0] == 0
        assert copies.log_end(second) == 1
        assert copies.high_watermark(first) == 1
        copies.wait_equal()
        assert copies.batches(first) == copies.batches(second)


def test_the_files_of_three_copies_are_alike_over_many_segments() -> None:
    with Copies(3, topic=SMALL) as copies:
        copies.elect(copies.numbers[0])
        for begin in range(0, 3_000, 50):
            assert copies.produce(values(50, begin)).produced()[0] == begin
        copies.wait_equal()
        found = [log_files(copies.copy_directory(number)) for number in copies.numbers]
        assert len(found[0]) > 10
        assert found[0] == found[1] == found[2]
        epochs = [(copies.copy_directory(n) / "leader-epoch-checkpoint").read_text() for n in copies.numbers]
        assert len(set(epochs)) == 1


def test_acks_all_waits_for_a_stopped_follower_and_goes_on_when_it_wakes() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"]).produced()
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"])
        assert copies.produce([b"three"], acks=1).produced()[0] == 2
        assert not copies.has_answer(waiting)
        assert copies.high_watermark(first) == 1
        copies.signal(second, signal.SIGCONT)
        assert copies.answer(waiting).produced()[0] == 1
        copies.wait_equal()


def test_t23_a_follower_cut_off_leaves_the_isr_and_returns() -> None:
    with Copies(2, config=QUICK) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"]).produced()
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"])
        copies.pump_until(lambda: copies.isr == [1])
        assert copies.answer(waiting).produced()[0] == 1
        assert copies.produce([b"three"]).produced()[0] == 2
        assert copies.state().copies[1].is_in_sync is False
        copies.signal(second, signal.SIGCONT)
        copies.wait_in_sync(2)
        assert copies.batches(first) == copies.batches(second)


def test_t23_below_min_insync_replicas_nothing_is_appended() -> None:
    with Copies(2, config=QUICK, topic={"min.insync.replicas": "2"}) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"]).produced()
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"])
        copies.pump_until(lambda: copies.isr == [1])
        with pytest.raises(NotEnoughReplicasError):
            copies.produce([b"three"]).produced()
        assert copies.log_end(first) == 2
        assert copies.high_watermark(first) == 1
        assert not copies.has_answer(waiting)
        copies.signal(second, signal.SIGCONT)
        assert copies.answer(waiting).produced()[0] == 1
        copies.wait_in_sync(2)


def test_a_killed_follower_catches_up_over_many_segments_after_its_return() -> None:
    with Copies(2, topic=SMALL) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce(values(50)).produced()
        copies.kill(second)
        copies.isr, copies.partition_epoch = [1], copies.partition_epoch + 1
        copies.give_news()
        for begin in range(50, 5_000, 50):
            assert copies.produce(values(50, begin)).produced()[0] == begin
        copies.start(second)
        assert copies.grant(second).log_end == 50
        copies.wait_in_sync(2)
        assert log_files(copies.copy_directory(first)) == log_files(copies.copy_directory(second))


def test_a_follower_leads_when_the_leader_was_killed_and_has_its_tail() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce(values(10)).produced()
        copies.signal(second, signal.SIGSTOP)
        assert copies.produce(values(10, 10), acks=1).produced()[0] == 10
        before = copies.batches(first)
        board = copies.board_path(first)
        copies.kill(first)
        copies.signal(second, signal.SIGCONT)
        copies.predecessor, copies.predecessor_board = 1, str(board)
        copies.leader, copies.epoch, copies.isr, copies.partition_epoch = second, 2, [2], 9
        result = copies.grant(second)
        assert (result.error, result.log_end, result.last_epoch) == (0, 20, 1)
        assert copies.batches(second) == before
        assert copies.high_watermark(second) == 20
        assert copies.produce([b"next"]).produced()[0] == 20
        copies.start(first)
        assert copies.grant(first).last_epoch == 1
        copies.wait_in_sync(2)
        assert copies.batches(first) == copies.batches(second)
        assert {header.leader_epoch for header, _ in copies.batches(first)} == {1, 2}


def test_a_new_leaders_high_watermark_is_not_below_the_dead_boards() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce(values(10)).produced()
        shown = copies.high_watermark(first)
        board = copies.board_path(first)
        copies.kill(first)
        copies.predecessor, copies.predecessor_board = 1, str(board)
        # Both stay in the ISR, so nothing but the dead board tells the new leader where readers are.
        copies.leader, copies.epoch, copies.partition_epoch = second, 2, 9
        assert copies.grant(second).error == 0
        assert copies.high_watermark(second) >= shown == 10


def test_what_only_the_old_leader_has_is_cut_when_another_history_won() -> None:
    with Copies(2, topic=SMALL) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce(values(10)).produced()
        copies.signal(second, signal.SIGSTOP)
        for begin in range(10, 510, 50):
            copies.produce(values(50, begin), acks=1).produced()
        copies.kill(first)
        copies.signal(second, signal.SIGCONT)
        # Without a predecessor the new leader knows nothing of the tail, as when that disk is gone.
        copies.leader, copies.epoch, copies.isr, copies.partition_epoch, copies.predecessor = second, 2, [2], 9, -1
        assert copies.grant(second).log_end == 10
        copies.produce([b"other history"]).produced()
        copies.start(first)
        assert copies.grant(first).log_end == 510
        copies.wait_in_sync(2)
        assert copies.log_end(first) == 11
        assert copies.batches(first) == copies.batches(second)


def test_leaders_change_places_many_times_and_nothing_is_lost() -> None:
    with Copies(2, topic=SMALL) as copies:
        copies.elect(copies.numbers[0])
        for turn in range(12):
            if turn:
                previous = copies.leader
                copies.predecessor, copies.predecessor_board = (
                    copies.copy_of(previous),
                    str(copies.board_path(previous)),
                )
                copies.leader = copies.numbers[turn % 2]
                copies.epoch += 1
                copies.partition_epoch += 1
                assert copies.grant(previous).error == 0  # the old one follows before the new one leads
                assert copies.grant(copies.leader).error == 0
            for number in range(4):
                assert copies.produce(values(25, turn * 100 + number * 25)).produced()[0] == turn * 100 + number * 25
        copies.wait_equal()
        assert copies.batches(copies.numbers[0]) == copies.batches(copies.numbers[1])
        assert copies.log_end(copies.leader) == 1_200


def test_who_waits_when_a_leader_is_demoted_is_told_that_it_is_not_the_leader() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"]).produced()
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"])
        copies.leader, copies.epoch, copies.partition_epoch = second, 2, 5
        assert copies.grant(first).error == 0
        with pytest.raises(NotLeaderForPartitionError):
            copies.answer(waiting).produced()
        with pytest.raises(NotLeaderForPartitionError):
            copies.produce([b"three"], number=first).produced()
        copies.signal(second, signal.SIGCONT)


def test_a_follower_that_cannot_open_the_leaders_files_gets_the_bytes_inline() -> None:
    with Copies(2, topic=SMALL) as copies:
        first, second = copies.numbers
        copies.wrong_directory_of = {first}
        copies.elect(first)
        for begin in range(0, 1_000, 50):
            assert copies.produce(values(50, begin)).produced()[0] == begin
        copies.wait_equal()
        assert log_files(copies.copy_directory(first)) == log_files(copies.copy_directory(second))


def test_a_follower_that_is_behind_the_log_start_begins_anew_there() -> None:
    topic = {**SMALL, "file.delete.delay.ms": "0"}
    with Copies(2, topic=topic, config={"storage": {"retention_check_interval_ms": 100}}) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce(values(50)).produced()
        copies.kill(second)
        copies.isr, copies.partition_epoch = [1], copies.partition_epoch + 1
        copies.give_news()
        for begin in range(50, 3_000, 50):
            copies.produce(values(50, begin)).produced()
        copies.delete_before(2_000)
        copies.start(second)
        copies.grant(second)
        copies.wait_in_sync(2)
        view = copies.view(second)
        assert view is not None
        assert view.log_start == 2_000
        assert copies.batches(second) == copies.batches(first)[-len(copies.batches(second)) :]
        assert copies.batches(second)[0][0].base_offset <= 2_000


def test_a_follower_lets_go_of_what_the_leader_lets_go_of() -> None:
    with Copies(2, topic=SMALL) as copies:
        first, second = copies.numbers
        copies.elect(first)
        for begin in range(0, 1_000, 50):
            copies.produce(values(50, begin)).produced()
        copies.delete_before(500)
        copies.pump_until(lambda: (found := copies.view(second)) is not None and found.log_start == 500)
        assert set(log_files(copies.copy_directory(second))) == set(log_files(copies.copy_directory(first)))


def test_acks_fsync_waits_for_the_disks_of_both_copies() -> None:
    with Copies(2, topic={"min.insync.replicas": "2"}) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"], acks=2).produced()
        for number in (first, second):
            view = copies.view(number)
            assert view is not None
            assert view.durable == 1, number
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"], acks=2)
        copies.pump_until(lambda: (found := copies.view(first)) is not None and found.durable == 2)
        assert copies.produce([b"three"], acks=1).produced()[0] == 2
        assert not copies.has_answer(waiting)
        copies.signal(second, signal.SIGCONT)
        copies.answer(waiting).produced()


def test_all_killed_at_once_come_back_with_everything() -> None:
    with Copies(3, topic=SMALL) as copies:
        copies.elect(copies.numbers[0])
        for begin in range(0, 500, 50):
            copies.produce(values(50, begin)).produced()
        for number in copies.numbers:
            copies.kill(number)
        for number in copies.numbers:
            copies.start(number)
        copies.predecessor, copies.predecessor_board = -1, ""
        copies.leader, copies.epoch, copies.partition_epoch = copies.numbers[2], 2, 9
        assert copies.grant(copies.numbers[2]).log_end == 500
        for number in copies.numbers[:2]:
            copies.grant(number)
        assert copies.produce(values(50, 500)).produced()[0] == 500
        copies.wait_equal()
        assert copies.batches(copies.numbers[0]) == copies.batches(copies.numbers[2])


def test_an_isr_change_that_nobody_answers_holds_nothing_up_for_ever() -> None:
    with Copies(2, config=QUICK) as copies:
        first, second = copies.numbers
        copies.elect(first)
        copies.produce([b"one"]).produced()
        copies.answers_isr = False
        copies.signal(second, signal.SIGSTOP)
        waiting = copies.ask_produce([b"two"])
        copies.pump_until(lambda: len(copies.isr_asked) >= 2)
        assert not copies.has_answer(waiting)
        copies.answers_isr = True
        copies.pump_until(lambda: copies.isr == [1])
        copies.answer(waiting).produced()
        copies.signal(second, signal.SIGCONT)
        copies.wait_in_sync(2)


def test_processes_that_follow_end_in_order_on_sigterm() -> None:
    with Copies(2) as copies:
        copies.elect(copies.numbers[0])
        copies.produce(values(10)).produced()
        for number in reversed(copies.numbers):
            assert copies.stop(number) == 0
        wait_until(lambda: not list(copies.paths.run_dir.glob("stream-*.sock")))
        for number in copies.numbers:
            assert (copies.copy_directory(number) / "clean-shutdown").exists()
