"""Rules that need the boards of a broker's processes, alive or dead: what its traffic looks like."""

from __future__ import annotations

from pathlib import Path

from zbroker import ids
from zbroker.doctor.findings import Finding, passed, warned
from zbroker.errors import BrokerError
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.layout import Counter

BATCHES_TO_JUDGE = 1_000
BATCH_BYTES_MIN = 1_024


def batching(batches: int, records: int, size_bytes: int) -> Finding:
    """S-194: what a produce costs is paid for each batch; with few records in it, they wait for each other."""
    if batches < BATCHES_TO_JUDGE:
        return passed("batching", f"{batches} batches so far: too few to judge")
    text = f"{records / batches:.1f} records and {size_bytes / batches:.0f} bytes a batch"
    if size_bytes / batches < BATCH_BYTES_MIN:
        return warned("batching", text, "linger_ms = 5 and a larger batch_size on the producers, or send_many")
    return passed("batching", text)


def examine_traffic(boards_dir: Path) -> list[Finding]:
    """Apply every rule of this file to the workers whose boards are there."""
    batches = records = size_bytes = 0
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
        board.close()
    return [batching(batches, records, size_bytes)]
