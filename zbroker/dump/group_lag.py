"""How far groups are behind, from boards, slots and files alone.

It takes no lock, asks nobody and changes nothing, so it says the same with the coordinator or the whole broker dead.
Where a log ends comes from its leader's board, dead or alive (there it is the high watermark), or from the file where
no board is left.

Lag in records: the high watermark minus what was committed, or minus the log's start where a member has committed
nothing yet (one that begins at the end commits that at once). Lag in time: from the time of the first record that the
group has not committed to that of the newest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from zbroker import ids
from zbroker.config.paths import Paths
from zbroker.core.sticky import Key
from zbroker.dump.group_offsets import committed_offsets
from zbroker.errors import BrokerError
from zbroker.record.view import RecordBatch
from zbroker.shm.board import PartitionView
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.commit_layout import OPEN
from zbroker.shm.commit_slots import SlotFileReader, SlotNames, find_slot_files
from zbroker.shm.layout import CellState
from zbroker.storage.checkpoint import Positions
from zbroker.storage.files import Files
from zbroker.storage.index import OffsetIndex
from zbroker.storage.layout import INDEX, LOG, parse_segment_name, segment_name
from zbroker.storage.scan import Scan

_OFFSET_MAX: Final = 1 << 62
_RELATIVE_MAX: Final = 0xFFFFFFFF


class Owner(NamedTuple):
    """A member whose slots say that it reads a partition. Those that commit by message have none."""

    names: SlotNames
    pid: int
    is_alive: bool


class PartitionLag(NamedTuple):
    """A group in one partition. None: nobody knows; `committed` None: the group has committed nothing here."""

    topic: str
    topic_id: int
    partition: int
    committed: int | None
    log_start: int | None
    log_end: int | None
    lag: int | None
    lag_ms: int | None
    owner: Owner | None


def group_lags(
    paths: Paths, topic_names: Mapping[int, str], *, owned: Mapping[str, Iterable[Key]] | None = None
) -> dict[str, list[PartitionLag]]:
    """By group, in order of topic and partition. `topic_names`: of topics that only slots know; `owned`: what groups
    read besides. Raises OSError, CorruptRecordError for a log of offsets that is damaged."""
    offsets = committed_offsets(paths.offsets_dir, paths.groups_dir)
    owners = _owners(paths.groups_dir)
    ends = _Ends(paths)
    found: dict[str, list[PartitionLag]] = {}
    further = owned or {}
    for group_id in sorted({*offsets, *owners, *further}):
        committed, held = offsets.get(group_id, {}), owners.get(group_id, {})
        rows = []
        for key in {*committed, *held, *further.get(group_id, ())}:
            one = committed.get(key)
            topic = (one.topic if one is not None else "") or topic_names.get(key[0], "")
            offset = one.offset if one is not None and one.offset >= 0 else None
            rows.append(ends.lag(topic, key, offset, held.get(key)))
        found[group_id] = sorted(rows, key=lambda row: (row.topic, row.topic_id, row.partition))
    return found


def _owners(groups_dir: Path) -> dict[str, dict[Key, Owner]]:
    found: dict[str, dict[Key, Owner]] = {}
    for path in find_slot_files(groups_dir):
        try:
            file = SlotFileReader.open(path)
        except (FileNotFoundError, BrokerError):
            continue
        try:
            is_alive = bool(file.incarnation) and ids.is_alive(file.incarnation)
            owner = Owner(file.names, ids.pid_of(file.incarnation) if file.incarnation else 0, is_alive)
            of_group = found.setdefault(file.names.group_id, {})
            of_group.update({(one.topic_id, one.partition): owner for one in file.views() if one.closed == OPEN})
        finally:
            file.close()
    return found


class _Ends:
    """Where the logs begin and end, and what time their records have."""

    def __init__(self, paths: Paths) -> None:
        self._roots = (*paths.copies_dirs, paths.memory_dir)
        self._views = _leading(paths.boards_dir)
        self._folders: dict[str, list[Path]] = {}
        for root in self._roots:
            for folder in root.glob("*/t*-*"):
                self._folders.setdefault(folder.name, []).append(folder)

    def lag(self, topic: str, key: Key, committed: int | None, owner: Owner | None) -> PartitionLag:
        view = self._views.get(key)
        folders = self._folders.get(f"t{key[0]:08x}-{key[1]}", [])
        start: int | None
        end: int | None
        if view is not None:
            start, end = view.log_start, view.high_watermark
        else:
            bounds = [found for found in map(_bounds, folders) if found is not None]
            start, end = max(bounds, key=lambda one: one[1], default=(None, None))
        lag = lag_ms = None
        if start is not None and end is not None:
            first = start if committed is None else max(committed, start)
            lag = max(0, end - first)
            lag_ms = 0
            if lag:
                spans = (_span_ms(folder, first, end) for folder in folders)
                lag_ms = next((span_ms for span_ms in spans if span_ms is not None), None)
        return PartitionLag(topic, *key, committed, start, end, lag, lag_ms, owner)


class _Batch(NamedTuple):
    """Where a batch lies."""

    next_offset: int
    path: Path
    position: int
    size_bytes: int


def _leading(boards_dir: Path) -> dict[Key, PartitionView]:
    """Of each partition the board of the newest leader, dead or alive."""
    found: dict[Key, PartitionView] = {}
    for name, _, path in find_boards(boards_dir):
        if name == ids.process_name(ids.COORDINATOR):
            continue
        try:
            board = BoardReader.open(path)
        except (FileNotFoundError, BrokerError):
            continue
        try:
            for view in board.partitions():
                key = (view.topic_id, view.partition)
                known = found.get(key)
                if view.state is CellState.LEADING and (known is None or view.leader_epoch > known.leader_epoch):
                    found[key] = view
        finally:
            board.close()
    return found


def _segments(folder: Path) -> list[int]:
    names = (parse_segment_name(path.name) for path in folder.glob("*" + LOG))
    return sorted(name[0] for name in names if name is not None)


def _bounds(folder: Path) -> tuple[int, int] | None:
    """(log start, log end) as the files say; None for a copy that is gone, or was never written."""
    bases = _segments(folder)
    if not bases:
        return None
    end = bases[-1]
    for batch in _batches(folder, bases[-1], _OFFSET_MAX):
        end = batch.next_offset
    return max(bases[0], Positions(folder, Files()).saved.log_start), end


def _batches(folder: Path, base: int, offset: int) -> Iterator[_Batch]:
    """The batches of a segment from the index's last one at or before `offset`; from the first where it has none."""
    files = Files()
    index = OffsetIndex(folder / segment_name(base, INDEX), files)
    path = folder / segment_name(base, LOG)
    fd = files.open(path)
    try:
        size_bytes = files.size_bytes(fd)
        entry = index.lookup(min(offset - base, _RELATIVE_MAX)) if index.load(size_bytes) else None
        position = entry.position if entry is not None else 0

        def read(count: int, at: int) -> bytes:
            return files.pread(fd, count, at)

        scan = Scan(read, position=position, bytes_end=size_bytes, next_offset=None, check_crc=False)
        for at, header in scan:
            yield _Batch(header.next_offset, path, at, header.size_bytes)
    finally:
        files.close(fd)


def _time_at(folder: Path, bases: list[int], offset: int) -> int | None:
    """The time of the record at an offset, or of the next one where that was compacted away."""
    begin = max((number for number, base in enumerate(bases) if base <= offset), default=0)
    for base in bases[begin:]:
        for batch in _batches(folder, base, offset):
            if batch.next_offset > offset:
                with batch.path.open("rb") as file:
                    file.seek(batch.position)
                    data = file.read(batch.size_bytes)
                records = RecordBatch(folder.name, 0, memoryview(data)).records_from(offset)
                if records:
                    return records[0].timestamp
    return None


def _span_ms(folder: Path, first: int, end: int) -> int | None:
    """From the time of record `first` to that of the last one before `end`; None where this copy does not have them."""
    try:
        bases = _segments(folder)
        oldest, newest = _time_at(folder, bases, first), _time_at(folder, bases, end - 1)
    except (OSError, BrokerError):
        return None  # deleted meanwhile, or damaged: another copy may have it
    return None if oldest is None or newest is None else max(0, newest - oldest)
