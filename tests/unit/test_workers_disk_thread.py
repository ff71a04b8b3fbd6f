"""Works for the disk, done beside the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.conditions import wait_until
from zbroker.clock import HostClock, ManualClock
from zbroker.errors import StorageError
from zbroker.transport.loop import Loop
from zbroker.workers.disk_thread import DiskThread, IoClock


class Board:
    def __init__(self) -> None:
        self.since = 0

    def begin(self, now_ns: int) -> None:
        self.since = now_ns

    def end(self) -> None:
        self.since = 0


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def disk(loop: Loop, board: Board) -> Iterator[DiskThread]:
    made = DiskThread(loop, IoClock(HostClock(), board.begin, board.end), "test")
    yield made
    assert made.close(timeout_s=20)


def test_works_are_done_elsewhere_in_order_and_reported_in_the_loop(loop: Loop, disk: DiskThread) -> None:
    threads: set[int] = set()
    done: list[tuple[int, int]] = []

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        return number

    for number in range(20):
        disk.submit(
            lambda number=number: work(number),  # type: ignore[misc] # mypy sees no default in a lambda
            lambda result, error: done.append((result, threading.get_ident())),
        )
    wait_until(lambda: loop.run_once(10) >= 0 and len(done) == 20)
    assert done == [(number, threading.get_ident()) for number in range(20)]
    assert threading.get_ident() not in threads
    assert len(threads) == 1


def test_an_error_is_handed_over_and_the_next_work_is_done(loop: Loop, disk: DiskThread) -> None:
    errors: list[BaseException | None] = []

    def fail() -> None:
        raise StorageError("injected")

    disk.submit(fail, lambda _, error: errors.append(error))
    disk.submit(lambda: None, lambda _, error: errors.append(error))
    wait_until(lambda: loop.run_once(10) >= 0 and len(errors) == 2)
    assert isinstance(errors[0], StorageError)
    assert errors[1] is None


def test_the_board_says_since_when_the_disk_is_waited_for(loop: Loop, disk: DiskThread, board: Board) -> None:
    go = threading.Event()
    done: list[object] = []
    disk.submit(go.wait, lambda result, _: done.append(result))
    wait_until(lambda: board.since > 0)
    go.set()
    wait_until(lambda: loop.run_once(10) >= 0 and bool(done))
    assert board.since == 0


def test_with_several_waits_the_oldest_counts() -> None:
    board, clock = Board(), ManualClock(now_ns=1_000_000)
    io_clock = IoClock(clock, board.begin, board.end)
    io_clock.enter(1)
    clock.advance(5)
    io_clock.enter(2)
    assert board.since == 1_000_000
    io_clock.leave(1)
    assert board.since == 6_000_000
    io_clock.leave(2)
    assert board.since == 0


def test_close_finishes_what_was_submitted(loop: Loop, board: Board) -> None:
    disk = DiskThread(loop, IoClock(HostClock(), board.begin, board.end), "test")
    done: list[int] = []
    for number in range(50):
        disk.submit(lambda number=number: number, lambda result, _: done.append(result))  # type: ignore[misc] # as above
    assert disk.close(timeout_s=20)
    assert done == list(range(50))
