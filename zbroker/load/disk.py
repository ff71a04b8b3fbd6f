"""A disk's profile: one after another against anywhere, in small and large pieces, and what a sync costs.

Writes go around the page cache (O_DIRECT) where the file system can do that; what an append log does goes through it.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 4 << 10
LARGE_BYTES: Final = 1 << 20
SYNCS: Final = 50


def profile(directory: Path, file_bytes: int, seed: int, seconds: float) -> dict[str, float]:
    """Megabytes (10^6) a second for each way of writing, and the median of a sync in ms."""
    rng = random.Random(seed)
    pieces = file_bytes // PIECE_BYTES
    with tempfile.NamedTemporaryFile(dir=directory, prefix="zbroker-disk-") as file:
        os.posix_fallocate(file.fileno(), 0, file_bytes)
        _write(file.fileno(), LARGE_BYTES, iter(range(0, file_bytes, LARGE_BYTES)), 3600.0)  # no hole is left
        os.fsync(file.fileno())
        fd, is_direct = _open(Path(file.name))
        try:
            found = {
                "sequential, 1 MiB": _write(fd, LARGE_BYTES, _around(file_bytes, LARGE_BYTES), seconds),
                "sequential, 4 KiB": _write(fd, PIECE_BYTES, _around(file_bytes, PIECE_BYTES), seconds),
                "random, 4 KiB": _write(fd, PIECE_BYTES, _anywhere(pieces, rng), seconds),
            }
        finally:
            os.close(fd)
        found["appended through the page cache, 64 KiB, then synced"] = _appended(file.fileno(), file_bytes)
        found["fdatasync after 16 KiB, ms"] = _sync_ms(file.fileno())
    found["is direct"] = float(is_direct)
    return found


def _open(path: Path) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT), True
    except OSError as error:
        if error.errno != errno.EINVAL:  # tmpfs has nothing to go around
            raise
        return os.open(path, os.O_RDWR | os.O_DSYNC), False


def _around(file_bytes: int, step: int) -> Iterator[int]:
    while True:
        yield from range(0, file_bytes, step)


def _anywhere(pieces: int, rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.randrange(pieces) * PIECE_BYTES


def _write(fd: int, size_bytes: int, positions: Iterator[int], seconds: float) -> float:
    with mmap.mmap(-1, size_bytes) as aligned, memoryview(aligned) as data:
        data[:] = os.urandom(size_bytes)
        done = 0
        started_s = time.perf_counter()
        for position in positions:
            done += os.pwrite(fd, data, position)
            if time.perf_counter() - started_s >= seconds:
                break
        return done / (time.perf_counter() - started_s) / 1e6


def _appended(fd: int, file_bytes: int) -> float:
    data = os.urandom(64 << 10)
    started_s = time.perf_counter()
    for position in range(0, file_bytes, len(data)):
        os.pwrite(fd, data, position)
    os.fdatasync(fd)
    return file_bytes / (time.perf_counter() - started_s) / 1e6


def _sync_ms(fd: int) -> float:
    data = os.urandom(16 << 10)
    spent = []
    for number in range(SYNCS):
        os.pwrite(fd, data, number * len(data))
        spent.append(_timed(lambda: os.fdatasync(fd)))
    return sorted(spent)[SYNCS // 2] * 1000


def _timed(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s
