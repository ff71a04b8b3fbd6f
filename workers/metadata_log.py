"""The metadata log: one file of entries, appended, replayed, now and then written anew as a snapshot.

    metadata/log         frames: length u32 | crc u32 | synced u64 | body                              little-endian
                         length: of the body; crc: CRC-32C of synced and body; body: one entry (`core/entries.py`)
                         synced: up to this byte of the file everything was on the disk when the frame was written
                         length 0: a mark, written after a sync for its `synced` alone
    metadata/cluster-id  the cluster's id as text, for processes that only want to say it

Guarantees: when `append` with `durable` returns, the entries survive a power cut. When it raises a BrokerError, none of
them is in the log. When nobody can know, it raises MetadataLogFailed: the process must end, and its successor will see.

Opening tells a torn tail from damage by `synced`. A power cut may lose any part of what was not synced, and keep what
was written after it: such a tail is cut. A bad frame below the `synced` of any good frame behind it was on the disk and
has changed since: that is refused with CopyDamagedError, because every entry after it would be silently lost.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from zbroker.core.entries import LAYOUT, AnyEntry, ClusterCreated
from zbroker.errors import BrokerError, CopyDamagedError, StorageError, UnsupportedVersionError
from zbroker.record.crc import crc32c
from zbroker.storage.files import Files

FRAME: Final = struct.Struct("<IIQ")
ENTRY_BYTES_MAX: Final = 64 << 20
LOG_NAME: Final = "log"
CLUSTER_ID_NAME: Final = "cluster-id"
_CLUSTER_ID_BYTES_MAX: Final = 256
_CRC_FROM: Final = 8
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(AnyEntry)

assert FRAME.size == 16


class MetadataLogFailed(RuntimeError):  # noqa: N818 - ends the process, and is no error that a caller handles
    """The metadata log is in a state that only a restart can tell."""


def frame(body: bytes, synced: int) -> bytes:
    """A body as its bytes in the file."""
    covered = synced.to_bytes(8, "little") + body
    return FRAME.pack(len(body), crc32c(covered), synced) + body


def frames(entries: Sequence[AnyEntry], synced: int) -> bytes:
    """Entries as their bytes in the file."""
    return b"".join(frame(_encode(entry), synced) for entry in entries)


def _frame_at(data: bytes, position: int, synced_min: int = 0) -> tuple[bytes, int] | None:
    """The body of the good frame at a position, and the position after it."""
    if position + FRAME.size > len(data):
        return None
    size_bytes, crc, synced = FRAME.unpack_from(data, position)
    end = position + FRAME.size + size_bytes
    if size_bytes > ENTRY_BYTES_MAX or end > len(data) or not synced_min <= synced <= position:
        return None
    if crc32c(data[position + _CRC_FROM : end]) != crc:
        return None
    return data[position + FRAME.size : end], end


class Parsed(NamedTuple):
    """The entries of a file's bytes, where the last good frame ends, and whether that is a mark of all before it."""

    entries: list[AnyEntry]
    end: int
    is_marked: bool


def parse(data: bytes) -> Parsed:
    """Read what is good from the beginning.

    Raises UnsupportedVersionError for an entry or layout that this version does not know.
    """
    entries: list[AnyEntry] = []
    position = 0
    is_marked = False
    while found := _frame_at(data, position):
        body, end = found
        is_marked = not body and FRAME.unpack_from(data, position)[2] == position
        if body:
            try:
                entry = _decoder.decode(body)
            except msgspec.DecodeError as error:
                raise UnsupportedVersionError(
                    f"metadata entry at {position}: {error}; written by a newer zbroker?"
                ) from error
            if isinstance(entry, ClusterCreated) and entry.layout != LAYOUT:
                raise UnsupportedVersionError(f"metadata layout {entry.layout}; this zbroker reads {LAYOUT}")
            entries.append(entry)
        position = end
    return Parsed(entries, position, is_marked)


def was_synced(data: bytes, position: int) -> bool:
    """Whether a good frame behind `position` says that what was there had been on the disk."""
    return any(_frame_at(data, at, synced_min=position + 1) for at in range(position + 1, len(data) - FRAME.size + 1))


class MetadataLog:
    """An open log. One process has it: the coordinator, which holds the data directory's lock."""

    def __init__(self, directory: Path, files: Files, fd: int, position: int, entries: list[AnyEntry]) -> None:
        self._directory = directory
        self._files = files
        self._fd = fd
        self._position = position
        self._synced = 0  # what an fdatasync has covered; the mark that says so is not part of it yet
        self._settled_end = 0  # where the log ends while `sync` has nothing to do
        self.entries = entries
        self.entry_count = len(entries)
        self.cut_bytes = 0

    @classmethod
    def open(cls, directory: Path, files: Files) -> MetadataLog:
        """Open or make the log. `entries` is what it holds, `cut_bytes` how much of a torn tail was cut.

        Raises CopyDamagedError, UnsupportedVersionError, DiskFullError, StorageError, TooManyOpenFilesError.
        """
        path = directory / LOG_NAME
        files.unlink(path.with_name(path.name + ".tmp"))
        fd = files.open(path, os.O_RDWR | os.O_CREAT)
        try:
            size_bytes = files.size_bytes(fd)
            data = files.pread(fd, size_bytes, 0)
            entries, position, is_marked = parse(data)
            if position < size_bytes and was_synced(data, position):
                raise CopyDamagedError(
                    f"{path}: damage at byte {position}, which was on the disk",
                    hint="restore the metadata directory from a backup",
                )
            log = cls(directory, files, fd, position, entries)
            if is_marked:
                log._synced, log._settled_end = position - FRAME.size, position
            if position < size_bytes:
                log._cut()  # nobody maps this file, so it can be shortened
                log.cut_bytes = size_bytes - position
            files.fsync_directory(directory)
            files.fsync_directory(directory.parent)  # the directories of the data are as new as this one
            log.sync()
        except MetadataLogFailed as error:
            files.close(fd)
            raise StorageError(str(error)) from error
        except BaseException:
            files.close(fd)
            raise
        return log

    @property
    def size_bytes(self) -> int:
        """The length of the log."""
        return self._position

    def append(self, entries: Sequence[AnyEntry], *, durable: bool) -> None:
        """Append entries in one write. Raises BrokerError when none of them is in the log, else MetadataLogFailed."""
        data = frames(entries, self._synced)
        assert len(data) <= ENTRY_BYTES_MAX, f"{len(data)} bytes in one append"
        try:
            self._files.pwrite(self._fd, data, self._position)
        except BrokerError:
            self._cut()
            raise
        self._position += len(data)
        self.entry_count += len(entries)
        if durable:
            self.sync()

    def sync(self) -> None:
        """Return when everything that was appended is on the disk, and the file says so. Raises MetadataLogFailed."""
        if self._settled_end == self._position:
            return
        try:
            self._files.fdatasync(self._fd)
        except BrokerError as error:
            raise MetadataLogFailed(f"{self._directory / LOG_NAME}: {error}") from error
        self._synced = self._position
        mark = frame(b"", self._position)
        try:
            self._files.pwrite(self._fd, mark, self._position)
            self._position += len(mark)
        except BrokerError:
            self._cut()  # the entries are safe; damage to them would be taken for a torn tail until the next mark
        self._settled_end = self._position

    def _cut(self) -> None:
        try:
            self._files.shorten(self._fd, self._position)
        except BrokerError as error:
            raise MetadataLogFailed(f"{self._directory / LOG_NAME}: cannot be shortened: {error}") from error

    def replace(self, entries: Sequence[AnyEntry]) -> None:
        """Put a snapshot in the place of the log: after a crash either the old or the new one is there, whole.

        Raises BrokerError while the old one is still in use, else MetadataLogFailed.
        """
        path = self._directory / LOG_NAME
        data = frames(entries, 0)
        self._files.replace_file(path, data, durable=True)
        try:
            fd = self._files.open(path, os.O_RDWR)
        except (BrokerError, FileNotFoundError) as error:
            raise MetadataLogFailed(f"{path}: the snapshot cannot be opened: {error}") from error
        self._files.close(self._fd)
        self._fd = fd
        self._position = len(data)
        self._synced = 0
        self.entry_count = len(entries)
        self.sync()

    def write_cluster_id(self, cluster_id: str) -> None:
        """Show the cluster's id to processes that do not read the log. Raises BrokerError."""
        path = self._directory / CLUSTER_ID_NAME
        text = f"{cluster_id}\n".encode()
        if self._files.read_file(path, _CLUSTER_ID_BYTES_MAX) != text:
            self._files.replace_file(path, text, durable=False)

    def close(self) -> None:
        """Close the file."""
        self._files.close(self._fd)
