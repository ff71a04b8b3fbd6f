"""The two small files that make a start quick: `high-watermark` (saved positions) and `clean-shutdown`.

Guarantees: saving overwrites the older of two slots, so that a death in the middle leaves the newer one; nothing is
fsynced, because what an older slot says stays true after a power cut: offsets only rise. A marker is there only between
a clean stop and the next write, and names the end of the log, so that a stale one cannot pass for a fresh one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from zbroker.errors import DiskFullError, TooManyOpenFilesError
from zbroker.storage.files import Files
from zbroker.storage.layout import (
    CLEAN_MARKER,
    HIGH_WATERMARK,
    RECORD_BYTES,
    SAVED_FILE_BYTES,
    SLOT_SPACING,
    CleanMarker,
    SavedPositions,
    pack_marker,
    pack_saved,
    unpack_marker,
    unpack_saved,
)


class Positions:
    """High watermark, recovery point and log start of one copy, as last saved."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._path = directory / HIGH_WATERMARK
        self._files = files
        self._boot_id = bytes.fromhex(files.boot_id().replace("-", "")).ljust(16, b"\0")[:16]
        data = files.read_file(self._path, SAVED_FILE_BYTES)
        found = unpack_saved(data) if data else None
        self.is_missing = found is None
        self._is_begun = data is not None
        self.saved = found or SavedPositions(0, 0, 0, 0, self._boot_id)
        self._is_durable = False

    @property
    def is_same_boot(self) -> bool:
        """Whether the page cache still holds everything that had been written when the positions were saved."""
        return self.saved.boot_id == self._boot_id

    @property
    def saw_power_cut(self) -> bool:
        """Whether the power went since the copy was written to, for all that the file shows: it was there, and what was
        last written to it was in another boot of the host, or is not on the disk."""
        return not self.is_same_boot or (self._is_begun and self.is_missing)

    def begin(self) -> None:
        """Before the first record: from now on a file without sound positions tells of a power cut."""
        if not self._is_begun:
            with suppress(DiskFullError, TooManyOpenFilesError):  # what is lost then is the sign only
                self._write(self.saved, durable=False)

    def distrust(self) -> None:
        """Take it that nothing was promised but the log start: the walk over the log shall find the end alone."""
        self.saved = self.saved._replace(high_watermark=0, recovery_point=0, boot_id=bytes(16))

    def save(self, *, high_watermark: int, recovery_point: int, log_start: int, durable: bool = False) -> None:
        """Write the positions if one of them changed. Raises DiskFullError or StorageError; the old ones then stay.

        `durable`: they survive a power cut, and so does that what the older slot says is not believed any more: for
        positions that go back, and for a log start that files are deleted for."""
        old = self.saved
        new = SavedPositions(old.sequence + 1, high_watermark, recovery_point, log_start, self._boot_id)
        if new[1:] == old[1:] and (self._is_durable or not durable):
            return
        self._write(new, durable=durable)

    def _write(self, new: SavedPositions, *, durable: bool) -> None:
        fd = self._files.open(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            self._files.pwrite(fd, pack_saved(new), new.sequence % 2 * SLOT_SPACING)
            if durable:
                self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        self.saved, self._is_durable, self._is_begun = new, durable, True


def read_marker(directory: Path, files: Files) -> CleanMarker | None:
    """The marker of a clean stop, if there is a sound one."""
    data = files.read_file(directory / CLEAN_MARKER, RECORD_BYTES)
    return unpack_marker(data) if data else None


def write_marker(directory: Path, files: Files, marker: CleanMarker) -> None:
    """Leave a marker. The log must be synced before: the marker is believed after a power cut too."""
    fd = files.open(directory / CLEAN_MARKER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        files.pwrite(fd, pack_marker(marker), 0)
    finally:
        files.close(fd)


def remove_marker(directory: Path, files: Files) -> None:
    """Take the marker away, before the first write. The caller fsyncs the directory."""
    files.unlink(directory / CLEAN_MARKER)
