"""Removing what dead processes left in the run directory.

Guarantees: nothing of a live process is ever removed. A board goes when its incarnation (pid and start time) is gone; a
socket when nobody holds the lock of the process it is named for, and the lock is held by the reaper while it unlinks; a
lock file likewise. Names that zbroker does not make are left alone. Lanes need no reaper: they have no name.

It does not decide when: the supervisor sweeps before it starts processes, and a coordinator removes a dead leader's
board when its successors have published (`remove_board`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zbroker import ids
from zbroker.errors import DirectoryLockedError, StorageError
from zbroker.shm.board import board_path, parse_board_name
from zbroker.shm.lockfile import LockFile

_PROCESS = r"(coordinator|router|worker-\d{1,9}|replica-\d{1,9})"
_LOCK = re.compile(rf"lock-{_PROCESS}\Z")
_PROCESS_SOCKET = re.compile(rf"(?:lane|stream)-{_PROCESS}\.sock\Z")
_UNFINISHED_BOARD = re.compile(r"\.(.+\.board)\.new\Z")
_ROUTER_SOCKETS = frozenset({"front.sock", "back.sock"})


def sweep(run_dir: Path, boards_dir: Path) -> list[Path]:
    """Remove boards, sockets and lock files of dead incarnations. Returns what was removed."""
    return [*_sweep_run_dir(run_dir), *_sweep_boards(boards_dir)]


def remove_board(boards_dir: Path, process_number: int, incarnation: int) -> bool:
    """Remove a dead incarnation's board. Returns False, and leaves it, while that incarnation lives."""
    if ids.is_alive(incarnation):
        return False
    board_path(boards_dir, process_number, incarnation).unlink(missing_ok=True)
    return True


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _sweep_run_dir(run_dir: Path) -> list[Path]:
    names = _names(run_dir)
    owned: dict[str, list[str]] = {}
    for name in names:
        if found := _PROCESS_SOCKET.match(name):
            owned.setdefault(found.group(1), []).append(name)
        elif name in _ROUTER_SOCKETS:
            owned.setdefault("router", []).append(name)
        elif found := _LOCK.match(name):
            owned.setdefault(found.group(1), [])
    removed = []
    for process, sockets in owned.items():
        try:
            lock = LockFile.take(run_dir / f"lock-{process}")
        except (DirectoryLockedError, StorageError):
            continue
        for name in sockets:
            (run_dir / name).unlink(missing_ok=True)
            removed.append(run_dir / name)
        lock.release(unlink=True)
        if f"lock-{process}" in names:
            removed.append(lock.path)
    return removed


def _sweep_boards(boards_dir: Path) -> list[Path]:
    removed = []
    for name in _names(boards_dir):
        unfinished = _UNFINISHED_BOARD.match(name)
        parsed = parse_board_name(unfinished.group(1) if unfinished else name)
        if parsed is None or ids.is_alive(parsed[1]):
            continue
        (boards_dir / name).unlink(missing_ok=True)
        removed.append(boards_dir / name)
    return removed
