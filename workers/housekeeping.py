"""What a worker does now and then for its partitions: retention, flush by time, high watermark checkpoints, disk room.

Guarantees: the work is cut into slices of `SLICE` partitions a turn, so that a thousand partitions do not hold up a
request; those for which there is nothing to do are left out before, so that idle ones cost no turns. There is one timer
for all of them. Whatever waits for a disk runs in the thread. A partition whose disk has too little room refuses
produce, and takes it again by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import StorageSection
from zbroker.core.settled_time import SettledTime
from zbroker.errors import BrokerError
from zbroker.workers.host import Host
from zbroker.workers.leader import Leader
from zbroker.workers.open_copy import Key, OpenCopy

TICK_MS: Final = 200
TIMED_TICK_MS: Final = 100  # while a partition has flush.ms
ROOM_INTERVAL_MS: Final = 400
SLICE: Final = 32

_log = logging.getLogger(__name__)


class Housekeeping:
    """See the module. It starts with the first turn of the loop."""

    def __init__(
        self,
        leaders: Mapping[Key, Leader],
        copies: Callable[[], Iterable[OpenCopy]],
        host: Host,
        settings: StorageSection,
        batch_bytes_max: int,
    ) -> None:
        """`copies()` are all open copies, `leaders` among them. `batch_bytes_max`: the largest of any topic."""
        clock = host.clock
        self._leaders = leaders
        self._copies = copies
        self._attention = host.attention
        self._loop = loop = host.loop
        self._clock = clock
        self._disk = host.disk
        self._settings = settings
        self._batch_bytes_max = batch_bytes_max
        self._settled = SettledTime()
        # The clock of the start is the one to go by, also when it jumps before the first retention.
        self._settled.now_ms(clock.wall_ms(), clock.now_ns())
        self._retention_ns = clock.now_ns()
        self._checkpoint_ns = clock.now_ns()
        self._room_ns = clock.now_ns()
        self._copied_ns = clock.now_ns()
        loop.call_at_multiple(TICK_MS, self._go_on)

    def _go_on(self) -> None:
        self.tick()
        self._loop.call_at_multiple(TIMED_TICK_MS if self._attention.timed else TICK_MS, self._go_on)

    def tick(self) -> None:
        """Do what is due."""
        now_ns = self._clock.now_ns()
        for leader in list(self._attention.timed):
            leader.tick()
        if now_ns >= self._copied_ns and self._attention.copied:
            self._copied_ns = now_ns + TICK_MS * NS_PER_MS
            self._slice(list(self._attention.copied), _tick)
        if now_ns >= self._room_ns:
            self._room_ns = now_ns + ROOM_INTERVAL_MS * NS_PER_MS
            self.check_room()
        if now_ns >= self._retention_ns:
            self._retention_ns = now_ns + self._settings.retention_check_interval_ms * NS_PER_MS
            self._slice([copy for copy in self._copies() if not copy.is_untouched], self._retain)
        if now_ns >= self._checkpoint_ns:
            self._checkpoint_ns = now_ns + self._settings.high_watermark_checkpoint_interval_ms * NS_PER_MS
            self._slice([copy for copy in self._copies() if not copy.is_settled], _save)

    def check_room(self) -> None:
        """Look at the room on the disks of all partitions: one system call for each file system, not each partition."""
        least_bytes = self._settings.disk_free_min_bytes
        on_device = {leader.device: leader for leader in self._leaders.values()}
        free_bytes = {device: leader.free_bytes() for device, leader in on_device.items()}
        short = {device for device, free in free_bytes.items() if free < least_bytes}
        # Room for the largest batch, or a disk just above the minimum refuses and takes in turn, some times a second.
        roomy = {device for device, free in free_bytes.items() if free >= least_bytes + self._batch_bytes_max}
        if short:
            for leader in self._leaders.values():
                if leader.device in short:
                    leader.lose_room()
        for leader in list(self._attention.full):
            if leader.device in roomy:
                leader.find_room()

    def _retain(self, copies: list[OpenCopy]) -> None:
        now_ns = self._clock.now_ns()
        wall_ms = self._settled.now_ms(self._clock.wall_ms(), now_ns)
        for copy in copies:
            copy.retain(wall_ms)
        logs = [copy.log for copy in copies if copy.has_files_to_unlink(now_ns)]
        if logs:
            self._disk.submit(lambda: [log.unlink_deleted(now_ns) for log in logs], self._unlinked)

    def _unlinked(self, _: object, error: BaseException | None) -> None:
        if isinstance(error, BrokerError):
            _log.warning("deleted segments stay for now", extra={"error": error})
        elif error is not None:
            raise error

    def _slice(self, copies: list[OpenCopy], work: Callable[[list[OpenCopy]], None]) -> None:
        work([copy for copy in copies[:SLICE] if copy.is_open])
        rest = copies[SLICE:]
        if rest:
            self._loop.call_after(0, lambda: self._slice(rest, work))


def _save(copies: list[OpenCopy]) -> None:
    for copy in copies:
        copy.save()


def _tick(copies: list[OpenCopy]) -> None:
    for copy in copies:
        copy.tick()
