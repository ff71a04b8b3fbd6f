"""What the leader of a partition and those that follow it say to each other, over a ROUTER and a DEALER socket.

A message is a frame of one head and `count` entries of one kind, then frames of bytes that its entries carry inline:

     0 magic "zS" | 2 version u8 | 3 kind u8 | 4 sender's process number u32 | 8 sender's incarnation u64
    16 sequence u64 | 24 count u32 | 28 zero u32                                                      little-endian

    each entry begins with a key: 0 topic id u32 | 4 partition u32 | 8 leader epoch i32 | 12 follower's copy id u32
                                 16 subscription u64: a number that the follower gave to its last SUBSCRIBE

    kind           24                                                                                 from
    SUBSCRIBE      last epoch i32 | 28 flags u32 | 32 log end i64 | 40 durable i64                    follower
    COPIED         log end i64 | 32 durable i64                                                       follower
    UNSUBSCRIBE    -                                                                                  follower
    PING           no entries: asks for PONG                                                          follower
    ACCEPTED       log start i64 | 32 high watermark i64                                              leader
    DIVERGED       epoch i32 | 28 zero u32 | 32 end offset i64                                        leader
    BEGIN_ANEW     offset i64                                                                         leader
    REJECTED       error i32 | 28 zero u32                                                            leader
    APPENDED       start offset i64 | 32 end offset i64 | 40 segment base i64 | 48 position u64       leader
                   56 size u64 | 64 high watermark i64 | 72 log start i64 | 80 flush to i64 (-1: none)
                   88 frame u32 | 92 zero u32
    PONG           no entries                                                                         leader
    RESET          no entries: messages were lost, subscribe again                                    leader

APPENDED names whole batches: `size` bytes at `position` of the leader's segment `segment base`, or those of the
message's frame `frame` (0: they are in the file). Size 0: news only. FLAG_INLINE of SUBSCRIBE asks for the bytes,
because the follower cannot open the file.

`sequence` counts the messages of a connection in each direction from 0: zmq loses what is under way when a connection
breaks, and tells nobody. A leader that misses one says RESET; a follower that misses one subscribes again. What the
entries mean stands in `core/replication_events.py` and `core/follower_events.py`.

An unknown version or kind, or a length that does not fit: InvalidRequestError, and the message is dropped; the gap in
the sequence does the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, Self

from zbroker.errors import InvalidRequestError

HEAD = struct.Struct("<2sBBIQQII")
HEAD_BYTES: Final = 32
MAGIC: Final = b"zS"
VERSION: Final = 1
KEY_BYTES: Final = 24
ENTRIES_MAX: Final = 4_096
INLINE_FRAMES_MAX: Final = 12
FLAG_INLINE: Final = 1
NO_FLUSH: Final = -1


class Kind(IntEnum):
    """What a message is. A number never changes its meaning."""

    SUBSCRIBE = 1
    COPIED = 2
    UNSUBSCRIBE = 3
    PING = 4
    ACCEPTED = 16
    DIVERGED = 17
    BEGIN_ANEW = 18
    REJECTED = 19
    APPENDED = 20
    PONG = 21
    RESET = 22


class Head(NamedTuple):
    """The first 32 bytes."""

    magic: bytes
    version: int
    kind: int
    number: int
    incarnation: int
    sequence: int
    entry_count: int
    zero: int


class Key(NamedTuple):
    """Which partition, which leader's, and whose copy of it follows."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int


class Subscribe(NamedTuple):
    """The follower wants everything from `log_end` on; its last batch is of `last_epoch` (-1: it has none)."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    last_epoch: int
    flags: int
    log_end: int
    durable: int


class Copied(NamedTuple):
    """The follower has everything before `log_end`, on its disk everything before `durable`."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    log_end: int
    durable: int


class Accepted(NamedTuple):
    """The follower's log is a beginning of the leader's."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    log_start: int
    high_watermark: int


class Diverged(NamedTuple):
    """The leader's largest epoch not above the follower's last, and where it ends."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    epoch: int
    zero: int
    end_offset: int


class BeginAnew(NamedTuple):
    """The follower drops what it has and begins at `offset`, the base of a batch."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    offset: int


class Rejected(NamedTuple):
    """An error's number in place of an answer."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    error: int
    zero: int


class Appended(NamedTuple):
    """Whole batches from `start_offset` up to `end_offset`, and where their bytes are; or news only."""

    topic_id: int
    partition: int
    leader_epoch: int
    copy_id: int
    subscription: int
    start_offset: int
    end_offset: int
    segment_base: int
    position: int
    size_bytes: int
    high_watermark: int
    log_start: int
    flush_to: int
    frame: int
    zero: int


class Layout:
    """The struct and the type of each kind's entries."""

    structs: ClassVar[dict[int, struct.Struct]] = {
        Kind.SUBSCRIBE: struct.Struct("<IIiIQiIqq"),
        Kind.COPIED: struct.Struct("<IIiIQqq"),
        Kind.UNSUBSCRIBE: struct.Struct("<IIiIQ"),
        Kind.PING: struct.Struct("<"),
        Kind.ACCEPTED: struct.Struct("<IIiIQqq"),
        Kind.DIVERGED: struct.Struct("<IIiIQiIq"),
        Kind.BEGIN_ANEW: struct.Struct("<IIiIQq"),
        Kind.REJECTED: struct.Struct("<IIiIQiI"),
        Kind.APPENDED: struct.Struct("<IIiIQqqqQQqqqII"),
        Kind.PONG: struct.Struct("<"),
        Kind.RESET: struct.Struct("<"),
    }
    types: ClassVar[dict[int, Any]] = {
        Kind.SUBSCRIBE: Subscribe,
        Kind.COPIED: Copied,
        Kind.UNSUBSCRIBE: Key,
        Kind.ACCEPTED: Accepted,
        Kind.DIVERGED: Diverged,
        Kind.BEGIN_ANEW: BeginAnew,
        Kind.REJECTED: Rejected,
        Kind.APPENDED: Appended,
    }


ENTRY_BYTES: Final = {
    Kind.SUBSCRIBE: 48,
    Kind.COPIED: 40,
    Kind.UNSUBSCRIBE: 24,
    Kind.PING: 0,
    Kind.ACCEPTED: 40,
    Kind.DIVERGED: 40,
    Kind.BEGIN_ANEW: 32,
    Kind.REJECTED: 32,
    Kind.APPENDED: 96,
    Kind.PONG: 0,
    Kind.RESET: 0,
}

assert HEAD.size == HEAD_BYTES
assert all(Layout.structs[kind].size == size_bytes for kind, size_bytes in ENTRY_BYTES.items())

Entry = Subscribe | Copied | Key | Accepted | Diverged | BeginAnew | Rejected | Appended
KIND_OF: Final[dict[type[Any], Kind]] = {entry: Kind(kind) for kind, entry in Layout.types.items()}


class Message(NamedTuple):
    """A decoded message: its head, its entries, and the frames of bytes that followed; frame 1 is `inline[0]`."""

    head: Head
    entries: list[Any]
    inline: list[bytes]

    @classmethod
    def read(cls, frames: list[bytes]) -> Self:
        """Decode a message's frames. Raises InvalidRequestError for anything that `pack` did not make."""
        if not frames or len(frames[0]) < HEAD_BYTES:
            raise InvalidRequestError("a stream message without a head")
        head = Head._make(HEAD.unpack_from(frames[0]))
        if head.magic != MAGIC or head.version != VERSION:
            raise InvalidRequestError(f"stream messages of version {VERSION} are read here, not {head[:2]}")
        layout = Layout.structs.get(head.kind)
        if layout is None:
            raise InvalidRequestError(f"a stream message of kind {head.kind}")
        if head.entry_count > ENTRIES_MAX or len(frames[0]) != HEAD_BYTES + head.entry_count * layout.size:
            raise InvalidRequestError(f"{head.entry_count} entries of kind {head.kind} in {len(frames[0])} bytes")
        entries: list[Any] = []
        if layout.size:
            make = Layout.types[head.kind]._make
            entries = [make(fields) for fields in layout.iter_unpack(memoryview(frames[0])[HEAD_BYTES:])]
        elif head.entry_count:
            raise InvalidRequestError(f"kind {head.kind} has no entries")
        return cls(head, entries, frames[1:])


def pack(kind: Kind, number: int, incarnation: int, sequence: int, entries: Iterable[Entry] = ()) -> bytes:
    """The first frame of a message: head and entries, all of this kind."""
    pack_entry = Layout.structs[kind].pack
    body = [pack_entry(*entry) for entry in entries]
    assert len(body) <= ENTRIES_MAX
    head = HEAD.pack(MAGIC, VERSION, kind, number, incarnation, sequence, len(body), 0)
    return b"".join((head, *body))
