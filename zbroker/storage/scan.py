"""Walk over the batches of a .log file, trusting nothing.

Guarantees: a batch is given only when its magic, lengths, counts, offset and epoch agree with what lies before it, and
its CRC with its bytes where `check_crc` is set. The walk ends at the first place that is not such a batch, and says
whether zeros begin there (the logical end) or something else (`damage`). Memory is bounded by a window and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from zbroker.record.batch import crc_matches, read_header
from zbroker.record.layout import HEADER_BYTES, LOG_OVERHEAD, MAGIC_COLUMNS, MAGIC_ROWS, BatchHeader
from zbroker.storage.layout import BATCH_BYTES_MAX

WALK_WINDOW_BYTES: Final = 8 << 10
CHECK_WINDOW_BYTES: Final = 1 << 20
EPOCH_MAX: Final = (1 << 31) - 1
_NO_HEADER: Final = bytes(HEADER_BYTES)

Read = Callable[[int, int], bytes]  # (size_bytes, position): fewer bytes only at the end of the file


class Scan:
    """Iterate once: (position, header) of each sound batch. Then read `position`, `next_offset` and `damage`.

    `next_offset` is the offset that must come first; None takes any. Leader epochs never fall, and no batch
    has one above `epoch_max`. `bytes_end` is where the file, or the part looked at, ends.
    """

    def __init__(
        self,
        read: Read,
        *,
        position: int,
        bytes_end: int,
        next_offset: int | None,
        check_crc: bool,
        epoch_max: int = EPOCH_MAX,
    ) -> None:
        self.position = position
        self.next_offset = next_offset
        self.damage: str | None = None
        self._read = read
        self._bytes_end = bytes_end
        self._check_crc = check_crc
        self._epoch_min = -1
        self._epoch_max = epoch_max

    def __iter__(self) -> Iterator[tuple[int, BatchHeader]]:
        window_bytes = CHECK_WINDOW_BYTES if self._check_crc else WALK_WINDOW_BYTES
        window, window_at = b"", self.position
        while True:
            left = self._bytes_end - self.position
            if left < HEADER_BYTES:
                tail = self._read(left, self.position) if left > 0 else b""
                self.damage = "a part of a batch header" if any(tail) else None
                return
            at = self.position - window_at
            if at < 0 or at + HEADER_BYTES > len(window):
                window, window_at, at = self._read(min(window_bytes, left), self.position), self.position, 0
                if len(window) < HEADER_BYTES:
                    self.damage = "the file ends inside a batch header" if any(window) else None
                    return
            if window.startswith(_NO_HEADER, at):
                return
            header = read_header(window, at)
            self.damage = self._contradiction(header, left)
            if self.damage is None and self._check_crc:
                size_bytes = header.size_bytes
                if at + size_bytes > len(window):
                    window = self._read(min(max(window_bytes, size_bytes), left), self.position)
                    window_at, at = self.position, 0
                if len(window) - at < size_bytes or not crc_matches(window, at, header):
                    self.damage = "the CRC does not match"
            if self.damage is not None:
                return
            yield self.position, header
            self.position += header.size_bytes
            self.next_offset = header.next_offset
            self._epoch_min = header.leader_epoch

    def _contradiction(self, header: BatchHeader, left: int) -> str | None:
        if header.magic not in (MAGIC_COLUMNS, MAGIC_ROWS):
            return f"batch magic {header.magic}"
        if not HEADER_BYTES - LOG_OVERHEAD <= header.batch_length <= BATCH_BYTES_MAX:
            return f"a batch length of {header.batch_length}"
        if header.size_bytes > left:
            return f"a batch of {header.size_bytes} bytes where {left} are left"
        if not header.has_sound_counts:
            return f"{header.record_count} records, but the last offset is {header.last_offset_delta}"
        if self.next_offset is not None and header.base_offset != self.next_offset:
            return f"offset {header.base_offset} where {self.next_offset} must come"
        if header.base_offset < 0:
            return f"offset {header.base_offset}"
        if not self._epoch_min <= header.leader_epoch <= self._epoch_max:
            return f"leader epoch {header.leader_epoch}, outside {self._epoch_min} to {self._epoch_max}"
        return None
