"""What the bare hardware does: memory copied, batches written, mapped files scanned, with nothing of zbroker around it.

Each loop runs in as many processes at once as asked for, because a limit of a machine is that of all its cores.

    python -m zbroker.load.bare LOOP SECONDS [PATH...]     prints bytes a second
"""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from zbroker.record.batch import batches_in
from zbroker.record.columns import encode_columns
from zbroker.record.crc import crc32c

COPY_BYTES: Final = 64 << 20  # more than a core's caches
BATCH_RECORDS: Final = 1_200
FILE_BYTES: Final = 256 << 20
LOOP_S: Final = 0.5


def copied(seconds: float) -> float:
    """Bytes a second that one core copies from memory to memory."""
    source, target = memoryview(bytes(COPY_BYTES)), memoryview(bytearray(COPY_BYTES))
    target[:] = source  # the pages are there
    done = 0
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        target[:] = source
        done += COPY_BYTES
    return done / (time.perf_counter() - started_s)


def written(seconds: float, directory: Path, size_bytes: int = 100) -> float:
    """Bytes a second of ready batches, each checked by its CRC and written by pwrite, as a worker has to."""
    batch = encode_columns([os.urandom(size_bytes) for _ in range(BATCH_RECORDS)], timestamp_ms=0)
    done = position = 0
    with tempfile.TemporaryFile(dir=directory) as file:
        fd = file.fileno()
        started_s = time.perf_counter()
        while time.perf_counter() - started_s < seconds:
            crc32c(batch)
            done += os.pwrite(fd, batch, position)
            position = (position + len(batch)) % FILE_BYTES
        return done / (time.perf_counter() - started_s)


def written_once(directory: Path, size_bytes: int, record_bytes: int) -> float:
    """Bytes a second of a file of that size that is filled once, batch by batch, as `written` does it."""
    batch = encode_columns([os.urandom(record_bytes) for _ in range(BATCH_RECORDS)], timestamp_ms=0)
    with tempfile.TemporaryFile(dir=directory) as file:
        fd, position = file.fileno(), 0
        started_s = time.perf_counter()
        while position < size_bytes:
            crc32c(batch)
            position += os.pwrite(fd, batch, position)
        return position / (time.perf_counter() - started_s)


def interpreter_bytes() -> int:
    """Resident bytes of a Python process that has imported nothing."""
    program = "import sys; print(open('/proc/self/statm').read().split()[1])"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) * resource.getpagesize()


def mapped_scan(paths: Sequence[Path]) -> dict[str, float]:
    """Map segment files and check the CRC of every batch, nothing else. What unmapping costs does not count: a consumer
    unmaps when it is closed, behind its measure."""
    records = size_bytes = 0
    with ExitStack() as stack:
        started_s = time.perf_counter()
        for path in paths:
            file = stack.enter_context(path.open("rb"))
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            view = stack.enter_context(memoryview(mapped))
            for position, header in batches_in(view):
                with view[position + 21 : position + header.size_bytes] as covered:
                    assert crc32c(covered) == header.crc
                records += header.record_count
                size_bytes += header.size_bytes
        spent_s = time.perf_counter() - started_s
    return {"records_per_s": records / spent_s, "mb_per_s": size_bytes / spent_s / 1e6}


def scanned(seconds: float, paths: Sequence[Path]) -> float:
    """Bytes a second of a mapped scan, again and again."""
    size_bytes = sum(path.stat().st_size for path in paths)
    done = 0
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        mapped_scan(paths)
        done += size_bytes
    return done / (time.perf_counter() - started_s)


def together(loop: str, processes: int, paths: Sequence[Path] = (), seconds: float = LOOP_S) -> float:
    """Bytes a second of so many processes that run a loop at once: "copied", "written" or "scanned"."""
    command = [sys.executable, "-m", "zbroker.load.bare", loop, str(seconds), *map(str, paths)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        running = [
            stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0))
            for _ in range(processes)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return sum(float(process.communicate()[0]) for process in running)


def main() -> None:
    """Run one loop when a line comes on stdin."""
    loop, seconds, paths = sys.argv[1], float(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    if loop == "copied":
        rate = copied(seconds)
    elif loop == "written":
        rate = written(seconds, paths[0])
    else:
        rate = scanned(seconds, paths)
    sys.stdout.write(f"{rate}\n")


if __name__ == "__main__":
    main()
