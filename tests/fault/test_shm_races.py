"""Two real processes at full speed on one region: nothing is lost, torn, reordered or invented."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.shm import layout
from zbroker.shm.board import BoardWriter, PartitionCellWriter
from zbroker.shm.doorbell import SLEEP_MS_MAX, Bell, Doorbell, Sleeper
from zbroker.shm.lane import Lane

NUMBER = ids.worker_number(0)
LATE_MS_MAX = 20_000

RING_WRITER = """
import os, sys, zlib
from zbroker.shm.lane import Lane
lane, count, blob = Lane.attach(int(sys.argv[1])), int(sys.argv[2]), bytes(range(256)) * 2
for number in range(count):
    body = blob[number % 251 : number % 251 + number % 97]
    frames = (number.to_bytes(8, "little") + zlib.crc32(body, number).to_bytes(4, "little"), body)
    while not lane.requests.try_write(frames):
        os.sched_yield()
lane.close()
"""


@contextmanager
def running(program: str, *arguments: object, fds: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """The other side's process. It does not outlive a test that fails, for which it would wait for ever."""
    with subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], pass_fds=fds) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_t38_a_million_messages_through_a_small_ring_arrive_whole_and_in_order() -> None:
    count = 1_000_000
    lane = Lane.create(1, 77, 8192, 4096)
    with running(RING_WRITER, lane.fd, count, fds=[lane.fd]) as writer:
        expected = 0
        take = lane.requests.take
        while expected < count:
            frames = take()
            if frames is None:
                assert writer.poll() in (None, 0) or lane.requests.readable(), "the writer died"
                os.sched_yield()
                continue
            head, body = frames
            assert int.from_bytes(head[:8], "little") == expected
            assert int.from_bytes(head[8:], "little") == zlib.crc32(body, expected), f"message {expected} is torn"
            expected += 1
        assert writer.wait() == 0
    assert not lane.requests.readable()
    assert lane.is_closed_by_peer
    lane.close()


BOARD_READER = """
import json, sys, time
from pathlib import Path
from zbroker.shm.board_reader import BoardReader
cell = BoardReader.open(Path(sys.argv[1])).partition_cell(1, 0)
deadline, last, loads, wrong, half, snapshots = time.monotonic() + float(sys.argv[2]), 0, 0, 0, 0, 0
while time.monotonic() < deadline:
    for _ in range(2000):
        value = cell.high_watermark()
        wrong += value < last or value % 7 != 0
        last = value
    loads += 2000
    for _ in range(200):
        found = cell.frontier()
        if found is None:
            continue
        value, base, position = found
        # The writer rolls at every 7000: a base belongs to its high watermark, and a position covers it.
        wrong += value < last
        half += base != value // 7000 * 7000 or position < (value - base) * 3
        last = value
        snapshots += 1
print(json.dumps([loads, wrong, half, snapshots]))
"""


def race(directory: Path, publish: Callable[..., None] = PartitionCellWriter.publish) -> list[list[int]]:
    """Publish at full speed under two readers; each says how often it loaded, saw a wrong value, saw two states mixed,
    and took a snapshot."""
    board = BoardWriter.create(directory, NUMBER, ids.own_incarnation(), cells=1)
    cell = board.claim(1, 0)

    def restate(high_watermark: int) -> None:
        cell.restate(
            leader_epoch=1, log_start=0, log_end=high_watermark, segment_base=high_watermark, position=0,
            high_watermark=high_watermark, durable=0, size_bytes=0, segment_count=1,
        )  # fmt: skip

    restate(0)
    command = [sys.executable, "-c", BOARD_READER, str(board.path), "2"]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    value = 0
    while any(reader.poll() is None for reader in readers):
        for _ in range(1000):
            value += 7
            if value % 7000 == 0:
                restate(value)
            else:
                publish(cell, value, value % 7000 * 3, value, value, value)
    results = []
    for reader in readers:
        with reader:
            assert reader.stdout is not None
            results.append(json.loads(reader.stdout.read()))
    board.close()
    return results


def test_t38_readers_of_a_board_at_full_speed_see_only_values_that_were_true_and_never_a_decrease(
    tmp_path: Path,
) -> None:
    for loads, wrong, half, snapshots in race(tmp_path):
        assert wrong == half == 0, f"{wrong} wrong values, {half} of {snapshots} snapshots mixed two states"
        assert loads > 0
        assert snapshots > 0


RINGER = """
import sys
from zbroker.shm.doorbell import Bell
from zbroker.shm.lane import Lane
from zbroker.shm import layout
lane, bell_fd, count = Lane.attach(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
is_ahead = sys.argv[4] == "ahead"
bell = Bell(bell_fd, 1, lane.words, layout.L_CLIENT_SLEEP_SEQ)
for number in range(count):
    if is_ahead:
        bell.ring_if_asleep()
    assert lane.requests.try_write([number.to_bytes(8, "little")])
    bell.ring_if_asleep()
    while lane.requests.used_bytes:
        pass
"""


@pytest.mark.parametrize("when", ["behind", "ahead"])
def test_no_wake_up_is_lost_between_two_processes_that_ring_and_sleep_in_lock_step(when: str) -> None:
    """The ringer waits for each message to be consumed, so after a lost ring none comes any more.

    "ahead": it also rings before it has written anything, and the sleeper empties the pipe only before it sleeps again.
    """
    count = 20_000
    lane, bell = Lane.create(1, 77, 4096, 4096), Doorbell()
    sleeper = Sleeper(lane.words, layout.L_CLIENT_SLEEP_SEQ)
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    with running(RINGER, lane.fd, bell.write_fd, count, when, fds=[lane.fd, bell.write_fd]) as ringer:
        taken = 0
        while taken < count:
            if lane.requests.take() is not None:
                taken += 1
                continue
            assert ringer.poll() is None or lane.requests.readable()
            bell.forget_rings()
            sleeper.prepare()
            if not lane.requests.readable():
                is_rung = bool(poll.poll(SLEEP_MS_MAX))
                if not is_rung and lane.requests.readable():
                    # It may be late: the ringer is kept from running between its store and its ring.
                    is_rung = bool(poll.poll(LATE_MS_MAX))
                    assert is_rung, f"the ring for message {taken} was lost"
                if is_rung:
                    bell.note_ring()
            sleeper.awake()
            if when == "behind":
                bell.drain()
        assert ringer.wait() == 0
    lane.close()
    bell.close()


def test_a_ringer_that_is_killed_leaves_a_sleeper_that_others_can_wake() -> None:
    code = """
import sys, time
from zbroker.shm import layout
from zbroker.shm.lane import Lane
lane = Lane.attach(int(sys.argv[1]))
assert lane.requests.try_write([b"before the ring"])
print("stored", flush=True)
time.sleep(60)
"""
    lane, bell = Lane.create(1, 77, 4096, 4096), Doorbell()
    sleeper = Sleeper(lane.words, layout.L_CLIENT_SLEEP_SEQ)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lane.fd)], pass_fds=[lane.fd], stdout=subprocess.PIPE, text=True
    ) as ringer:
        sleeper.prepare()
        assert ringer.stdout is not None
        assert ringer.stdout.readline() == "stored\n"
        ringer.kill()
    assert Bell(bell.write_fd, 2, lane.words, layout.L_CLIENT_SLEEP_SEQ).ring_if_asleep()
    assert bell.drain() == {2}
    sleeper.awake()
    wait_until(lane.requests.readable, what="the dead ringer's message")
    lane.close()
    bell.close()
