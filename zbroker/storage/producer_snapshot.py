"""What a log says of producers, saved now and then so that a start need not walk the whole log for it.

Guarantees: what is read belongs to this log, up to an offset that the log still has; a file that is missing, damaged,
or of a history that was cut is as if it were not there, and removed. It is a hint: the headers of the log say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from zbroker.record.layout import BatchHeader
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import PRODUCERS, SNAPSHOT_BYTES_MAX, KnownProducer, pack_snapshot, unpack_snapshot


def load(log: CopiedLog, files: Files) -> tuple[list[KnownProducer], Iterator[BatchHeader]]:
    """What the snapshot says, and the headers of the batches that come after it."""
    path = log.directory / PRODUCERS
    data = files.read_file(path, SNAPSHOT_BYTES_MAX)
    found = None if data is None else unpack_snapshot(data)
    if found is not None and found[0] <= log.log_end:
        return found[1], log.headers_from(found[0])
    if data is not None:
        files.unlink(path)
    return [], log.headers_from(log.log_start)


def save(directory: Path, files: Files, offset: int, producers: Sequence[KnownProducer]) -> None:
    """Keep what batches below `offset` say. Raises DiskFullError, StorageError; the older file then stays, and is
    true."""
    files.replace_file(directory / PRODUCERS, pack_snapshot(offset, producers), durable=False)
