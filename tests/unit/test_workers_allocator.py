"""Memory of requests: used again, and not asked of the kernel page by page each time."""

from __future__ import annotations

import subprocess
import sys

PIECES, PIECE_BYTES = 200, 300_000

SCRIPT = f"""
import resource, sys
from zbroker.workers.allocator import keep_freed_memory
keep_freed_memory(1 << 20)
source = bytes({PIECE_BYTES})
held = bytearray(source)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({PIECES}):
    bytearray(source), bytearray(source)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_of_requests_is_used_again() -> None:
    faults = int(subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout)
    assert faults < PIECES * PIECE_BYTES // 4096 // 10
