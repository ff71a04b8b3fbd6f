"""The metadata log: one file of entries, appended, replayed, now and then written anew as a snapshot.

    metadata/log       frames as in core/entries.py: length u32 | CRC-32C u32 | body, little-endian
    metadata/cluster-id  the cluster's id as text, for processes that only want to say it

Guarantees: when `append` with `durable` returns, the entries survive a power cut. A tail that was torn by a crash is
cut when the log is opened, and said so in the log lines; damage before the last good frame is refused with
CopyDamagedError, because entries after it would be silently lost. A snapshot replaces the file as a whole (write,
fsync, rename, fsync of the directory).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from zbroker.core.entries import LAYOUT, AnyEntry, ClusterCreated
from zbroker.errors import BrokerError, CopyDamagedError, DiskFullError, StorageError, UnsupportedVersionError
from zbroker.record.crc import crc32c

FRAME: Final = struct.Struct("<II")
ENTRY_BYTES_MAX: Final = 64 << 20
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(AnyEntry)


def frame(entry: AnyEntry) -> bytes:
    """One entry as its bytes in the file."""
    body = _encode(entry)
    return FRAME.pack(len(body), crc32c(body)) + body


def parse(data: bytes) -> tuple[list[AnyEntry], int]:
    """The entries of a file's bytes, and the position at which the last good frame ends.

    Raises UnsupportedVersionError for an entry or layout that this version does not know.
    """
    entries: list[AnyEntry] = []
    position = 0
    while position + FRAME.size <= len(data):
        size_bytes, crc = FRAME.unpack_from(data, position)
        body = data[position + FRAME.size : position + FRAME.size + size_bytes]
        if not 0 < size_bytes <= ENTRY_BYTES_MAX or len(body) < size_bytes or crc32c(body) != crc:
            break
        try:
            entry = _decoder.decode(body)
        except msgspec.DecodeError as error:
            raise UnsupportedVersionError(
                f"metadata entry at {position}: {error}; written by a newer zbroker?"
            ) from error
        if isinstance(entry, ClusterCreated) and entry.layout != LAYOUT:
            raise UnsupportedVersionError(f"metadata layout {entry.layout}; this zbroker reads {LAYOUT}")
        entries.append(entry)
        position += FRAME.size + size_bytes
    return entries, position


def _frame_follows(data: bytes, position: int) -> bool:
    """Whether a whole good frame lies anywhere behind `position`: then what is there is damage, not a torn tail."""
    for at in range(position + 1, len(data) - FRAME.size):
        size_bytes, crc = FRAME.unpack_from(data, at)
        body = data[at + FRAME.size : at + FRAME.size + size_bytes]
        if 0 < size_bytes <= len(body) and crc32c(body) == crc:
            return True
    return False


class MetadataLog:
    """An open log. One process has it: the coordinator, which holds the data directory's lock."""

    def __init__(self, directory: Path, fd: int, position: int, entries: list[AnyEntry], cut_bytes: int) -> None:
        self._directory = directory
        self._fd = fd
        self._position = position
        self.entries = entries
        self.entry_count = len(entries)
        self.cut_bytes = cut_bytes

    @classmethod
    def open(cls, directory: Path) -> MetadataLog:
        """Open or make the log. `entries` is what it holds, `cut_bytes` how much of a torn tail was cut.

        Raises CopyDamagedError, UnsupportedVersionError, DiskFullError, StorageError.
        """
        path = directory / "log"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _typed(error, path) from error
        try:
            size_bytes = os.fstat(fd).st_size
            data = os.pread(fd, size_bytes, 0)
            entries, position = parse(data)
            if position < size_bytes:
                if _frame_follows(data, position):
                    raise CopyDamagedError(
                        f"{path}: damage at byte {position}, with whole entries after it",
                        hint="restore the metadata directory from a backup",
                    )
                # Nobody maps this file, so it can be shortened.
                os.ftruncate(fd, position)
                os.fsync(fd)
        except OSError as error:
            os.close(fd)
            raise _typed(error, path) from error
        except BaseException:
            os.close(fd)
            raise
        return cls(directory, fd, position, entries, size_bytes - position)

    def append(self, entries: Sequence[AnyEntry], *, durable: bool) -> None:
        """Append entries in one write. After an error none of them is in the log."""
        data = memoryview(b"".join(map(frame, entries)))
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._position + written)
            if durable:
                os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._position)
            raise _typed(error, self._directory / "log") from error
        self._position += len(data)
        self.entry_count += len(entries)

    def sync(self) -> None:
        """Return when everything that was appended is on the disk."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _typed(error, self._directory / "log") from error

    def replace(self, entries: Sequence[AnyEntry]) -> None:
        """Put a snapshot in the place of the log. After an error or a crash either the old or the new one is there."""
        path, new = self._directory / "log", self._directory / "log.new"
        data = memoryview(b"".join(map(frame, entries)))
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _typed(error, new) from error
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], written)
            os.fsync(fd)
            os.rename(new, path)
            sync_directory(self._directory)
        except OSError as error:
            os.close(fd)
            raise _typed(error, new) from error
        os.close(self._fd)
        self._fd = fd
        self._position = len(data)
        self.entry_count = len(entries)

    def write_cluster_id(self, cluster_id: str) -> None:
        """Show the cluster's id to processes that do not read the log."""
        path = self._directory / "cluster-id"
        if not path.exists():
            new = path.with_suffix(".new")
            new.write_text(cluster_id + "\n")
            new.rename(path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def sync_directory(directory: Path) -> None:
    """Return when the directory's names are on the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _typed(error: OSError, path: Path) -> BrokerError:
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(f"{path}: {error.strerror}")
