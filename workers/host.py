"""What all partitions of a process share: its board, its clock, its thread for the disk, its counters, its streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zbroker.clock import Clock
from zbroker.errors import BrokerError
from zbroker.shm.board import BoardWriter
from zbroker.shm.layout import Counter
from zbroker.storage.files import Files
from zbroker.storage.handles import Handles
from zbroker.transport.loop import Loop
from zbroker.wire.messages import Message
from zbroker.workers.disk_thread import DiskThread, IoClock
from zbroker.workers.leaders_files import ReadBuffer
from zbroker.workers.logs import OncePerMinute
from zbroker.workers.request import Route

if TYPE_CHECKING:
    from zbroker.workers.leader import Leader
    from zbroker.workers.open_copy import OpenCopy
    from zbroker.workers.streams import Streams
    from zbroker.workers.subscriptions import Subscriptions

OnAnswer = Callable[[BrokerError | None, bytes], None]


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
    """The partitions that housekeeping must look at often: those flushed by time, those without room, those that have
    several copies. A thousand idle ones of one copy cost nothing."""

    __slots__ = ("copied", "full", "timed")

    def __init__(self) -> None:
        self.timed: set[Leader] = set()
        self.full: set[Leader] = set()
        self.copied: set[OpenCopy] = set()


class Host(NamedTuple):
    """What all partitions of a process share. `ask_coordinator(message, on_answer)` knows which api a message is."""

    number: int
    incarnation: int
    board: BoardWriter
    clock: Clock
    loop: Loop
    files: Files
    handles: Handles
    read_buffer: ReadBuffer
    disk: DiskThread
    io_clock: IoClock
    streams: Streams
    subscriptions: Subscriptions
    ask_coordinator: Callable[[Message, OnAnswer], None]
    wake: Callable[[Sequence[int]], None]
    rouse: Callable[[Collection[int], Route | None], None]
    message_max_bytes: int
    records_max: int
    lag_max_ms: int
    once: OncePerMinute
    counts: Counts
    attention: Attention
