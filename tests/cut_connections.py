"""Connections between processes that live, cut from outside: a test takes a process's descriptor and shuts it down.

Only the kernel's buffers are in the test's hands: what lies in them can be taken away first, and is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conditions import wait_until

_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


def cut(pid: int, path: Path, *, other_pid: int = 0, swallow: bool = False) -> int:
    """End a process's connections through Unix sockets whose paths begin like this, whoever of the two connected, and
    give how many there were; with `other_pid` only those that this process has made.

    `swallow`: take away first what has come for the process, of which there must be something. It must be stopped.
    """
    with _connections(pid, str(path), other_pid) as connections:
        if swallow:
            wait_until(lambda: sum(map(_swallowed, connections)), what="something on its way")
        for one in connections:
            one.shutdown(socket.SHUT_RDWR)
        return len(connections)


@contextmanager
def _connections(pid: int, prefix: str, other_pid: int) -> Iterator[list[socket.socket]]:
    pidfd = os.pidfd_open(pid)
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            one = _shared(pidfd, pid, name)
            if one is None:
                continue
            if _is_through(one, prefix) and (not other_pid or _pid_of_other(one) == other_pid):
                found.append(one)
            else:
                one.close()
        yield found
    finally:
        os.close(pidfd)
        for one in found:
            one.close()


def _shared(pidfd: int, pid: int, name: str) -> socket.socket | None:
    """The process's socket of this descriptor; None: it is none, or closed by now."""
    try:
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            return None
    except FileNotFoundError:
        return None
    fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
    if fd >= 0:
        return socket.socket(fileno=fd)
    if ctypes.get_errno() == errno.EBADF:
        return None
    raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")


def _is_through(one: socket.socket, prefix: str) -> bool:
    if one.family != socket.AF_UNIX:
        return False
    try:
        names = [one.getpeername(), one.getsockname()]
    except OSError:
        return False  # it listens, or its other end is gone
    return any(str(name).startswith(prefix) for name in names)


def _pid_of_other(one: socket.socket) -> int:
    """Who connected, as the kernel knows it."""
    pid, _, _ = struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _swallowed(connection: socket.socket) -> int:
    size_bytes = 0
    try:
        while found := connection.recv(1 << 16, socket.MSG_DONTWAIT):
            size_bytes += len(found)
    except BlockingIOError:
        pass
    return size_bytes
