"""Which segments may go, and how they go: renamed to .deleted at once, unlinked after a delay.

Guarantees: the active segment never goes; nothing that reaches past the high watermark goes; a reader that has a file
mapped keeps its bytes, because nothing is shortened, and one that is about to open it has `file_delete_delay_ms` to
notice. `DeletedFiles.unlink_due` may run in another thread than `DeletedFiles.add`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import FOREVER
from zbroker.storage.files import Files
from zbroker.storage.layout import DELETED, TEMPORARY
from zbroker.storage.swap import complete_swaps


class Expirable(Protocol):
    """What retention needs to know of a segment."""

    @property
    def size_bytes(self) -> int:
        """Bytes of batches."""

    @property
    def next_offset(self) -> int:
        """The offset behind its last record."""

    @property
    def timestamp_max(self) -> int:
        """Its largest timestamp."""


def count_expired(
    segments: Sequence[Expirable],
    *,
    now_ms: int,
    log_start: int,
    high_watermark: int,
    retention_ms: int,
    retention_bytes: int,
) -> int:
    """How many of the oldest segments may go, were they all sealed.

    A segment goes when all of it lies below the log start, or its latest record is older than `retention_ms`, or the
    log without it still has `retention_bytes`; and only together with all before it.
    """
    size_bytes = sum(segment.size_bytes for segment in segments)
    count = 0
    for segment in segments:
        if segment.next_offset > high_watermark:
            break
        is_below = segment.next_offset <= log_start
        is_surplus = retention_bytes != FOREVER and size_bytes - segment.size_bytes >= retention_bytes
        if not (is_below or is_surplus) and (retention_ms == FOREVER or now_ms - segment.timestamp_max <= retention_ms):
            break
        size_bytes -= segment.size_bytes
        count += 1
    return count


class DeletedFiles:
    """Files renamed to .deleted that wait for their unlink."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._waiting: deque[tuple[int, Path]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, paths: Sequence[Path], *, now_ns: int, delay_ms: int) -> None:
        """Rename files out of the way, and remember when to unlink them."""
        for path in paths:
            target = path.with_name(path.name + DELETED)
            try:
                self._files.rename(path, target)
            except FileNotFoundError:
                continue
            self._waiting.append((now_ns + delay_ms * NS_PER_MS, target))

    def unlink_due(self, now_ns: int) -> int:
        """Unlink what has waited long enough; how many files went."""
        count = 0
        while self._waiting and self._waiting[0][0] <= now_ns:
            self._files.unlink(self._waiting.popleft()[1])
            count += 1
        return count


def unlink_leftovers(directory: Path, files: Files) -> int:
    """Finish what a dead process was replacing, and unlink what it had deleted or not finished writing; how many files
    went."""
    complete_swaps(directory, files)
    leftovers = [name for name in files.list_directory(directory) if name.endswith((DELETED, TEMPORARY))]
    for name in leftovers:
        files.unlink(directory / name)
    return len(leftovers)


def remove_copy(directory: Path, files: Files) -> None:
    """Unlink the files of a copy that nobody uses any more, and its directory. That it is gone already is no error."""
    if not directory.is_dir():
        return
    for name in files.list_directory(directory):
        files.unlink(directory / name)
    files.remove_directory(directory)


def delete_copy(directory: Path, files: Files) -> None:
    """Take a copy's directory away under its name at once, then remove it file by file."""
    target = directory.with_name(directory.name + DELETED)
    remove_copy(target, files)
    files.rename(directory, target)
    remove_copy(target, files)


def sweep_deleted_copies(parent: Path, files: Files) -> int:
    """Remove the directories of copies whose deletion a death interrupted; how many went."""
    found = [path for path in parent.glob("*" + DELETED) if path.is_dir()]
    for path in found:
        remove_copy(path, files)
    return len(found)
