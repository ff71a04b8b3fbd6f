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

from zbroker.record.batch import batches_in
from zbroker.record.columns import encode_columns
from zbroker.record.crc import crc32c


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


def mapped_scan(paths: list[Path]) -> dict[str, float]:
    """Map segment files and check the CRC of every batch, nothing else."""
    records = size_bytes = 0
    started_s = time.perf_counter()
    for path in paths:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            memoryview(mapped) as view,
        ):
            for position, header in batches_in(view):
                with view[position + 21 : position + header.size_bytes] as covered:
                    assert crc32c(covered) == header.crc
                records += header.record_count
                size_bytes += header.size_bytes
    spent_s = time.perf_counter() - started_s
    return {"records_per_s": records / spent_s, "mb_per_s": size_bytes / spent_s / 1e6}


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


def zmq_echo(directory: Path, rounds: int, size_bytes: int = 100) -> dict[str, float]:
    """A blocking DEALER to ROUTER round trip between two processes over ipc, in microseconds."""
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
