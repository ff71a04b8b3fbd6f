"""Reading what was written long ago again, slowly, to find damage while another copy can still replace it.

Guarantees: every sealed segment below the high watermark of every open copy is read once in `scrub_interval_ms`, as far
as `scrub_bytes_per_s` allows, and every batch is checked as at a start: CRC, lengths, offsets, epochs. It reads in the
disk's thread, through a descriptor of its own. A segment that was cut, compacted or
deleted meanwhile is not taken for damage.

What is done about damage is the copy's business (`found_damage`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import StorageSection
from zbroker.errors import BrokerError, CopyDamagedError
from zbroker.storage.copied_log import Sealed
from zbroker.storage.files import Files
from zbroker.storage.scan import Scan
from zbroker.workers.host import Host
from zbroker.workers.open_copy import Key, OpenCopy

TICK_MS: Final = 200

_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    """A part of a segment to read: `next_offset` is the first offset at `position`."""

    segment: Sealed
    position: int
    next_offset: int


class Scrubber:
    """See the module. It starts with the first turn of the loop; nothing is read when `scrub_bytes_per_s` is 0."""

    def __init__(
        self,
        copies: Callable[[], Iterable[OpenCopy]],
        copy_of: Callable[[Key], OpenCopy | None],
        host: Host,
        settings: StorageSection,
    ) -> None:
        self._copies = copies
        self._copy_of = copy_of
        self._host = host
        self._bytes_a_tick = settings.scrub_bytes_per_s * TICK_MS // 1_000
        self._interval_ns = settings.scrub_interval_ms * NS_PER_MS
        self._begin_ns = host.clock.now_ns() + self._interval_ns
        self._waiting: deque[tuple[Key, int]] = deque()  # (partition, base offset of a segment)
        self._part: tuple[Key, _Part] | None = None
        self._version = (0, 0)  # of the files of which a part was read
        self._is_reading = False
        self.bytes_read = 0
        if self._bytes_a_tick:
            host.loop.call_every(TICK_MS, self.tick)

    def tick(self) -> None:
        """Read the next part, unless the last one is still being read."""
        if self._is_reading:
            return
        if self._part is None and not self._waiting:
            now_ns = self._host.clock.now_ns()
            if now_ns < self._begin_ns:
                return
            self._begin_ns = now_ns + self._interval_ns
            self._waiting.extend((copy.key, one.base_offset) for copy in self._copies() for one in _checkable(copy))
        while self._part is None and self._waiting:
            key, base_offset = self._waiting.popleft()
            copy = self._copy_of(key)
            for one in _checkable(copy) if copy is not None else ():
                if one.base_offset == base_offset:
                    self._part = (key, _Part(one, 0, base_offset))
        if self._part is not None:
            self._read(*self._part)

    def _read(self, key: Key, part: _Part) -> None:
        copy = self._copy_of(key)
        if copy is None or (part.position and copy.log.files_version != self._version):
            self._part = None
            return
        version = copy.log.files_version
        files, bytes_max = self._host.files, self._bytes_a_tick

        def done(found: tuple[_Part | None, str | None] | None, error: BaseException | None) -> None:
            self._is_reading = False
            self._part = None
            if isinstance(error, BrokerError):
                _log.warning("a segment could not be read again", extra={"error": error})
                return
            if error is not None:
                raise error
            if found is None or not copy.is_open or copy.log.files_version != version:
                return
            rest, damage = found
            if damage is not None:
                copy.found_damage(CopyDamagedError(f"{part.segment.path}: {damage}"))
            elif rest is not None:
                self.bytes_read += rest.position - part.position
                self._part, self._version = (key, rest), version

        self._is_reading = True
        self._host.disk.submit(lambda: check_part(part, bytes_max, files), done)


def _checkable(copy: OpenCopy) -> list[Sealed]:
    return [one for one in copy.log.sealed() if one.next_offset <= copy.high_watermark] if copy.is_whole else []


def check_part(part: _Part, bytes_max: int, files: Files) -> tuple[_Part | None, str | None] | None:
    """(what is left of the segment, what is wrong with it), after so many bytes; None: it is gone. Any thread."""
    segment = part.segment
    try:
        fd = files.open(segment.path)
    except FileNotFoundError:
        return None
    try:
        scan = Scan(
            lambda size_bytes, position: files.pread(fd, size_bytes, position),
            position=part.position,
            bytes_end=segment.size_bytes,
            next_offset=part.next_offset,
            check_crc=True,
        )
        for position, header in scan:
            end = position + header.size_bytes
            if end - part.position >= bytes_max and end < segment.size_bytes:
                return part._replace(position=end, next_offset=header.next_offset), None
        if scan.damage is not None:
            return None, f"position {scan.position}: {scan.damage}"
        if scan.next_offset != segment.next_offset:
            return None, f"position {scan.position}: ends at offset {scan.next_offset}, not {segment.next_offset}"
        return None, None
    finally:
        files.close(fd)
