"""The folders `<root>/<copy id>/` of copies: finding those that nobody knows, removing those that are not needed.

Guarantees: a folder is touched only when its name is a number and its copy was made by this broker and deleted since;
what a process has open (it holds the lock of the directory inside) is left alone. A copy with a number that the
metadata log has never given out is somebody's data beside the wrong log: that is an error, and nothing is removed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from zbroker.errors import BrokerError, CopyDamagedError, DirectoryLockedError
from zbroker.storage.files import Files


def folders(root: Path) -> Iterator[tuple[int, Path]]:
    """(copy id, folder) of every copy under a root."""
    try:
        names = sorted(os.listdir(root))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.isascii() and name.isdigit() and str(int(name)) == name:
            yield int(name), root / name


def check_known(roots: Iterable[Path], next_copy_id: int, metadata_dir: Path) -> None:
    """Raise CopyDamagedError when a copy exists that the metadata log cannot have made."""
    for root in roots:
        for copy_id, folder in folders(root):
            if copy_id >= next_copy_id and os.listdir(folder):
                raise CopyDamagedError(
                    f"{folder} is unknown to {metadata_dir}: the metadata is lost, or older than the data",
                    hint="put back the metadata directory that belongs to it, or move the copy away",
                )


def remove(root: Path, copy_id: int, files: Files) -> bool:
    """Remove a copy's folder under a root. False: there is none, or a process has it open."""
    folder = root / str(copy_id)
    try:
        for name in os.listdir(folder):
            if (folder / name).is_dir():
                files.close(files.lock_directory(folder / name))
    except (FileNotFoundError, DirectoryLockedError, BrokerError):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def sweep(roots: Iterable[Path], known: set[int], below: int, files: Files) -> list[Path]:
    """Remove the copies below a copy id that are not known: their topics were deleted. Returns what was removed."""
    removed = []
    for root in roots:
        for copy_id, folder in folders(root):
            if copy_id < below and copy_id not in known and remove(root, copy_id, files):
                removed.append(folder)
    return removed
