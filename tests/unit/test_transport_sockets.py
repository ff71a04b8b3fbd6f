"""Sockets where descriptors are short: an error instead of libzmq's end of the process, and nothing left open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker.transport.sockets import Context, DealerSocket

SHORT = """
import os, resource
from zbroker.errors import TooManyOpenFilesError
from zbroker.transport.sockets import Context
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {left}, used + {left}))
try:
    context = Context()
except TooManyOpenFilesError as error:
    print("refused", len(os.listdir("/proc/self/fd")) - used, error.hint)
else:
    context.close()
    print("made")
"""


def with_descriptors_left(left: int) -> str:
    done = subprocess.run([sys.executable, "-c", SHORT.format(left=left)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("left", [0, 1, 5, 10])
def test_a_context_without_descriptors_is_a_typed_error_and_the_process_lives(left: int) -> None:
    assert with_descriptors_left(left).startswith(("refused 0 ulimit", "refused -1 ulimit"))


def test_a_context_with_enough_descriptors_is_made() -> None:
    assert with_descriptors_left(40) == "made\n"


def test_a_dealer_that_cannot_connect_leaves_nothing_open() -> None:
    context = Context()
    context.close()
    before = len(os.listdir("/proc/self/fd"))
    context = Context()
    with pytest.raises(Exception, match="Invalid argument"):
        DealerSocket(context, "nonsense", message_max_bytes=1024)
    context.close()
    assert len(os.listdir("/proc/self/fd")) == before


DROPPED = """
import gc, sys
from zbroker.transport.sockets import Context, DealerSocket
class Client:
    def __init__(self):
        self.itself = self  # only the collector can end it
        self.context = Context()
        self.socket = DealerSocket(self.context, sys.argv[1], message_max_bytes=1_000)
Client()
gc.collect()
print("collected")
"""


def test_a_client_that_nobody_closed_is_collected_with_its_sockets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DROPPED, f"ipc://{tmp_path}/nobody.sock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "collected\n", done.stderr
