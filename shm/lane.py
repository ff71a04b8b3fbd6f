"""A lane: two byte rings in one sealed memfd, by which one client and one worker exchange messages.

WHY THE RING IS SAFE. It has two words, each with one writer: `head` (bytes ever written, stored by the writer) and
`tail` (bytes ever read, stored by the reader); both only grow. The writer fills bytes [head, head + n) and then stores
head + n; x86 keeps two stores in order, so a reader that sees the new head sees the bytes. The reader makes its private
copy and then stores the tail; the writer never touches bytes at or above tail + capacity, so what the reader is
copying is not overwritten. A stale head makes the reader see a message later; a stale tail makes the writer see less
room than there is: both are safe. Each side keeps its own word in a variable and never reads it back.

THE OTHER SIDE IS NOT TRUSTED. Its bytes may change at any time, also while they are read. The reader takes a length
once, into its own variable, checks it against its own bounds, copies the message, and believes the copy alone
(`take`). Words of the other side are checked each time they are loaded. Whatever contradicts itself raises
InvalidRequestError, after which the lane must be closed; nothing outside the two rings can be reached through it.

A message is contiguous, so the largest is half the ring (`message_bytes_max`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final

from zbroker.errors import DiskFullError, InvalidRequestError, LaneRefusedError, MessageSizeTooLargeError
from zbroker.shm import layout, region
from zbroker.shm.fence import WEAK_ORDER, fence

_SMALL_MESSAGE_BYTES: Final = 4096  # Below this one join and one store beat a store for each frame.
_PADS: Final = tuple(b"\0" * (-length & 7) for length in range(8))  # By the low bits of the length they complete.
_LOW: Final = 0xFFFF_FFFF
# By the number of frames: total, frames, each length, and padding to 8 where that number is odd.
_HEADERS: Final = tuple(struct.Struct(f"<{2 + n}I{4 * (n & 1)}x") for n in range(layout.FRAMES_MAX + 1))
_HEADER_BYTES: Final = tuple(header.size for header in _HEADERS)
assert all(size % 8 == 0 for size in _HEADER_BYTES)
_PAIR_HEADER_BYTES: Final = _HEADER_BYTES[2]

Frame = bytes | bytearray | memoryview


class Ring:
    """One direction of a lane. One process calls `try_write`; the other `readable`, `take`, or `peek` and `consume`."""

    __slots__ = (
        "_base",
        "_bytes",
        "_capacity",
        "_head",
        "_head_index",
        "_is_writer",
        "_next_tail",
        "_tail",
        "_tail_index",
        "_u64",
        "message_bytes_max",
    )

    def __init__(
        self, area: region.Region, base: int, capacity: int, words: tuple[int, int], *, is_writer: bool
    ) -> None:
        assert capacity >= layout.RING_BYTES_MIN, f"a ring of {capacity} bytes"
        assert capacity % 8 == base % 8 == 0
        assert base + capacity <= area.size_bytes
        self._u64 = area.u64
        self._bytes = area.bytes
        self._base = base
        self._capacity = capacity
        self._head_index, self._tail_index = words
        self._is_writer = is_writer
        self._head = self._u64[self._head_index]
        self._tail = self._u64[self._tail_index]
        self._next_tail = self._tail
        self.message_bytes_max = capacity // 2

    def fits(self, frame_bytes: int, frame_count: int) -> bool:
        """Whether a message of so many bytes in so many frames can ever be written to this ring."""
        return _HEADER_BYTES[frame_count] + frame_bytes + 7 * frame_count <= self.message_bytes_max

    def try_write(self, frames: Sequence[Frame]) -> bool:
        """Append one message of byte frames. Returns False, with nothing written, while the ring has no room for it.

        Raises MessageSizeTooLargeError for a message that never fits. The caller rings the reader's bell afterwards.
        """
        assert self._is_writer, "only the writer's side writes"
        count = len(frames)
        if count > layout.FRAMES_MAX:
            raise MessageSizeTooLargeError(f"{count} frames, at most {layout.FRAMES_MAX} fit into a message")
        lengths = tuple(map(len, frames))
        if count == 2:
            # The shape of nearly every message: a header and a body.
            total = _PAIR_HEADER_BYTES + (lengths[0] + 7 & -8) + (lengths[1] + 7 & -8)
        else:
            total = _HEADER_BYTES[count] + sum([length + 7 & -8 for length in lengths])
        if total > self.message_bytes_max:
            raise MessageSizeTooLargeError(f"a message of {total} bytes; this lane takes {self.message_bytes_max}")
        head, capacity = self._head, self._capacity
        place = head % capacity
        skip = capacity - place if place + total > capacity else 0
        if head + skip + total - self._tail > capacity and not self._has_room(skip + total):
            return False
        at = self._base + place
        if skip:
            self._u64[at >> 3] = layout.PAD_MARKER
            at = self._base
        parts: list[Frame] = [_HEADERS[count].pack(total, count, *lengths)]
        if count == 2:
            parts += (frames[0], _PADS[lengths[0] & 7], frames[1], _PADS[lengths[1] & 7])
        else:
            for frame, length in zip(frames, lengths, strict=True):
                parts += (frame, _PADS[length & 7])
        if total <= _SMALL_MESSAGE_BYTES:
            self._bytes[at : at + total] = b"".join(parts)
        else:
            for part in parts:
                self._bytes[at : at + len(part)] = part
                at += len(part)
        if WEAK_ORDER:
            fence()
        self._head = head = head + skip + total
        self._u64[self._head_index] = head
        return True

    def _has_room(self, needed: int) -> bool:
        tail = self._u64[self._tail_index]
        if not self._tail <= tail <= self._head or tail & 7:
            raise InvalidRequestError(f"the reader of the ring stored tail {tail}; it was {self._tail} of {self._head}")
        self._tail = tail
        return self._head + needed - tail <= self._capacity

    def readable(self) -> bool:
        """Whether a message waits: one load."""
        return bool(self._u64[self._head_index] != self._tail)

    @property
    def used_bytes(self) -> int:
        """Bytes written and not yet consumed, as this side sees them."""
        return int(self._u64[self._head_index] - self._u64[self._tail_index])

    def take(self) -> list[memoryview] | None:
        """Copy the next message into private memory, consume it, and return its frames; None when there is none.

        The frames are writable views of one bytearray that nobody else has: they can be checked, patched and kept.
        """
        found = self._next_message()
        if found is None:
            return None
        at, end, lengths = found
        copy = memoryview(bytearray(self._bytes[at:end]))
        if len(lengths) == 2:
            first, start = lengths[0], lengths[0] + 7 & -8
            frames = [copy[:first], copy[start : start + lengths[1]]]
        else:
            frames = _cut(copy, 0, lengths)
        if WEAK_ORDER:
            fence()
        self._tail = self._u64[self._tail_index] = self._next_tail
        return frames

    def peek(self) -> list[memoryview] | None:
        """The frames of the next message as views of shared memory, or None. `consume` frees its room.

        The bytes may still be changed by the other side: copy what is to be believed, and check the copy. Drop the
        views before the lane is closed.
        """
        found = self._next_message()
        return None if found is None else _cut(self._bytes, found[0], found[2])

    def consume(self) -> None:
        """Give back the room of the message that `peek` showed. Its views must not be used afterwards."""
        assert self._next_tail != self._tail, "consume() without a message"
        if WEAK_ORDER:
            fence()
        self._tail = tail = self._next_tail
        self._u64[self._tail_index] = tail

    def _next_message(self) -> tuple[int, int, Sequence[int]] | None:
        """(first frame's place in the region, end, lengths), all checked against the ring's bounds; None without one.

        Every number is loaded once: what is checked here is what is used later.
        """
        assert not self._is_writer, "only the reader's side reads"
        tail = self._tail
        head = self._u64[self._head_index]
        if head == tail:
            return None
        if not tail < head <= tail + self._capacity or head & 7:
            raise InvalidRequestError(f"the writer of the ring stored head {head}; {tail} bytes are read")
        if WEAK_ORDER:
            fence()
        place = tail % self._capacity
        at = self._base + place
        word = self._u64[at >> 3]
        if word & _LOW == layout.PAD_MARKER:
            tail += self._capacity - place
            if tail >= head or place == 0:
                raise InvalidRequestError("the ring's writer stored a pad marker and nothing after it")
            place, at = 0, self._base
            word = self._u64[at >> 3]
        total, count = word & _LOW, word >> 32
        if count > layout.FRAMES_MAX:
            raise InvalidRequestError(f"a ring message of {count} frames")
        header_bytes = _HEADER_BYTES[count]
        if total & 7 or not header_bytes <= total <= head - tail or place + total > self._capacity:
            raise InvalidRequestError(f"a ring message of {total} bytes where {head - tail} are readable")
        if count == 2:
            word = self._u64[(at >> 3) + 1]
            first, second = word & _LOW, word >> 32
            lengths: Sequence[int] = (first, second)
            needed = header_bytes + (first + 7 & ~7) + (second + 7 & ~7)
        else:
            lengths = _HEADERS[count].unpack(self._bytes[at : at + header_bytes])[2:]
            needed = header_bytes + sum([length + 7 & ~7 for length in lengths])
        if needed != total:
            raise InvalidRequestError(f"a ring message of {total} bytes whose frames make {needed}")
        self._next_tail = tail + total
        return at + header_bytes, at + total, lengths


def _cut(view: memoryview, at: int, lengths: Sequence[int]) -> list[memoryview]:
    frames = []
    for length in lengths:
        frames.append(view[at : at + length])
        at += length + 7 & ~7
    return frames


def ring_bytes_for(message_bytes: int) -> int:
    """The size of a ring that takes messages of so many bytes, headers included: whole pages."""
    needed = 2 * (message_bytes + _HEADER_BYTES[layout.FRAMES_MAX] + 8 * layout.FRAMES_MAX)
    return max(layout.RING_BYTES_MIN, -(-needed // region.PAGE_BYTES) * region.PAGE_BYTES)


class Lane:
    """A pair of rings. The worker makes it (`create`), the client maps the descriptor it is handed (`attach`)."""

    __slots__ = ("_is_worker", "_region", "fd", "number", "replies", "requests", "size_bytes", "worker_incarnation")

    def __init__(self, area: region.Region, fd: int, *, is_worker: bool) -> None:
        words = area.u64
        self._region = area
        self._is_worker = is_worker
        self.fd = fd
        self.number: int = words[layout.L_NUMBER]
        self.worker_incarnation: int = words[layout.L_WORKER_INCARNATION]
        self.size_bytes = area.size_bytes
        request_bytes, reply_bytes = words[layout.L_REQUEST_BYTES], words[layout.L_REPLY_BYTES]
        start = layout.LANE_HEADER_BYTES
        requests_words = (layout.L_REQUESTS_HEAD, layout.L_REQUESTS_TAIL)
        replies_words = (layout.L_REPLIES_HEAD, layout.L_REPLIES_TAIL)
        self.requests = Ring(area, start, request_bytes, requests_words, is_writer=not is_worker)
        self.replies = Ring(area, start + request_bytes, reply_bytes, replies_words, is_writer=is_worker)

    @classmethod
    def create(cls, number: int, worker_incarnation: int, request_bytes: int, reply_bytes: int) -> Lane:
        """Make a lane of zeros. The sizes are those of the rings, whole pages. Raises LaneRefusedError without memory.

        `fd` is for `handover`, which closes it once the client has it; the mapping stays until `close`.
        """
        for size_bytes in (request_bytes, reply_bytes):
            assert size_bytes >= layout.RING_BYTES_MIN, size_bytes
            assert size_bytes % region.PAGE_BYTES == 0, size_bytes
        try:
            area, fd = region.create_memfd("zbroker-lane", layout.LANE_HEADER_BYTES + request_bytes + reply_bytes)
        except DiskFullError as error:
            raise LaneRefusedError(error.message) from error
        constants = (layout.LANE_MAGIC, layout.LANE_VERSION, number, request_bytes, reply_bytes, worker_incarnation)
        for index, value in enumerate(constants):
            area.u64[index] = value
        return cls(area, fd, is_worker=True)

    @classmethod
    def attach(cls, fd: int) -> Lane:
        """Map a lane that was handed over, and close `fd`. Raises InvalidRequestError or UnsupportedVersionError."""
        try:
            area = region.attach_memfd(fd)
        finally:
            os.close(fd)
        try:
            layout.check_header(area.u64, layout.LANE_MAGIC, layout.LANE_VERSION, "lane")
            sizes = area.u64[layout.L_REQUEST_BYTES], area.u64[layout.L_REPLY_BYTES]
            if min(sizes) < layout.RING_BYTES_MIN or layout.LANE_HEADER_BYTES + sum(sizes) != area.size_bytes:
                raise InvalidRequestError(f"a lane of {area.size_bytes} bytes with rings of {sizes}")
            return cls(area, -1, is_worker=False)
        except BaseException:
            area.close()
            raise

    @property
    def words(self) -> memoryview:
        """The words of the header, for a Sleeper or a Bell on `layout.L_CLIENT_SLEEP_SEQ`."""
        return self._region.u64

    @property
    def is_closed_by_peer(self) -> bool:
        """Whether the other side has said that it uses the lane no more. What it wrote before can still be read."""
        index = layout.L_CLIENT_CLOSED if self._is_worker else layout.L_WORKER_CLOSED
        return bool(self._region.u64[index])

    def close_fd(self) -> None:
        """Close the descriptor after it was handed over; the mapping stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Say so to the other side and unmap. The memory is gone when both sides have, or have died."""
        index = layout.L_WORKER_CLOSED if self._is_worker else layout.L_CLIENT_CLOSED
        self._region.u64[index] = 1
        self.close_fd()
        self._region.close()
