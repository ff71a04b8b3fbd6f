"""Emptying the run directory after a clean stop, when every process of the broker is gone.

Guarantees: only called with the supervisor's lock held; removes the copies of memory topics (they live until a clean
stop), boards, sockets and locks of dead processes, and the directories that are empty then. A run directory that was
given by hand stays, empty; the default one goes, with its parent when that is empty.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from zbroker.config.paths import TMPFS_ROOT, Paths
from zbroker.shm import reaper


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
