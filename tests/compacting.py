"""Logs of keyed records, compacted in one go, and what must be left of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.storage_logs import SMALL, append_batch, batches_of
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.record.batch import stamp
from zbroker.record.columns import encode_columns
from zbroker.record.rows import encode_rows
from zbroker.record.view import RecordBatch
from zbroker.storage.compaction import Compaction, Settings, note_done, plan
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files

Pair = tuple[bytes | None, bytes | None]
Kept = tuple[int, bytes | None, bytes | None, int]
DAY_MS = 86_400_000


def config_of(**settings: Any) -> TopicConfig:
    """Settings of a compacted topic with small segments."""
    return TopicConfig(**{**SMALL, "cleanup_policy": "compact", "file_delete_delay_ms": 0, **settings})


def open_copy(directory: Path, files: Files | None = None, **settings: Any) -> CopiedLog:
    """Open it."""
    return CopiedLog.open(directory, config_of(**settings), files or Files(), ManualClock())


def append_pairs(log: CopiedLog, pairs: Sequence[Pair], *, epoch: int = 1, is_rows: bool = False, **who: Any) -> None:
    """Append keys and values as one batch."""
    times = [1_000 + log.log_end + number for number in range(len(pairs))]
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if is_rows:
        batch = encode_rows([(time, *pair, ()) for time, pair in zip(times, pairs, strict=True)], **who)
    else:
        batch = encode_columns(values, keys, timestamp_ms=0, timestamps_ms=times, **who)
    stamp(batch, log.log_end, epoch)
    append_batch(log, batch)


def records_of(log: CopiedLog) -> list[Kept]:
    """(offset, key, value, time) of every record that a reader gets."""
    found = []
    for data in batches_of(log):
        for record in RecordBatch("t", 0, memoryview(data)).records():
            found.append((record.offset, record.key, record.value, record.timestamp))
    return found


def compact(
    log: CopiedLog,
    files: Files | None = None,
    *,
    now_ms: int = 0,
    high_watermark: int | None = None,
    memory_bytes: int = 1 << 20,
    step_bytes: int = 1_000,
    is_needed: Callable[[int, int], bool] = lambda *_: False,
    **settings: Any,
) -> Compaction | None:
    """Do what is due now, and wait for its end. None: nothing is."""
    files, config = files or Files(), config_of(**{"min_cleanable_dirty_ratio": 0.0, **settings})
    upper = log.log_end if high_watermark is None else high_watermark
    todo = plan(log, files, config, high_watermark=upper, now_ms=now_ms)
    if todo is None:
        return None
    limits = Settings(config.segment_bytes, config.index_interval_bytes, memory_bytes, 0, is_needed)
    work = Compaction(todo, log.directory, files, limits)
    while not work.is_done:
        found = work.step(step_bytes)
        if found is not None:
            assert log.begin_swap(found)
            files.fsync_directory(log.directory)
            assert log.finish_swap(found)
    note_done(log, files, config, work, now_ms=now_ms)
    return work


def expected(records: Sequence[Kept], end_offset: int, *, tombstones_before: int = 0) -> list[Kept]:
    """The twin: what must be left of these records."""
    latest = {key: offset for offset, key, _, _ in records if offset < end_offset}
    return [
        one
        for one in records
        if one[0] >= end_offset
        or one[1] is None
        or (latest[one[1]] == one[0] and not (one[2] is None and one[0] < tombstones_before))
    ]


def copy_of(log: CopiedLog, target: Path) -> Path:
    """The files of an open log, as a death would leave them."""
    shutil.copytree(log.directory, target)
    return target
