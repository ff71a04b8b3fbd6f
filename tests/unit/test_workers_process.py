"""Small parts of a process: dying with the parent, names, signals as data, words for the service manager."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.workers import service
from zbroker.workers.signals import Signals

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, time
from zbroker.workers.process import die_with_parent, set_name
set_name("worker-12345678")
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
''', str(os.getpid())])
time.sleep(60)
"""


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}/comm").read_text() == "zb-worker-12345\n", "a name is cut to what the kernel keeps"
        parent.kill()
    wait_until(lambda: is_gone(child), what="the child's death")


def test_a_child_whose_parent_is_gone_already_dies_at_once() -> None:
    code = "from zbroker.workers.process import die_with_parent; die_with_parent(1_000_000_000); print('alive')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (-signal.SIGKILL, "")


def test_signals_are_read_in_the_order_they_came_and_wake_a_poll() -> None:
    signals = Signals((signal.SIGUSR1, signal.SIGUSR2))
    try:
        assert signals.take() == []
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        assert signals.take() == [signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2]
        assert signals.take() == []
    finally:
        signals.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.parametrize("prefix", ["", "@"])
def test_the_service_manager_gets_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    address = f"@zbt-{os.getpid()}" if prefix else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert service.notify(service.READY)
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all", "@nobody-listens"])
def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not service.notify(service.READY)
