"""What a new leader takes over from the one before it: the tail of its log, and its last high watermark.

A leader that died had appended batches that no other copy had yet, and may have answered for them with acks=1. Its
files outlive it, so a successor on the same host reads them before it leads.

Guarantees: a batch is taken only when its CRC is sound, its offset follows ours, its epoch is not below ours and below
the new one, and only when our last batch is the same as the one before it there: the two logs have one history. At the
first batch that is not so the tail ends; nothing of it is an error. The bytes are copied as they are.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from zbroker.errors import BrokerError
from zbroker.record.batch import batches_in
from zbroker.record.layout import HEADER_BYTES, BatchHeader
from zbroker.shm.board_reader import BoardReader
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import LOG, parse_segment_name, segment_name
from zbroker.storage.scan import Scan

CHUNK_BYTES: Final = 1 << 20

_log = logging.getLogger(__name__)


def last_high_watermark(board: str, topic_id: int, partition: int, epoch_max: int) -> int:
    """The high watermark that a board, perhaps of a dead process, shows for a partition; -1: none.

    None also where it is of an epoch above `epoch_max`: it counts records of a later leader, which need not be ours.
    """
    if not board:
        return -1
    try:
        reader = BoardReader.open(Path(board))
    except (BrokerError, OSError):
        return -1
    try:
        cell = reader.partition_cell(topic_id, partition)
        view = None if cell is None else cell.view()
        return -1 if view is None or view.leader_epoch > epoch_max else view.high_watermark
    finally:
        reader.close()


def complete_tail(log: CopiedLog, directory: Path, files: Files, epoch_max: int) -> list[BatchHeader]:
    """Append what the copy in `directory` has behind our log end; give the headers of what was appended.

    Raises what appending raises; what is wrong with the other copy ends the tail.
    """
    taken: list[BatchHeader] = []
    try:
        bases = sorted(
            found[0]
            for name in files.list_directory(directory)
            if (found := parse_segment_name(name)) is not None and found[1] == LOG
        )
    except (BrokerError, FileNotFoundError):
        return taken
    while True:
        below = [base for base in bases if base <= log.log_end]
        if not below:
            break
        found_here = _take_from(log, directory, below[-1], files, epoch_max)
        taken += found_here
        if not found_here or log.log_end not in bases:
            break
    if taken:
        _log.info(
            "the tail of the leader before was taken over",
            extra={"directory": directory, "from": taken[0].base_offset, "to": log.log_end},
        )
    return taken


def _take_from(log: CopiedLog, directory: Path, base: int, files: Files, epoch_max: int) -> list[BatchHeader]:
    try:
        fd = files.open(directory / segment_name(base))
    except (BrokerError, FileNotFoundError):
        return []
    try:
        position = _place_of_our_end(log, fd, base, files)
        return [] if position is None else _take_batches(log, fd, base, position, files, epoch_max)
    finally:
        files.close(fd)


def _place_of_our_end(log: CopiedLog, fd: int, base: int, files: Files) -> int | None:
    """The position in that file where our log ends, if what lies before it is ours."""
    end = log.log_end
    if end == base:
        return 0 if _begins_after_ours(log, fd, files) else None
    if log.log_start == end:
        return None  # we have no batch to compare
    own_base, own_position = log.position_of(end - 1)
    last = log.read(end - 1, 1, end)
    if own_base == base and files.pread(fd, HEADER_BYTES, own_position) == last[:HEADER_BYTES]:
        return own_position + len(last)
    size_bytes = files.size_bytes(fd)
    for position, header in _walk(fd, files, 0, size_bytes, base, check_crc=False):
        if header.next_offset >= end:
            is_ours = files.pread(fd, HEADER_BYTES, position) == last[:HEADER_BYTES]
            return position + header.size_bytes if is_ours else None
    return None


def _begins_after_ours(log: CopiedLog, fd: int, files: Files) -> bool:
    """Whether a segment that begins at our log end may follow: its first epoch is not below our last."""
    for _, header in _walk(fd, files, 0, files.size_bytes(fd), log.log_end, check_crc=False):
        return header.leader_epoch >= log.last_epoch
    return False


def _walk(fd: int, files: Files, position: int, end: int, offset: int, *, check_crc: bool, epoch_max: int = 0) -> Scan:
    return Scan(
        lambda size_bytes, at: files.pread(fd, size_bytes, at),
        position=position,
        bytes_end=end,
        next_offset=offset,
        check_crc=check_crc,
        **({"epoch_max": epoch_max} if epoch_max else {}),
    )


def _take_batches(log: CopiedLog, fd: int, base: int, position: int, files: Files, epoch_max: int) -> list[BatchHeader]:
    taken: list[BatchHeader] = []
    run: list[BatchHeader] = []
    begin, size_bytes = position, 0

    def append() -> None:
        nonlocal begin, size_bytes
        data = files.pread(fd, size_bytes, begin)
        assert [header for _, header in batches_in(data)] == run, "a dead process's file has changed"
        if base == log.log_end != log.active_base:
            log.roll()
        log.append_copied(data, run)
        taken.extend(run)
        begin += size_bytes
        size_bytes = 0
        run.clear()

    epoch = log.last_epoch
    for _, header in _walk(fd, files, position, files.size_bytes(fd), log.log_end, check_crc=True, epoch_max=epoch_max):
        if header.leader_epoch < epoch:
            break
        epoch = header.leader_epoch
        run.append(header)
        size_bytes += header.size_bytes
        if size_bytes >= CHUNK_BYTES:
            append()
    if run:
        append()
    return taken
