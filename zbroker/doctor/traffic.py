"""Rules that need the boards of a broker's processes, alive or dead: what its traffic looks like."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from zbroker import ids
from zbroker.doctor.findings import Finding, passed, warned
from zbroker.errors import BrokerError
from zbroker.shm.board import READERS_GONE_NS, PartitionView
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.layout import CellState, Counter

BATCHES_TO_JUDGE = 1_000
BATCH_BYTES_MIN = 1_024
BACKLOG_RECORDS = 100_000


def batching(batches: int, records: int, size_bytes: int) -> Finding:
    """S-194: what a produce costs is paid for each batch; with few records in it, they wait for each other."""
    if batches < BATCHES_TO_JUDGE:
        return passed("batching", f"{batches} batches so far: too few to judge")
    text = f"{records / batches:.1f} records and {size_bytes / batches:.0f} bytes a batch"
    if size_bytes / batches < BATCH_BYTES_MIN:
        return warned("batching", text, "linger_ms = 5 and a larger batch_size on the producers, or send_many")
    return passed("batching", text)


def backlog(partitions: Iterable[PartitionView], now_ns: int) -> Finding:
    """S-193: records wait because those who read them are slower than those who write them.

    The reader that is furthest ahead counts, and what it has asked for last: one that works on a long list of records
    is judged by where that list began. A partition that nobody has asked about for a minute is not read, and has no
    backlog.
    """
    behind: list[tuple[int, str]] = []
    for view in partitions:
        is_read = view.readers_seen_ns > now_ns - READERS_GONE_NS
        if view.state is CellState.LEADING and view.reader_offset is not None and is_read:
            name = f"partition {view.partition} of topic {view.topic_id:08x}"
            behind.append((view.high_watermark - view.reader_offset, name))
    if not behind:
        return passed("backlog", "nobody reads")
    most, where = max(behind)
    total = sum(records for records, _ in behind)
    text = f"readers are {total} records behind in {len(behind)} partitions, {most} of them in {where}"
    if most > BACKLOG_RECORDS:
        fix = "more consumers, each with partitions of its own (zbroker topics partitions TOPIC --to N), or batches()"
        return warned("backlog", text, fix)
    return passed("backlog", text)


def examine_traffic(boards_dir: Path) -> list[Finding]:
    """Apply every rule of this file to the workers whose boards are there."""
    batches = records = size_bytes = 0
    partitions: list[PartitionView] = []
    for name, _, path in find_boards(boards_dir):
        if ids.process_number(name) in (ids.COORDINATOR, ids.ROUTER):
            continue
        try:
            board = BoardReader.open(path)
        except (FileNotFoundError, BrokerError):
            continue  # it ended, or is of another version: there is nothing to judge
        batches += board.counter(Counter.BATCHES_IN)
        records += board.counter(Counter.RECORDS_IN)
        size_bytes += board.counter(Counter.BYTES_IN)
        partitions += board.partitions()
        board.close()
    return [batching(batches, records, size_bytes), backlog(partitions, time.monotonic_ns())]
