"""The traditional way of a file to a reader, bare: a process that reads or `sendfile`s it into a socket.

python -m zbroker.load.file_server read|sendfile PATH      the socket is its stdin; prints its usage as JSON
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from zbroker.load.usage import Usage

PIECE_BYTES: Final = 64 << 10


@contextmanager
def _killed_at_an_error(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """It would wait for its reader, and `with` for it."""
    try:
        yield
    except BaseException:
        server.kill()
        raise


def served(how: Literal["read", "sendfile"], path: Path) -> dict[str, float]:
    """Have a file sent by another process and read it; what both used for each megabyte (10^6)."""
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, "-m", "zbroker.load.file_server", how, str(path)]
        with (
            subprocess.Popen(command, stdin=there.fileno(), stdout=subprocess.PIPE, process_group=0) as server,
            _killed_at_an_error(server),
        ):
            there.close()
            assert here.recv(1) == b"r"
            before = Usage.of()
            started_s = time.perf_counter()
            here.sendall(b"g")
            buffer = bytearray(PIECE_BYTES)
            size_bytes = calls = 0
            while received := here.recv_into(buffer):
                size_bytes += received
                calls += 1
            seconds = time.perf_counter() - started_s
            own = Usage.of().since(before)
            used = msgspec.json.decode(server.communicate()[0], type=Usage)
    both = used.plus(own)
    megabytes = size_bytes / 1e6
    return {
        "mb_per_s": megabytes / seconds,
        "switches_per_mb": both.switches / megabytes,
        "cpu_us_per_mb": both.cpu_ns / 1000 / megabytes,
    }


def main() -> None:
    """Send the file when told to."""
    how, path = sys.argv[1], Path(sys.argv[2])
    with socket.socket(fileno=os.dup(0)) as out, path.open("rb", buffering=0) as file:
        out.sendall(b"r")
        out.recv(1)
        before = Usage.of()
        size_bytes = path.stat().st_size
        if how == "sendfile":
            sent = 0
            while sent < size_bytes:
                sent += os.sendfile(out.fileno(), file.fileno(), sent, PIECE_BYTES)
        else:
            while piece := file.read(PIECE_BYTES):
                out.sendall(piece)
        used = Usage.of().since(before)
        out.shutdown(socket.SHUT_RDWR)
    sys.stdout.buffer.write(msgspec.json.encode(used))


if __name__ == "__main__":
    main()
