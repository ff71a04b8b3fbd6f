"""A temporary directory that goes with its owner, however that ends.

Guarantees: the owner holds a file in the directory locked for as long as it lives, and removes the directory when it
is done; who makes the next one in the same place first removes those whose owners are dead. Never touched: what is of
another user; where the owner, or a process whose lock lies in the directory, lives; what was kept, copied or moved: the
lock's name holds the directory's name and inode. A lock file that is still empty may be about to be locked, so it
proves nothing, and the directory of an owner that was killed in that instant stays.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from zbroker.config.paths import TMPFS_ROOT
from zbroker.errors import BrokerError
from zbroker.shm.lockfile import LockFile, is_held

_NAME_PREFIX = "zb"


class OwnedDirectory:
    """See the module. A context manager that gives its path."""

    def __init__(self, path: Path, lock: LockFile) -> None:
        self.path = path
        self._lock: LockFile | None = lock

    @classmethod
    def make(cls, prefix: str, parent: Path | None = None) -> Self:
        """A new one below `parent`, or where temporary files belong. Raises StorageError."""
        assert prefix.startswith(_NAME_PREFIX), "a sweep looks for no others"
        parent = parent or Path(tempfile.gettempdir())
        sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            return cls(path, LockFile.take(_lock_path(path)))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    @classmethod
    def make_in_memory(cls, prefix: str) -> Self:
        """One on tmpfs; where there is none, where temporary files belong. Raises StorageError."""
        return cls.make(prefix, TMPFS_ROOT if TMPFS_ROOT.is_dir() else None)

    def remove(self) -> None:
        """Remove it, with what is in it. Doing so twice is doing it once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            _remove(self.path, lock)

    def keep(self) -> None:
        """Leave it where it is, for ever: it is nobody's any more."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def temporary_parents() -> list[Path]:
    """Where they are made unless somebody says where: in memory, and where temporary files belong."""
    return list(dict.fromkeys((TMPFS_ROOT, Path(tempfile.gettempdir()))))


def abandoned(parent: Path) -> list[Path]:
    """This user's directories below `parent` whose owners are dead."""
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith(_NAME_PREFIX))
    except OSError:
        return []
    return [path for path in (parent / name for name in names) if _is_abandoned(path)]


def sweep(parent: Path) -> list[Path]:
    """Remove the directories below `parent` whose owners are dead. Returns what was removed."""
    removed = []
    for path in abandoned(parent):
        try:
            lock = LockFile.take(_lock_path(path))
        except (BrokerError, OSError):
            continue  # somebody else has just begun to remove it
        _remove(path, lock)
        if not path.exists():
            removed.append(path)
    return removed


def _lock_path(path: Path) -> Path:
    return path / f"owner-{path.name}-{path.lstat().st_ino}"


def _is_abandoned(path: Path) -> bool:
    try:
        if path.is_symlink() or path.lstat().st_uid != os.getuid():
            return False
        lock_path = _lock_path(path)
        if not lock_path.read_bytes() or is_held(lock_path):
            return False
        # Its broker's processes die with the owner, but not in the same instant.
        return not any(is_held(found) for found in path.rglob("lock*") if found.is_file())
    except OSError:
        return False


def _remove(path: Path, lock: LockFile) -> None:
    """The lock file goes last: who is killed here leaves what the next one recognises."""
    is_empty = _empty(path, lock.path.name)
    lock.release(unlink=is_empty)
    if is_empty:
        with suppress(OSError):
            path.rmdir()


def _empty(path: Path, name_left: str) -> bool:
    """Remove everything but one file. Whether that worked."""
    try:
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != name_left:
                os.unlink(entry.path)
    except FileNotFoundError:
        return not path.exists()
    except OSError:
        return False
    return True
