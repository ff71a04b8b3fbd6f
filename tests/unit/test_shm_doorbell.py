"""Doorbells ring sleepers, spare those awake, and never lose a name without saying so."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from zbroker.shm.doorbell import ALL_LANES, Bell, Doorbell, Sleeper

INDEX = 3


@pytest.fixture
def doorbell() -> Iterator[Doorbell]:
    made = Doorbell()
    yield made
    made.close()


def words() -> memoryview:
    return memoryview(bytearray(64)).cast("Q")


def is_readable(doorbell: Doorbell) -> bool:
    return bool(select.select([doorbell], [], [], 0)[0])


def test_a_sleeper_is_rung_once_by_each_ringer_for_each_sleep(doorbell: Doorbell) -> None:
    cell = words()
    sleeper = Sleeper(cell, INDEX)
    first, second = Bell(doorbell.write_fd, 1, cell, INDEX), Bell(doorbell.write_fd, 2, cell, INDEX)
    for _ in range(3):
        sleeper.prepare()
        assert first.ring_if_asleep()
        assert not first.ring_if_asleep()
        assert second.ring_if_asleep()
        assert is_readable(doorbell)
        assert doorbell.drain() == {1, 2}
        sleeper.awake()
    assert doorbell.drain() == set()


def test_nothing_is_written_for_a_process_that_is_awake(doorbell: Doorbell) -> None:
    cell = words()
    sleeper = Sleeper(cell, INDEX)
    bell = Bell(doorbell.write_fd, 1, cell, INDEX)
    assert not bell.ring_if_asleep()
    sleeper.prepare()
    sleeper.awake()
    sleeper.awake()
    assert not bell.ring_if_asleep()
    assert not is_readable(doorbell)


def test_a_ringer_tells_a_sleeper_from_one_that_is_awake_though_it_has_never_slept(doorbell: Doorbell) -> None:
    cell = words()
    sleeper = Sleeper(cell, INDEX)
    bell = Bell(doorbell.write_fd, 1, cell, INDEX)
    assert not bell.ring_sleeper()
    sleeper.prepare()
    assert [bell.ring_sleeper(), bell.ring_sleeper()] == [True, True], "rung by this call or an earlier one"
    sleeper.awake()
    assert not bell.ring_sleeper()


def test_the_ringer_leaves_the_word_alone(doorbell: Doorbell) -> None:
    cell = words()
    Sleeper(cell, INDEX).prepare()
    before = cell.tolist()
    assert Bell(doorbell.write_fd, 1, cell, INDEX).ring_if_asleep()
    assert cell.tolist() == before


def test_a_sleeper_that_takes_over_a_word_begins_awake_and_after_the_last_value() -> None:
    cell = words()
    cell[INDEX] = 7
    sleeper = Sleeper(cell, INDEX)
    sleeper.prepare()
    assert cell[INDEX] == 9


def test_an_exited_ringer_does_not_make_poll_report_the_pipe(doorbell: Doorbell) -> None:
    ringer_fd = os.dup(doorbell.write_fd)
    os.close(ringer_fd)
    poll = select.poll()
    poll.register(doorbell, select.POLLIN)
    assert poll.poll(0) == []


def test_a_full_pipe_blocks_nobody_and_asks_to_look_at_every_lane(doorbell: Doorbell) -> None:
    bell = Bell(doorbell.write_fd, 5, words(), INDEX)
    for _ in range(20_000):
        bell.ring()
    assert doorbell.drain() == {5, ALL_LANES}
    assert doorbell.drain() == set()
    assert not is_readable(doorbell)


def test_part_of_a_number_asks_to_look_at_every_lane_and_the_next_is_whole_again(doorbell: Doorbell) -> None:
    bell = Bell(doorbell.write_fd, 5, words(), INDEX)
    os.write(doorbell.write_fd, b"\x01")
    bell.ring()
    assert ALL_LANES in doorbell.drain()
    bell.ring()
    assert doorbell.drain() == {5}


@pytest.mark.parametrize("count", [1023, 1024, 1025, 3000])
def test_many_rings_are_read_at_once(doorbell: Doorbell, count: int) -> None:
    for number in range(count):
        Bell(doorbell.write_fd, number, words(), INDEX).ring()
    assert doorbell.drain() == set(range(count))
    assert not is_readable(doorbell)


def test_ringing_a_process_that_is_gone_is_silent() -> None:
    doorbell = Doorbell()
    ringer_fd = os.dup(doorbell.write_fd)
    doorbell.close()
    cell = words()
    Sleeper(cell, INDEX).prepare()
    assert Bell(ringer_fd, 1, cell, INDEX).ring_if_asleep()
    os.close(ringer_fd)
