"""Open a copy's files again: after a clean stop by a look at the end, after a death by walking what may be torn.

Guarantees:

- After a clean stop nothing is scanned: the marker must agree with the log from the last index entry on.
- Else every batch from the recovery point on is checked: CRC, lengths, offsets, leader epochs. The first that is not
  sound is where the log ends; later segments go, and what follows in the segment is punched out (`Store.settle`).
- Damage below the *bar* is not a torn tail but lost data: CopyDamagedError, and no byte of the log was changed. The bar
  is the recovery point (what was fdatasynced cannot tear), and within one boot the saved high watermark, since the page
  cache outlives processes. After a power cut a tail that was never synced may be gone although it was below the high
  watermark; the report counts it (`records_lost_max`), and whoever places leaders decides.
- Indexes, the epoch file, the saved positions and the marker are hints: missing or damaged, they are made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from zbroker.errors import CopyDamagedError, StorageError
from zbroker.record.layout import BatchHeader
from zbroker.storage.checkpoint import Positions, read_marker
from zbroker.storage.epochs import Epochs, EpochStart
from zbroker.storage.files import Files
from zbroker.storage.layout import INDEX, LOG, TIMEINDEX, CleanMarker, parse_segment_name
from zbroker.storage.scan import EPOCH_MAX
from zbroker.storage.segment import Segment

_OFFSET_MAX = (1 << 63) - 1


class RecoveryReport(NamedTuple):
    """What opening a copy found."""

    is_clean: bool = True
    batches_checked: int = 0
    bytes_checked: int = 0
    segments_removed: int = 0
    records_lost_max: int = 0  # below the saved high watermark, gone with a power cut
    was_torn: bool = False
    is_after_power_cut: bool = False  # it was open when the power went: what was not synced is gone


class Opened(NamedTuple):
    """A copy's segments, oldest first, the last one active; and segments that are to be deleted."""

    segments: list[Segment]
    removed: list[Segment]
    log_start: int
    report: RecoveryReport
    is_new: bool = False


MakeSegment = Callable[[int], Segment]


def open_segments(
    directory: Path,
    files: Files,
    positions: Positions,
    epochs: Epochs,
    make_segment: MakeSegment,
    *,
    epoch_max: int = EPOCH_MAX,
) -> Opened:
    """Find the segments of a directory and bring them into the state that the module's text promises.

    Raises CopyDamagedError. Creates a first segment when there is none.
    """
    bases, unpaired = _segment_bases(directory, files)
    segments = [make_segment(base) for base in bases]
    if not segments:
        first = _first_segment(positions, make_segment)
        return Opened([first], [], first.base_offset, RecoveryReport(is_clean=positions.is_missing), is_new=True)
    deleted = sum(following <= positions.saved.log_start for following in bases[1:])
    removed, segments = segments[:deleted], segments[deleted:]
    marker = read_marker(directory, files)
    report = RecoveryReport()
    if marker is not None and _agrees(marker, segments[-1]):
        _take_over_sealed(segments, len(segments) - 1)
    else:
        recovery = _Recovery(segments, positions, epoch_max)
        _take_over_sealed(segments, recovery.walk())
        segments, torn, report = recovery.apply()
        report = report._replace(is_after_power_cut=positions.saw_power_cut)
        removed += torn
    if segments[-1].next_offset < positions.saved.recovery_point:
        # All of it had been deleted, and a power cut kept some deletions only: no offset is given twice.
        removed += segments
        segments = [make_segment(positions.saved.recovery_point)]
        segments[0].create()
    log_start = max(segments[0].base_offset, min(positions.saved.log_start, segments[-1].next_offset))
    if log_start < positions.saved.log_start:
        _take_back(positions, log_start)
    for segment in segments[:-1]:
        if segment.base_offset in unpaired:
            segment.rebuild_indexes()
    _check_epochs(epochs, segments, log_start)
    return Opened(segments, removed, log_start, report)


def _segment_bases(directory: Path, files: Files) -> tuple[list[int], set[int]]:
    """(base offsets of the .log files, those of them that miss an index file). Index files without a log go."""
    bases: set[int] = set()
    index_files: dict[tuple[int, str], str] = {}
    for name in files.list_directory(directory):
        found = parse_segment_name(name)
        if found is not None and found[1] == LOG:
            bases.add(found[0])
        elif found is not None:
            index_files[found] = name
    for (base, _), name in index_files.items():
        if base not in bases:
            files.unlink(directory / name)
    unpaired = {base for base in bases if (base, INDEX) not in index_files or (base, TIMEINDEX) not in index_files}
    return sorted(bases), unpaired


def _first_segment(positions: Positions, make_segment: MakeSegment) -> Segment:
    bar = _bar(positions)
    if bar:
        raise CopyDamagedError(f"no segment is left, but records up to offset {bar} were there")
    segment = make_segment(positions.saved.log_start)
    segment.create()
    return segment


def _take_back(positions: Positions, log_end: int) -> None:
    """The log ends below the saved log start: without this, what is appended there would be gone at the next start."""
    saved = positions.saved
    high_watermark, recovery_point = min(saved.high_watermark, log_end), min(saved.recovery_point, log_end)
    positions.save(high_watermark=high_watermark, recovery_point=recovery_point, log_start=log_end, durable=True)


def _bar(positions: Positions) -> int:
    """Where damage begins to be a tear; 0 when all that had been promised was deleted."""
    saved = positions.saved
    bar = max(saved.recovery_point, saved.high_watermark if positions.is_same_boot else 0)
    return bar if bar > saved.log_start else 0


def _agrees(marker: CleanMarker, active: Segment) -> bool:
    """Whether the log ends where a clean stop says. The active segment then knows its end."""
    if marker.active_base != active.base_offset:
        return False
    scan = active.resume(_OFFSET_MAX, check_crc=False)
    if (scan.damage, scan.position, active.next_offset) != (None, marker.active_position, marker.log_end):
        return False
    return not active.store.has_data_behind(scan.position) and not active.store.settle(scan.position)


class _Recovery:
    """A walk over the segments that may be torn. Nothing is changed before the whole walk was judged."""

    def __init__(self, segments: list[Segment], positions: Positions, epoch_max: int) -> None:
        self._segments = segments
        self._positions = positions
        self._epoch_max = epoch_max
        self._first = 0
        self._last = 0
        self._batches = 0
        self._bytes = 0

    def walk(self) -> int:
        """Check from the recovery point on; the number of the first segment that was. Raises CopyDamagedError."""
        recovery_point = self._positions.saved.recovery_point
        numbers = [number for number, found in enumerate(self._segments) if found.base_offset <= recovery_point]
        self._first = numbers[-1] if numbers else 0
        for number in range(self._first, len(self._segments)):
            self._last = number
            segment = self._segments[number]
            scan = segment.resume(recovery_point, check_crc=True, epoch_max=self._epoch_max, on_batch=self._count)
            segment.store.end = scan.position
            following = self._segments[number + 1].base_offset if number + 1 < len(self._segments) else None
            if scan.damage is not None or segment.next_offset != following:
                self._judge(segment, scan.damage or "the log ends")
                break
        return self._first

    def _count(self, header: BatchHeader) -> None:
        self._batches += 1
        self._bytes += header.size_bytes

    def _judge(self, segment: Segment, what: str) -> None:
        bar = _bar(self._positions)
        if segment.next_offset < bar:
            raise CopyDamagedError(
                f"{segment.store.path}, position {segment.store.end}, offset {segment.next_offset}: {what}; "
                f"records below offset {bar} had been written"
            )

    def apply(self) -> tuple[list[Segment], list[Segment], RecoveryReport]:
        """Cut what was found torn. Gives segments that stay, segments to delete, and the report."""
        kept, removed = self._segments[: self._last + 1], self._segments[self._last + 1 :]
        torn = [segment.store.settle(segment.store.end) for segment in kept[self._first :]]
        for segment in kept[self._first : -1]:
            segment.seal()
        lost = max(0, self._positions.saved.high_watermark - kept[-1].next_offset)
        was_torn = any(torn) or bool(removed)
        return kept, removed, RecoveryReport(False, self._batches, self._bytes, len(removed), lost, was_torn)


def _take_over_sealed(segments: list[Segment], count: int) -> None:
    """Learn the ends of the first `count` segments. Raises CopyDamagedError: one does not end where the next begins."""
    for number in range(count - 1, -1, -1):
        following = segments[number + 1].base_offset
        what = segments[number].resume_sealed(following)
        if what is not None:
            raise CopyDamagedError(f"{what}; offset {following} must follow")


def _check_epochs(epochs: Epochs, segments: list[Segment], log_start: int) -> None:
    """Make the epoch file agree with the log: cut to its ends, or made anew when the newest batch has another epoch, or
    when a power cut took the log start back behind the file."""
    log_end = segments[-1].next_offset
    epochs.cut_end(log_end)
    if log_end == segments[0].base_offset:
        return
    holder = next(segment for segment in reversed(segments) if segment.next_offset > segment.base_offset)
    newest = holder.find(holder.next_offset - 1).header
    known = epochs.starts
    if known and known[0].start_offset <= log_start and epochs.latest == newest.leader_epoch:
        return
    starts: list[EpochStart] = []
    for segment in segments:
        for header in segment.headers():
            if not starts or header.leader_epoch > starts[-1].epoch:
                starts.append(EpochStart(header.leader_epoch, header.base_offset))
    if not starts:
        raise StorageError(f"{segments[0].store.path} holds no batch that can be read")
    epochs.replace(starts)
