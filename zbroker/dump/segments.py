"""Look into a copy's files, with its broker up, busy or dead; and cut a damaged copy where the user accepts the loss.

Guarantees: `dump_batches` and `verify_copy` open files read-only, take no lock and change nothing, so they may run
beside the process that writes. A batch that is being written at that moment is reported as in flight, not as damage.
Memory is bounded by one batch and the index of one segment. `recover_copy` takes the directory's lock, so it refuses
with DirectoryLockedError while a process has the copy open.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zbroker.clock import HostClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import StorageError
from zbroker.record.batch import crc_matches
from zbroker.record.layout import BatchHeader
from zbroker.record.records import ConsumerRecord
from zbroker.record.view import RecordBatch
from zbroker.storage.checkpoint import Positions, read_marker
from zbroker.storage.epochs import Epochs, EpochStart
from zbroker.storage.files import Files
from zbroker.storage.index import OffsetIndex, TimeIndex
from zbroker.storage.layout import INDEX, LOG, TIMEINDEX, SavedPositions, parse_segment_name, segment_name
from zbroker.storage.log import Log
from zbroker.storage.scan import Scan

_LOCKS = Path("/proc/locks")


class DumpedBatch(NamedTuple):
    """A batch as it lies in a file."""

    path: Path
    position: int
    header: BatchHeader
    data: bytes
    is_sound: bool  # its CRC matches

    def records(self) -> list[ConsumerRecord[bytes, bytes]]:
        """Its records. Raises CorruptRecordError when it is damaged or its codec is unknown."""
        return RecordBatch(self.path.parent.name, 0, memoryview(self.data)).records()


class SegmentReport(NamedTuple):
    """What a segment's three files hold."""

    path: Path
    base_offset: int
    next_offset: int
    batch_count: int
    size_bytes: int
    file_bytes: int
    timestamp_max: int
    damage: str | None
    index_faults: list[str]
    is_in_flight: bool = False


class CopyReport(NamedTuple):
    """What a copy's directory holds. `faults` says in words what is wrong; nothing, when it is sound."""

    directory: Path
    is_locked: bool
    is_closed_cleanly: bool
    saved: SavedPositions | None
    epochs: list[EpochStart]
    segments: list[SegmentReport]
    faults: list[str]

    @property
    def is_sound(self) -> bool:
        """Whether every batch up to the end can be read, and nothing that was promised is missing."""
        return not self.faults


class Recovered(NamedTuple):
    """What `recover_copy` left of a copy, and how many records below its saved high watermark are gone."""

    log_start: int
    log_end: int
    records_lost: int
    segments_removed: int


def find_copies(path: Path) -> list[Path]:
    """The copy directories at or below a path: a data directory, a copy's directory, or one of its files."""
    if path.is_file():
        if parse_segment_name(path.name) is None:
            raise StorageError(
                f"{path}: not a file of a log", hint="they are named by an offset, as 00000000000000000000.log"
            )
        return [path.parent]
    if not path.is_dir():
        raise StorageError(f"{path}: no such directory")
    found = {log.parent for log in path.rglob("*" + LOG) if parse_segment_name(log.name)}
    return sorted(found)


def segment_paths(directory: Path) -> list[Path]:
    """The .log files of a copy, oldest first."""
    names = (parse_segment_name(name) for name in Files().list_directory(directory))
    return [directory / segment_name(name[0]) for name in sorted(filter(None, names)) if name[1] == LOG]


def is_locked(directory: Path) -> bool:
    """Whether a process has the copy open. Reads the kernel's list, because a trial lock could get in its way."""
    try:
        found = os.stat(directory)
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return False
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any("FLOCK" in line and name in line.split() for line in lines)


class _OpenFile:
    """A read-only file for the length of a `with`."""

    def __init__(self, path: Path) -> None:
        self._files = Files()
        self._path = path
        self._fd = -1

    def __enter__(self) -> _OpenFile:
        try:
            self._fd = self._files.open(self._path)
        except FileNotFoundError as error:
            raise StorageError(f"{self._path} is gone: deleted meanwhile?") from error
        self.size_bytes = self._files.size_bytes(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close(self._fd)

    def read(self, size_bytes: int, position: int) -> bytes:
        """Up to so many bytes."""
        return self._files.pread(self._fd, size_bytes, position)


def dump_batches(path: Path, *, start_offset: int = 0, count_max: int | None = None) -> Iterator[DumpedBatch]:
    """The batches of a .log file or of a copy's directory, from the one that holds `start_offset` on.

    Ends at the end of the log, or at the first place where no batch can be told from junk; `verify_copy` says which.
    """
    paths = [path] if path.suffix == LOG else segment_paths(path)
    bases = [base for base, _ in filter(None, (parse_segment_name(found.name) for found in paths))]
    count = 0
    for number, found in enumerate(paths):
        if number + 1 < len(bases) and bases[number + 1] <= start_offset:
            continue
        with _OpenFile(found) as file:
            scan = Scan(file.read, position=0, bytes_end=file.size_bytes, next_offset=None, check_crc=False)
            for position, header in scan:
                if header.next_offset <= start_offset:
                    continue
                if count_max is not None and count >= count_max:
                    return
                data = file.read(header.size_bytes, position)
                yield DumpedBatch(found, position, header, data, crc_matches(data, 0, header))
                count += 1


def verify_segment(path: Path, *, is_last: bool, is_live: bool) -> SegmentReport:
    """Read a whole segment: every CRC, and every index entry against the batch that it names."""
    name = parse_segment_name(path.name)
    if name is None:
        raise StorageError(f"{path}: not the name of a segment")
    checks = _IndexChecks(path.parent, name[0])
    count, timestamp_max = 0, -1
    with _OpenFile(path) as file:
        scan = Scan(file.read, position=0, bytes_end=file.size_bytes, next_offset=name[0], check_crc=True)
        for position, header in scan:
            count += 1
            timestamp_max = max(timestamp_max, header.max_timestamp)
            checks.see(position, header)
    is_in_flight = scan.damage is not None and is_last and is_live
    return SegmentReport(
        path,
        name[0],
        scan.next_offset if scan.next_offset is not None else name[0],
        count,
        scan.position,
        file.size_bytes,
        timestamp_max,
        None if is_in_flight else _at(scan),
        checks.faults(file.size_bytes),
        is_in_flight,
    )


def _at(scan: Scan) -> str | None:
    return None if scan.damage is None else f"position {scan.position}, offset {scan.next_offset}: {scan.damage}"


class _IndexChecks:
    """Compares the entries of a segment's indexes with its batches, as they pass by."""

    def __init__(self, directory: Path, base_offset: int) -> None:
        files = Files()
        self._base_offset = base_offset
        self._offsets = OffsetIndex(directory / segment_name(base_offset, INDEX), files)
        self._times = TimeIndex(directory / segment_name(base_offset, TIMEINDEX), files)
        self._is_missing = not (self._offsets.path.exists() and self._times.path.exists())
        self._is_offsets_sound = self._offsets.load(1 << 62)
        self._is_times_sound = self._times.load()
        self._offset_number = 0
        self._time_number = 0
        self._timestamp_max = -1
        self._found: list[str] = []

    def see(self, position: int, header: BatchHeader) -> None:
        """The next batch of the log."""
        relative = header.last_offset - self._base_offset
        self._timestamp_max = max(self._timestamp_max, header.max_timestamp)
        entry = self._offsets.at(self._offset_number) if self._offset_number < len(self._offsets) else None
        if entry is not None and entry.position <= position:
            self._offset_number += 1
            if entry != (relative, position):
                self._found.append(f"{self._offsets.path.name}: {entry} names no batch")
        while self._time_number < len(self._times) and self._times.second[self._time_number] <= relative:
            timestamp = self._times.first[self._time_number]
            if self._times.second[self._time_number] != relative or timestamp != self._timestamp_max:
                self._found.append(f"{self._times.path.name}: entry {self._time_number} says {timestamp}")
            self._time_number += 1

    def faults(self, file_bytes: int) -> list[str]:
        """What is wrong, in words. Indexes are hints: none of it loses a record."""
        if self._is_missing:
            return ["an index file is missing; the next start makes it anew"]
        if not self._is_offsets_sound or (self._offsets.second and self._offsets.second[-1] >= file_bytes):
            self._found.append(f"{self._offsets.path.name} contradicts itself")
        if not self._is_times_sound:
            self._found.append(f"{self._times.path.name} contradicts itself")
        return self._found


def verify_copy(directory: Path) -> CopyReport:
    """Read everything of a copy and say what is wrong with it. Takes no lock and changes nothing."""
    files = Files()
    is_live = is_locked(directory)
    positions = Positions(directory, files)
    saved = None if positions.is_missing else positions.saved
    paths = segment_paths(directory)
    reports: list[SegmentReport] = []
    faults: list[str] = []
    for number, path in enumerate(paths):
        try:
            reports.append(verify_segment(path, is_last=number + 1 == len(paths), is_live=is_live))
        except StorageError:
            if not is_live:
                raise
    for number, report in enumerate(reports):
        if report.damage is not None:
            faults.append(f"{report.path.name}, {report.damage}")
        elif number + 1 < len(reports) and report.next_offset != reports[number + 1].base_offset:
            following = reports[number + 1].base_offset
            faults.append(f"{report.path.name} ends before offset {report.next_offset}, the next begins at {following}")
    log_end = reports[-1].next_offset if reports else 0
    if saved is not None and not is_live and saved.high_watermark > log_end:
        faults.append(f"the log ends at offset {log_end}, below the saved high watermark {saved.high_watermark}")
    is_closed = read_marker(directory, files) is not None
    return CopyReport(directory, is_live, is_closed, saved, Epochs(directory, files).starts, reports, faults)


def recover_copy(directory: Path) -> Recovered:
    """Cut a copy at its first damage, wherever that lies, and close it cleanly: its process then opens it again.

    What lay behind the damage is lost. Raises DirectoryLockedError while a process has the copy open.
    """
    files = Files()
    if not directory.is_dir():
        raise StorageError(f"{directory}: no such directory")
    promised = Positions(directory, files).saved.high_watermark
    log = Log.open(directory, TopicConfig(), files, HostClock(), accept_loss=True)
    try:
        log.save_high_watermark(min(promised, log.log_end))
        lost = max(0, promised - log.log_end)
        return Recovered(log.log_start, log.log_end, lost, log.recovery.segments_removed)
    finally:
        log.close()
