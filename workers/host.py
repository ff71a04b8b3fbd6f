"""What all partitions of a process share: its board, its clock, its thread for the disk, its counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zbroker.clock import Clock
from zbroker.shm.board import BoardWriter
from zbroker.shm.layout import Counter
from zbroker.workers.disk_thread import DiskThread
from zbroker.workers.logs import OncePerMinute

if TYPE_CHECKING:
    from zbroker.workers.leader import Leader


class Counts:
    """What the hot path counts, in plain numbers: the board gets them once a turn of the loop."""

    __slots__ = ("batches_in", "bytes_in", "records_in", "requests")

    def __init__(self) -> None:
        self.records_in = self.bytes_in = self.batches_in = self.requests = 0

    def publish(self, board: BoardWriter) -> None:
        """Write them on the board."""
        board.set_counter(Counter.RECORDS_IN, self.records_in)
        board.set_counter(Counter.BYTES_IN, self.bytes_in)
        board.set_counter(Counter.BATCHES_IN, self.batches_in)
        board.set_counter(Counter.REQUESTS, self.requests)


class Attention:
    """The few partitions that housekeeping must look at often; a thousand idle ones cost nothing."""

    __slots__ = ("full", "timed")

    def __init__(self) -> None:
        self.timed: set[Leader] = set()
        self.full: set[Leader] = set()


class Host(NamedTuple):
    """What all partitions of a process share."""

    board: BoardWriter
    clock: Clock
    disk: DiskThread
    wake: Callable[[Sequence[int]], None]
    message_max_bytes: int
    records_max: int
    once: OncePerMinute
    counts: Counts
    attention: Attention
