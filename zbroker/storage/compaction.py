"""Keep the last record of each key: read sealed segments, and write them anew without the records that newer ones
replace.

Two passes over the segments of a round. The first reads what is new since the last round and remembers each key's last
offset, as far as memory allows: there the round ends. The second writes groups of segments anew, as many together as
fit into one, without the records whose key has a later one below the round's end, and without tombstones (records
without a value) that were kept for long enough. Records without a key stay.

Guarantees:
- Every record that stays keeps its offset, its order, and all that it says. A batch without records becomes a hole
  (`record/compacted.py`), and holes that follow on each other in one leader epoch become one.
- Of the newest batch of a producer that is still known, its sequences stay, with or without its records.
- The same input gives the same bytes, and a log that is compacted already gives itself.
- Nothing of the log is changed: what comes out lies in files beside it, synced, for `CompactedLog` to put in place.

It runs in any thread, in steps of about as many bytes as asked for; a batch is not divided.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from zbroker.config.schema import TopicConfig
from zbroker.errors import CopyDamagedError, DiskFullError
from zbroker.record.batch import read_header
from zbroker.record.compacted import HOLE_OFFSETS_MAX, Records, emptied, hole, thinned
from zbroker.record.layout import NO_PRODUCER, BatchHeader
from zbroker.storage.clean_points import CleanPoint, load_points, save_points, tombstones_before, with_point
from zbroker.storage.copied_log import CopiedLog, Sealed
from zbroker.storage.files import Buffer, Files
from zbroker.storage.index_pair import IndexPair
from zbroker.storage.layout import RELATIVE_MAX, SEAL_MARGIN_BYTES, TEMPORARY
from zbroker.storage.scan import Scan

KEY_BYTES_MAX: Final = 32
KEY_COST_BYTES: Final = 250  # of a dict entry with a key of this length and its offset
_WRITE_BYTES: Final = 1 << 20
_SIZE_MAX: Final = 1 << 32  # positions in an index have 32 bits

IsNeeded = Callable[[int, int], bool]


class Round(NamedTuple):
    """What to do: `segments` from the first one on; what is new begins at `dirty_offset`."""

    segments: list[Sealed]
    dirty_offset: int
    tombstones_before: int


class Rewritten(NamedTuple):
    """A group of segments, and what takes their place: a log file that is synced, and its two index files."""

    sources: list[Sealed]
    log: Path
    indexes: tuple[Path, Path]
    size_bytes: int
    timestamp_max: int

    @property
    def base_offset(self) -> int:
        """Base offset of the first source and of what replaces all of them."""
        return self.sources[0].base_offset

    @property
    def next_offset(self) -> int:
        """The offset behind the last."""
        return self.sources[-1].next_offset

    def discard(self, files: Files) -> None:
        """Remove the files that nobody wants."""
        for path in (self.log, *self.indexes):
            files.unlink(path)


class Settings(NamedTuple):
    """Limits of a round. `is_needed(producer id, next offset)`, called in the thread that works: whether the batch that
    ends there is the newest one of a producer that is known."""

    segment_bytes: int
    index_interval_bytes: int
    memory_bytes: int
    disk_free_min_bytes: int
    is_needed: IsNeeded


class Compaction:
    """One round. Call `step` until `is_done`; put each `Rewritten` in place, or discard it, before the next call."""

    def __init__(self, todo: Round, directory: Path, files: Files, settings: Settings) -> None:
        self.is_done = False
        self.end_offset = todo.segments[-1].next_offset
        self.tombstones = 0
        self.tombstones_before = todo.tombstones_before
        self.bytes_before = self.bytes_after = 0
        self._todo = todo
        self._directory = directory
        self._files = files
        self._settings = settings
        self._latest: dict[bytes, int] = {}
        self._work = self._all_steps()

    def step(self, bytes_max: int) -> Rewritten | None:
        """Read about so many bytes, or up to the end of a group. Raises CopyDamagedError, StorageError, DiskFullError;
        the round is over then. FileNotFoundError: a segment was deleted meanwhile."""
        left = bytes_max
        for found in self._work:
            if isinstance(found, Rewritten):
                return found
            left -= found
            if left <= 0:
                return None
        self.is_done = True
        return None

    def close(self) -> None:
        """Give up what is under way."""
        self._work.close()
        self._latest.clear()

    def _all_steps(self) -> Generator[int | Rewritten]:
        yield from self._remember_keys()
        for group in self._groups():
            yield from self._rewrite(group)
        self._latest.clear()

    # --- the first pass ----------------------------------------------------------------------------------------------

    def _remember_keys(self) -> Iterator[int]:
        latest, entries_max = self._latest, self._settings.memory_bytes // KEY_COST_BYTES
        for segment in self._todo.segments:
            if segment.next_offset <= self._todo.dirty_offset:
                continue
            for header, view in _batches(segment, self._files):
                if header.next_offset > self._todo.dirty_offset and header.record_count:
                    if latest and len(latest) + header.record_count > entries_max:
                        self.end_offset = header.base_offset
                        return
                    records = Records(view, header)
                    for offset, key in zip(records.offsets, records.keys, strict=True):
                        if key is not None:
                            latest[_name(key)] = offset
                yield header.size_bytes

    def _groups(self) -> Iterator[list[Sealed]]:
        group: list[Sealed] = []
        size_bytes = 0
        for segment in self._todo.segments:
            if segment.base_offset >= self.end_offset:
                break
            fits = size_bytes + segment.size_bytes <= self._settings.segment_bytes
            if group and not (fits and segment.next_offset - group[0].base_offset <= RELATIVE_MAX):
                yield group
                group, size_bytes = [], 0
            group.append(segment)
            size_bytes += segment.size_bytes
        if group:
            yield group

    # --- the second pass ---------------------------------------------------------------------------------------------

    def _rewrite(self, group: list[Sealed]) -> Iterator[int | Rewritten]:
        before = sum(segment.size_bytes for segment in group)
        least_bytes = self._settings.disk_free_min_bytes
        if least_bytes and self._files.free_bytes(self._directory) - before < least_bytes:
            raise DiskFullError(f"{self._directory}: a copy of {before} bytes would leave less than {least_bytes} free")
        output = _Output(self._directory, group[0].base_offset, self._files, self._settings.index_interval_bytes)
        try:
            for segment in group:
                for header, view in _batches(segment, self._files):
                    output.add(header, self._rest_of(header, view))
                    yield header.size_bytes
            output.finish()
        except BaseException:
            output.discard()
            raise
        self.bytes_before += before
        self.bytes_after += output.position
        paths = (output.indexes.offsets.path, output.indexes.times.path)
        rewritten = Rewritten(group, output.path, paths, output.position, output.indexes.timestamp_max)
        if len(group) == 1 and not output.is_changed:
            rewritten.discard(self._files)
        else:
            yield rewritten

    def _rest_of(self, header: BatchHeader, view: memoryview) -> Buffer | None:
        """What stays of a batch; None: a hole."""
        if header.record_count:
            if header.base_offset >= self.end_offset:
                return view
            records = Records(view, header)
            kept = self._kept(records)
            if len(kept) == header.record_count:
                return view
            if kept:
                return thinned(header, records, kept)
        is_needed = self._settings.is_needed
        if header.producer_id != NO_PRODUCER and is_needed(header.producer_id, header.next_offset):
            return emptied(header) if header.record_count else view
        return None

    def _kept(self, records: Records) -> list[int]:
        """The indexes of the records that stay."""
        latest, keys, offsets = self._latest, records.keys, records.offsets
        kept = [
            index
            for index, (offset, key) in enumerate(zip(offsets, keys, strict=True))
            if key is None or latest.get(_name(key), -1) <= offset
        ]
        tombstones = set(records.tombstones())
        if not tombstones:
            return kept
        old = {index for index in tombstones if offsets[index] < self._todo.tombstones_before}
        kept = [index for index in kept if index not in old or keys[index] is None]
        self.tombstones += sum(1 for index in kept if index in tombstones and keys[index] is not None)
        return kept


def _name(key: bytes) -> bytes:
    # Longer than any short key, so that no key can be taken for another one's digest.
    return key if len(key) <= KEY_BYTES_MAX else b"#" + blake2b(key, digest_size=KEY_BYTES_MAX).digest()


def _batches(segment: Sealed, files: Files) -> Iterator[tuple[BatchHeader, memoryview]]:
    """Every batch of a segment, its CRC checked. Raises CopyDamagedError where it does not go on to the end."""
    fd = files.open(segment.path)
    try:
        scan = Scan(
            lambda size_bytes, position: files.pread(fd, size_bytes, position),
            position=0,
            bytes_end=segment.size_bytes,
            next_offset=segment.base_offset,
            check_crc=True,
        )
        for position, header in scan:
            yield header, memoryview(files.pread(fd, header.size_bytes, position))
        if scan.damage is not None or scan.next_offset != segment.next_offset:
            what = scan.damage or f"ends at offset {scan.next_offset}, not {segment.next_offset}"
            raise CopyDamagedError(f"{segment.path}, position {scan.position}: {what}")
    finally:
        files.close(fd)


class _Output:
    """The file that is written."""

    def __init__(self, directory: Path, base_offset: int, files: Files, index_interval_bytes: int) -> None:
        self.indexes = IndexPair(directory, base_offset, files, interval_bytes=index_interval_bytes)
        for index in (self.indexes.offsets, self.indexes.times):
            index.path = index.path.with_name(index.path.name + ".cleaned" + TEMPORARY)
        self.indexes.create()
        self.path = directory / f"{base_offset:020d}.cleaned{TEMPORARY}"
        self.position = 0
        self.is_changed = False
        self._base_offset = base_offset
        self._files = files
        self._fd = files.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._parts: list[Buffer] = []
        self._parts_bytes = 0
        self._hole: tuple[int, int, int] | None = None  # base offset, next offset, epoch

    def add(self, header: BatchHeader, rest: Buffer | None) -> None:
        """The next batch, and what is left of it."""
        if rest is not None:
            self._end_hole()
            if not isinstance(rest, memoryview):
                self.is_changed = True
                header = read_header(rest)
            self._put(rest, header.next_offset, header.max_timestamp)
            return
        was_hole = header.record_count == 0 and header.producer_id == NO_PRODUCER
        self.is_changed = self.is_changed or not was_hole
        pending = self._hole
        if pending is not None:
            base, _, epoch = pending
            if epoch == header.leader_epoch and header.next_offset - base < HOLE_OFFSETS_MAX:
                self._hole = (base, header.next_offset, epoch)
                self.is_changed = True
                return
            self._end_hole()
        self._hole = (header.base_offset, header.next_offset, header.leader_epoch)

    def _end_hole(self) -> None:
        if self._hole is not None:
            base, next_offset, epoch = self._hole
            self._hole = None
            self._put(hole(base, next_offset, epoch), next_offset, -1)

    def _put(self, data: Buffer, next_offset: int, max_timestamp: int) -> None:
        position = self.position + self._parts_bytes
        self.indexes.note(position, len(data), next_offset - 1 - self._base_offset, max_timestamp)
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes >= _WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        data = b"".join(self._parts)
        assert self.position + len(data) < _SIZE_MAX
        self._files.pwrite(self._fd, data, self.position)
        self.position += len(data)
        self._parts, self._parts_bytes = [], 0

    def finish(self) -> None:
        """Return when the file is whole and on the device."""
        self._end_hole()
        self._write()
        self._files.fallocate(self._fd, self.position, SEAL_MARGIN_BYTES)
        self._files.fdatasync(self._fd)
        self._files.close(self._fd)
        self._fd = -1
        self.indexes.finish()

    def discard(self) -> None:
        """Remove what was written."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        for path in (self.path, self.indexes.offsets.path, self.indexes.times.path):
            self._files.unlink(path)


def plan(log: CopiedLog, files: Files, config: TopicConfig, *, high_watermark: int, now_ms: int) -> Round | None:
    """What is to be done now; None: too little of the log is new, and no tombstone is old enough."""
    lag_ms = config.min_compaction_lag_ms
    segments = log.compactable(high_watermark, now_ms - lag_ms if lag_ms else None)
    if not segments:
        return None
    points = load_points(log.directory, files)
    dirty_offset = points[-1].end_offset if points else 0
    horizon = tombstones_before(points, now_ms, config.delete_retention_ms)
    dirty_bytes = sum(one.size_bytes for one in segments if one.next_offset > dirty_offset)
    all_bytes = sum(one.size_bytes for one in segments)
    is_dirty = dirty_bytes > 0 and dirty_bytes >= config.min_cleanable_dirty_ratio * all_bytes
    has_old_tombstones = horizon > 0 and points[-1].tombstones > 0
    return Round(segments, dirty_offset, horizon) if is_dirty or has_old_tombstones else None


def note_done(log: CopiedLog, files: Files, config: TopicConfig, done: Compaction, *, now_ms: int) -> None:
    """Remember that a round is over and all of it in place. Raises DiskFullError, StorageError."""
    new = CleanPoint(done.end_offset, now_ms, done.tombstones)
    points = load_points(log.directory, files)
    points = with_point(points, new, done.tombstones_before, config.delete_retention_ms)
    save_points(log.directory, files, points)
