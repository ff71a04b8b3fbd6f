"""The file that a process holds locked for as long as it lives: proof to others that it does.

Guarantees: at most one process holds a lock; the kernel frees it at death, however it dies, provided that no child
inherited the descriptor; the text of the file is the holder's pid. The sweep removes the files of dead holders, so
`take` makes sure that the file it locked is still the one under that name.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from zbroker.errors import DirectoryLockedError, StorageError

_TRIES_MAX = 100


class LockFile:
    """A held lock."""

    __slots__ = ("fd", "path")

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def take(cls, path: Path) -> LockFile:
        """Lock `path`, making it if need be. Never waits. Raises DirectoryLockedError that names the holder."""
        for _ in range(_TRIES_MAX):
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = holder_of(fd)
                os.close(fd)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise StorageError(f"{path}: {error.strerror}") from error
                raise DirectoryLockedError(f"{path} is held by {holder}") from error
            if _is_still_named(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return cls(path, fd)
            os.close(fd)
        raise StorageError(f"{path} is removed again and again while it is being locked")

    def release(self, *, unlink: bool = True) -> None:
        """Give the lock back, and remove the file while it is still held: nobody can lock a file that is going away."""
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self.fd)


def holder_of(fd: int) -> str:
    """Words for the process that wrote its pid into a lock file."""
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return f"process {text}" if text.isdigit() else "another process"


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock. False also when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_still_named(fd: int, path: Path) -> bool:
    held = os.fstat(fd)
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
