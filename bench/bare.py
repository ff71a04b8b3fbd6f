"""The bare loops that zbroker's figures stand beside: what the same bytes cost with nothing around them.

Each uses the same libraries (fastcrc, pyzmq, mmap) and the same batch size as the product's path, in one process, or in
two for the echo.
"""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import zmq
from fastcrc import crc32

from zbroker.record.batch import read_header
from zbroker.record.columns import encode_columns
from zbroker.record.crc import crc32c
from zbroker.storage.files import Files
from zbroker.storage.store import GROWTH_MAX_BYTES, PUSH_BYTES

TAIL_WAIT_S = 0.000_5
_BATCH_RECORDS = 4_800


def fresh_values(count: int, size_bytes: int) -> list[bytes]:
    """New value objects, so that no loop is flattered by a warm cache of one object."""
    block = os.urandom(size_bytes * min(count, 1000))
    return [block[(n % 1000) * size_bytes : (n % 1000 + 1) * size_bytes] for n in range(count)]


def join_crc_pwrite(path: Path, batches: Iterator[list[bytes]]) -> dict[str, float]:
    """`b"".join` of each batch's lengths and values, CRC, pwrite."""
    return _write_loop(path, batches, lambda values: b"".join((array("I", map(len, values)).tobytes(), *values)))


def columns_crc_pwrite(path: Path, batches: Iterator[list[bytes]]) -> dict[str, float]:
    """A columnar batch (its builder computes the CRC), the receiver's CRC of it, pwrite."""
    return _write_loop(path, batches, lambda values: encode_columns(values, timestamp_ms=1_700_000_000_000))


def _write_loop(path: Path, batches: Iterator[list[bytes]], build: object) -> dict[str, float]:
    assert callable(build)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    checksum = crc32.iscsi
    position = records = 0
    spent_s = 0.0
    try:
        for values in batches:
            started_s = time.perf_counter()
            body = build(values)
            checksum(body)
            position += os.pwrite(fd, body, position)
            spent_s += time.perf_counter() - started_s
            records += len(values)
    finally:
        os.close(fd)
        path.unlink()
    return {"records_per_s": records / spent_s, "mb_per_s": position / spent_s / 1e6}


def tail_scan(path: Path, words: memoryview, position_word: int, count: int) -> dict[str, float]:
    """Chase a file that grows: map it anew when the position on the board has left the mapping, check each CRC.

    What the waits for more bytes cost does not count.
    """
    records = position = 0
    waited_s = 0.0
    view = memoryview(b"")
    started_s, started_cpu_s = time.perf_counter(), time.thread_time()
    with path.open("rb") as file:
        while records < count:
            end = words[position_word]
            if position == end:
                before_s = time.thread_time()
                time.sleep(TAIL_WAIT_S)
                waited_s += time.thread_time() - before_s
                continue
            if end > len(view):
                view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            while position < end:
                header = read_header(view, position)
                following = position + header.size_bytes
                with view[position + 21 : following] as covered:
                    assert crc32c(covered) == header.crc
                position = following
                records += header.record_count
    spent_s, spent_cpu_s = time.perf_counter() - started_s, time.thread_time() - started_cpu_s
    return {"records_per_s": records / spent_s, "without_waits_per_s": records / (spent_cpu_s - waited_s)}


def disk_write(path: Path, count: int) -> dict[str, float]:
    """What the disk takes: pwrite of whole batches into space allocated ahead as the log does it, then fdatasync."""
    batch = encode_columns(fresh_values(_BATCH_RECORDS, 100), timestamp_ms=1_700_000_000_000)
    files = Files()
    position = allocated = pushed = 0
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        started_s = time.perf_counter()
        for _ in range(count // _BATCH_RECORDS):
            if position + len(batch) > allocated:
                files.fallocate(fd, allocated, GROWTH_MAX_BYTES)
                allocated += GROWTH_MAX_BYTES
            position += os.pwrite(fd, batch, position)
            if position - pushed >= PUSH_BYTES:
                files.sync_file_range(fd, pushed, position - pushed)
                pushed = position
        os.fdatasync(fd)
        spent_s = time.perf_counter() - started_s
    finally:
        os.close(fd)
        path.unlink()
    return {"mb_per_s": position / spent_s / 1e6}


def columns_bytes(count: int) -> int:
    """Bytes of a batch of `count` values of 100 bytes in the log."""
    return len(encode_columns([bytes(100)] * count, timestamp_ms=0))


def sync_files(paths: list[Path]) -> None:
    """Return when these files, whoever wrote them, are on the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.close(fd)


_ECHO = """
import sys, zmq
context = zmq.Context()
socket = context.socket(zmq.ROUTER)
socket.bind(sys.argv[1])
print("ready", flush=True)
while True:
    frames = socket.recv_multipart()
    socket.send_multipart(frames)
    if frames[-1] == b"stop":
        break
socket.close(linger=1000)
context.term()
"""


def zmq_echo(directory: Path, rounds: int, size_bytes: int = 100, *, apart_s: float = 0.0) -> dict[str, float]:
    """A blocking DEALER to ROUTER round trip between two processes over ipc, in microseconds.

    `apart_s` is slept before each: the other side has gone to sleep then, and so may have its core.
    """
    endpoint = f"ipc://{directory}/echo.sock"
    with subprocess.Popen([sys.executable, "-c", _ECHO, endpoint], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint)
        payload = b"x" * size_bytes
        spent_us = []
        for _ in itertools.repeat(None, rounds):
            if apart_s:
                time.sleep(apart_s)
            started_ns = time.perf_counter_ns()
            socket.send(payload)
            socket.recv()
            spent_us.append((time.perf_counter_ns() - started_ns) / 1000)
        socket.send(b"stop")
        socket.recv()
        socket.close(linger=0)
        context.term()
    spent_us.sort()
    return {"p50_us": spent_us[len(spent_us) // 2], "p99_us": spent_us[len(spent_us) * 99 // 100]}
