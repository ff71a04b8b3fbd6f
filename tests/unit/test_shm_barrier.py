"""Registering for barriers: at once in a process of one thread, soon in one of several, anew after a fork."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zbroker.shm import barrier

ALONE = """
from zbroker.shm import barrier
assert not barrier.is_registered()
barrier.register()
assert barrier.is_registered()
barrier.register()
barrier.barrier_everywhere()
"""
AMONG_THREADS = """
import threading, time
from zbroker.shm import barrier
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
barrier.register()
deadline = time.monotonic() + 20
while not barrier.is_registered():
    assert time.monotonic() < deadline
    time.sleep(0.001)
end.set()
thread.join()
"""
FORKED = """
import os
from zbroker.shm import barrier
barrier.register()
pid = os.fork()
if not pid:
    was = barrier.is_registered()
    barrier.register()
    os._exit(was or not barrier.is_registered())
assert os.waitpid(pid, 0)[1] == 0
assert barrier.is_registered()
"""
NOT_POSSIBLE = """
from zbroker.shm import barrier
barrier.is_possible = False
barrier.register()
assert not barrier.is_registered()
"""
FORBIDDEN = """
from zbroker.shm import barrier
barrier._REGISTER_GLOBAL_EXPEDITED = 1 << 30
barrier.register()
assert not barrier.is_registered()
"""


@pytest.mark.skipif(not barrier.is_possible, reason="old kernel")
@pytest.mark.parametrize("program", [ALONE, AMONG_THREADS, FORKED, NOT_POSSIBLE, FORBIDDEN])
def test_a_process_registers_once_and_for_itself(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_barrier_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "_NUMBERS", {})
    with pytest.raises(OSError, match="membarrier"):
        barrier.barrier_everywhere()
