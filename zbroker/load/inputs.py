"""Real input that every machine has: the sources of Python's standard library, and the host's own processes."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil


def standard_library_files() -> list[Path]:
    """Every Python source of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return sorted(path for path in found if path.is_file())


def lines_of(path: Path) -> list[bytes]:
    """A file's lines without their line ends. Bytes as they are: some test sources are no valid UTF-8."""
    return path.read_bytes().splitlines()


def process_samples() -> Iterator[tuple[bytes, bytes]]:
    """One sample of each process of the host: (pid as key, JSON as value). Ends after one round."""
    wall_ms = time.time_ns() // 1_000_000
    for process in psutil.process_iter(["pid", "name", "cpu_times", "memory_info", "num_threads"]):
        info = process.info
        if info["cpu_times"] is None or info["memory_info"] is None:
            continue  # it ended, or belongs to another user
        sample = {
            "time_ms": wall_ms,
            "pid": info["pid"],
            "name": info["name"],
            "cpu_s": round(info["cpu_times"].user + info["cpu_times"].system, 3),
            "resident_bytes": info["memory_info"].rss,
            "threads": info["num_threads"],
        }
        yield str(info["pid"]).encode(), msgspec.json.encode(sample)
