"""T40, T41, T42: a hostile or dying process on the other side of a lane costs that lane, and nothing else."""

from __future__ import annotations

import ast
import os
import random
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.errors import DiskFullError, InvalidRequestError
from zbroker.shm import layout
from zbroker.shm.board import BoardWriter
from zbroker.shm.lane import Lane

ROOT = Path(__file__).parents[2]
RING_BYTES = 4096

MUTATOR = """
import os, random, sys, zlib
from zbroker.shm import layout
from zbroker.shm.lane import Lane
lane, seed, count = Lane.attach(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
chance, words, at = random.Random(seed), lane.words, layout.LANE_HEADER_BYTES // 8
values = (0, 7, 8, 1 << 32, (2 << 32) | 24, (2 << 32) | 0xFFFFFFF8, 0xFFFFFFFF, (1 << 64) - 1, 0xFFFFFFFF00000010)
for number in range(count):
    body = chance.randbytes(chance.randrange(100))
    lane.requests.try_write([zlib.crc32(body).to_bytes(4, "little"), body])
    for _ in range(chance.randrange(8)):
        place = at + chance.randrange(512)
        words[place] = chance.choice((*values, words[place] ^ (1 << chance.randrange(64))))
os._exit(0)
"""


def test_t40_a_writer_that_changes_lengths_and_bytes_while_they_are_read_only_loses_its_lane() -> None:
    seed = random.randrange(1 << 30)
    broken = good = bad = 0
    for round_ in range(6):
        lane, victim = Lane.create(1, 77, RING_BYTES, RING_BYTES), Lane.create(2, 77, RING_BYTES, RING_BYTES)
        honest = Lane.attach(os.dup(victim.fd))
        with subprocess.Popen(
            [sys.executable, "-c", MUTATOR, str(lane.fd), str(seed + round_), "1000000"], pass_fds=[lane.fd]
        ) as hostile:
            wait_until(lane.requests.readable, what="the hostile writer")
            for _ in range(20_000):
                try:
                    frames = lane.requests.take()
                except InvalidRequestError:
                    broken += 1
                    break
                if frames is None:
                    continue
                assert sum(len(frame) for frame in frames) <= lane.requests.message_bytes_max
                checked = [bytes(frame) for frame in frames]
                is_whole = len(checked) == 2 and zlib.crc32(checked[1]).to_bytes(4, "little") == checked[0]
                good += is_whole
                bad += not is_whole
                assert checked == [bytes(frame) for frame in frames], "what was checked changed afterwards"
            assert honest.requests.try_write([b"untouched"])
            frames = victim.requests.take()
            assert frames is not None
            assert bytes(frames[0]) == b"untouched"
            hostile.kill()
        for one in (lane, victim, honest):
            one.close()
    assert broken, f"no contradiction was noticed, seed {seed}: {good} good, {bad} bad"


def corrupted(word: int, value: int, at: int) -> Lane:
    """A worker's lane with one honest message, of which one word was then changed."""
    worker = Lane.create(1, 77, RING_BYTES, RING_BYTES)
    client = Lane.attach(os.dup(worker.fd))
    assert client.requests.try_write([b"h" * 40, b"b" * 20])
    worker.words[at + word] = value
    client.close()
    return worker


@pytest.mark.parametrize("value", [1, 4, 81, 88, 1 << 20, 1 << 63, (1 << 64) - 8])
def test_t40_a_head_outside_the_ring_is_refused(value: int) -> None:
    lane = corrupted(layout.L_REQUESTS_HEAD, value, 0)
    if value == 88:
        assert lane.requests.take() is not None, "eight more bytes are possible; the message itself is whole"
    with pytest.raises(InvalidRequestError):
        lane.requests.take()
    lane.close()


@pytest.mark.parametrize(
    ("total", "count"),
    [
        (0, 2),
        (8, 2),
        (79, 2),
        (88, 2),
        (72, 2),
        (80, 1),
        (80, 3),
        (80, 17),
        (80, 1 << 31),
        (0xFFFFFFF8, 2),
        (0xFFFFFFFF, 0),
    ],
)
def test_t40_a_total_or_a_number_of_frames_that_contradicts_the_ring_is_refused(total: int, count: int) -> None:
    lane = corrupted(0, total | count << 32, layout.LANE_HEADER_BYTES // 8)
    for read in (lane.requests.take, lane.requests.peek):
        with pytest.raises(InvalidRequestError):
            read()
    lane.close()


@pytest.mark.parametrize("lengths", [(41, 20), (40, 28), (0xFFFFFFFF, 20), (40, 0xFFFFFFF8), (0, 0)])
def test_t40_frame_lengths_that_do_not_make_the_total_are_refused(lengths: tuple[int, int]) -> None:
    lane = corrupted(1, lengths[0] | lengths[1] << 32, layout.LANE_HEADER_BYTES // 8)
    if lengths == (41, 20):
        lane.words[layout.LANE_HEADER_BYTES // 8 + 1] = 49 | 20 << 32
    with pytest.raises(InvalidRequestError):
        lane.requests.take()
    lane.close()


@pytest.mark.parametrize("tail", [8, 1 << 40, 4, (1 << 64) - 8])
def test_t40_a_reader_that_stores_a_false_tail_is_refused_by_the_writer(tail: int) -> None:
    worker = Lane.create(1, 77, RING_BYTES, RING_BYTES)
    client = Lane.attach(os.dup(worker.fd))
    message = [b"x" * 1000]
    while worker.replies.try_write(message):
        pass
    assert client.replies.take() is not None
    assert worker.replies.try_write(message)
    client.words[layout.L_REPLIES_TAIL] = tail
    with pytest.raises(InvalidRequestError, match="stored tail"):
        worker.replies.try_write(message)
    client.close()
    worker.close()


HOLDER = """
import sys
from zbroker.shm.lane import Lane
lane = Lane.attach(int(sys.argv[1]))
while True:
    lane.requests.try_write([b"x" * 100])
    print(end="", flush=True)
"""


def memfds_of(pid: int) -> int:
    """Mappings of lanes in a process."""
    return len(re.findall(r"memfd:zbroker-lane", Path(f"/proc/{pid}/maps").read_text()))


def test_t41_killed_lane_holders_leave_nothing_and_take_nothing_from_the_living() -> None:
    names_before, fds_before = sorted(os.listdir("/dev/shm")), len(os.listdir("/proc/self/fd"))
    survivor = Lane.create(99, 77, RING_BYTES, RING_BYTES)
    lanes = [Lane.create(number, 77, RING_BYTES, RING_BYTES) for number in range(4)]
    holders = []
    for lane in lanes:
        holders.append(subprocess.Popen([sys.executable, "-c", HOLDER, str(lane.fd)], pass_fds=[lane.fd]))
        lane.close_fd()
    for lane, holder in zip(lanes, holders, strict=True):
        wait_until(lane.requests.readable, what="the holder's first message")
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(10) == -signal.SIGKILL
        # A kill in the middle of a message leaves its bytes behind the head: every message that is seen is whole.
        while (frames := lane.requests.take()) is not None:
            assert bytes(frames[0]) == b"x" * 100
        del frames
        lane.close()
    assert memfds_of(os.getpid()) == 1
    client = Lane.attach(os.dup(survivor.fd))
    assert client.requests.try_write([b"still here"])
    assert survivor.requests.readable()
    client.close()
    survivor.close()
    assert len(os.listdir("/proc/self/fd")) == fds_before
    mine = [name for name in os.listdir("/dev/shm") if name not in names_before and "lane" in name]
    assert mine == []


@pytest.mark.root
def test_t42_a_full_tmpfs_is_a_typed_error_and_never_sigbus(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs of its own size needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "zbt", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr!r}")
    try:
        with pytest.raises(DiskFullError, match="shared memory"):
            BoardWriter.create(tmp_path, 16, 1, cells=4096)
        assert list(tmp_path.iterdir()) == [], "a refused board leaves nothing"
        board = BoardWriter.create(tmp_path, 16, 1, cells=64)
        (tmp_path / "rest").write_bytes(b"")
        with (tmp_path / "rest").open("wb") as file, pytest.raises(OSError, match="No space left"):
            file.write(b"x" * (1 << 20))
        # Every page of the board was taken at its making: storing into the last one cannot fail now.
        for partition in range(64):
            cell = board.claim(1, partition)
            cell.restate(
                leader_epoch=0, log_start=0, log_end=1, segment_base=0, position=1, high_watermark=1, durable=0,
                size_bytes=1, segment_count=1,
            )  # fmt: skip
        board.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def calls_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


def test_t38_no_code_of_the_broker_packs_into_memory_that_others_read() -> None:
    """`struct.pack_into` zeroes its target first: a fifth of the reads of a shared word then saw 0."""
    files = [*ROOT.glob("shm/*.py"), *ROOT.glob("workers/*.py"), *ROOT.glob("zbroker/client/*.py")]
    assert len([path for path in files if path.parent.name == "shm"]) > 8
    found = [str(path) for path in files if "pack_into" in calls_in(path)]
    assert found == []


def test_nothing_uses_multiprocessings_shared_memory_or_a_decoder_that_runs_code() -> None:
    """Its tracker unlinks what others still use; and pickle, marshal and eval run what the other side sent."""
    banned = re.compile(r"multiprocessing|\b(pickle|marshal|shelve)\b")
    files = [*ROOT.glob("shm/*.py"), *ROOT.glob("workers/*.py"), *ROOT.glob("zbroker/*/*.py")]
    found = [
        f"{path}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if re.match(r"\s*(import|from)\s", line) and banned.search(line)
    ]
    assert found == []
