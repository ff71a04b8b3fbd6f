"""A disk's profile: one after another against anywhere, in small and large pieces, and what a sync costs.

Writes go around the page cache (O_DIRECT) where the file system can do that; what an append log does goes through it.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from zbroker.load.results import Figure, figure
from zbroker.load.rounds import spread_of

PIECE_BYTES: Final = 4 << 10
LARGE_BYTES: Final = 1 << 20
SYNCS: Final = 50
READS: Final = 500


def disk_figures(rounds: Sequence[dict[str, float]]) -> list[Figure]:
    """Some profiles of one disk as figures; there is at least one."""
    found = []
    for name in rounds[0]:
        if name != "is direct":
            what, _, unit = name.partition(", in ")
            values = spread_of([one[name] for one in rounds])
            found.append(figure(what, values.median, unit or "MB/s", spread=values))
    return found


def profile(directory: Path, file_bytes: int, seed: int, seconds: float) -> dict[str, float]:
    """Megabytes (10^6) a second for each way of writing, and the medians of a sync and of a read from anywhere."""
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
                "read from anywhere, 4 KiB, in us": _read_us(fd, _anywhere(pieces, rng)),
            }
        finally:
            os.close(fd)
        found["appended through the page cache, 64 KiB, then synced"] = _appended(file.fileno(), file_bytes)
        found["fdatasync after 16 KiB, in ms"] = _sync_ms(file.fileno())
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


def _read_us(fd: int, positions: Iterator[int]) -> float:
    """What a seek was: the median of a read, around the page cache where the file system can do that."""
    with mmap.mmap(-1, PIECE_BYTES) as aligned:
        spent_s = [_timed(partial(os.preadv, fd, [aligned], next(positions))) for _ in range(READS)]
    return statistics.median(spent_s) * 1e6


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
    return statistics.median(spent) * 1000


def _timed(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s
