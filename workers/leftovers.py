"""What a process leaves in the run directory: its lock while it lives, and at the end nothing.

Guarantees: whoever holds a lock finds the note of where the data is, which names it to tools also when every process
was killed; the last one that ends in order removes the note, whether a supervisor of ours, supervisord or systemd
started it. `remove_all` is only called with the supervisor's lock held, after a clean stop; it removes the copies of
memory topics (they live until a clean stop), boards, sockets and locks of dead processes, and the directories that are
empty then. A run directory that was given by hand stays, empty; the default one goes, with its parent when that is
empty.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zbroker.config.paths import TMPFS_ROOT, Paths, note_data_dirs
from zbroker.errors import BrokerError
from zbroker.shm import reaper
from zbroker.shm.lockfile import LockFile, is_held


def enter(paths: Paths, name: str) -> LockFile:
    """Take the lock of the process `name`, and note where the data is.

    Raises DirectoryLockedError while another process of this name runs; ConfigError when the note cannot be written.
    """
    with _alone_in(paths.run_dir):
        lock = LockFile.take(paths.lock(name))
        try:
            note_data_dirs(paths)
        except BrokerError:
            lock.release()
            raise
    return lock


def leave(paths: Paths, lock: LockFile) -> None:
    """Give the lock back; remove the note when no process of the broker is left."""
    with _alone_in(paths.run_dir):
        lock.release()
        if not any(is_held(path) for path in paths.run_dir.glob("lock-*")):
            paths.data_dirs_file.unlink(missing_ok=True)


@contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    # Whoever comes and whoever goes take turns: the last one must not remove the note of one that has just come.
    directory = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def remove_all(paths: Paths) -> None:
    """Remove what the broker's processes made at run time."""
    shutil.rmtree(paths.memory_dir, ignore_errors=True)
    reaper.sweep(paths.run_dir, paths.boards_dir)
    paths.data_dirs_file.unlink(missing_ok=True)
    _remove_if_empty(paths.boards_dir)
    _remove_if_empty(paths.groups_dir)
    if paths.boards_dir.parent != paths.run_dir:
        _remove_if_empty(paths.boards_dir.parent)


def remove_default_run_dir(paths: Paths) -> None:
    """Remove the run directory when zbroker chose it. The last step, after the lock is gone."""
    user_root = TMPFS_ROOT / f"zbroker-{os.getuid()}"
    if paths.run_dir.parent == user_root:
        _remove_if_empty(paths.run_dir)
    _remove_if_empty(user_root)


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass  # Not empty, or not there: then it is somebody else's, or nothing is to be done.
