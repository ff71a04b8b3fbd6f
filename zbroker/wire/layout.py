"""The fixed header: the first frame of every message, on a socket and in a lane.

     0 magic "zB" | 2 version u8 | 3 kind u8 | 4 api u16 | 6 error i16 | 8 correlation u64
    16 target u32 | 20 topic_id u32 | 24 partition u32 | 28 leader_epoch i32
    32 acks i8 | 33 flags u8 | 34 zero u16 | 36 timeout_ms u32                                        little-endian

The router reads this and nothing else. A reply repeats the request's header with kind 1 and, when it failed, the
error's number; the body of a failed reply is the message as UTF-8 text. `target` is a process number (`zbroker.ids`).

Flags: PRODUCE has FLAG_FIRST and FLAG_AWAITED, WAIT has FLAG_KEEP; other bits and the zero word are ignored.

Unknown version: refused with UnsupportedVersionError, which the reply's header carries in the asker's version. Unknown
kind or api: InvalidRequestError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, Final, NamedTuple

from zbroker.errors import InvalidRequestError, UnsupportedVersionError

HEADER = struct.Struct("<2sBBHhQIIIibBHI")
HEADER_BYTES: Final = 40
CORRELATION_AT: Final = slice(8, 16)
MAGIC: Final = b"zB"
VERSION: Final = 1
REQUEST: Final = 0
REPLY: Final = 1

PRODUCED = struct.Struct("<qqq")
"""Body of a produce reply: base offset, append time in ms or -1, log start."""
WAITED = struct.Struct("<IIq")
"""One entry of a wait: topic id, partition, offset."""
PEER = struct.Struct("<III")
"""Who sent a message, as the kernel told the router: uid, gid, pid."""

FLAG_FIRST: Final = 1
FLAG_KEEP: Final = 1
FLAG_AWAITED: Final = 2
"""Of a produce request: nothing else of its producer and partition is in flight. A leader that refused a batch takes
no later one of the same producer before it sees this flag, so that a batch cannot be overtaken by the next."""

NO_PEER: Final = 0xFFFF_FFFF  # over tcp the kernel tells nothing
FRAMES_MAX: Final = 16
BODY_HEADROOM_BYTES: Final = 64 << 10

assert HEADER.size == HEADER_BYTES


class Api(IntEnum):
    """What a request asks for. A number never changes its meaning."""

    HELLO = 1
    METADATA = 2
    PRODUCE = 3
    FETCH = 4
    LIST_OFFSETS = 5
    WAIT = 6
    OPEN_LANE = 7
    DELETE_RECORDS = 8
    CREATE_TOPICS = 20
    DELETE_TOPICS = 21
    CREATE_PARTITIONS = 22
    ALTER_CONFIGS = 23
    DESCRIBE_CONFIGS = 24
    DESCRIBE_CLUSTER = 25
    ELECT_LEADERS = 26
    MOVE_COPY = 27
    DRAIN_PROCESS = 28
    INIT_PRODUCER_ID = 29
    PARTITION_STATE = 30
    REGISTER = 40
    GRANT = 41
    REVOKE = 42
    RECONFIGURE = 43
    ANNOUNCE = 44
    PROCESS_HELLO = 45
    ALTER_ISR = 46
    COPY_SUSPECT = 47
    GROUP_HEARTBEAT = 60
    GROUP_LEAVE = 61
    GROUP_ASSIGN = 62
    OFFSET_COMMIT = 63
    OFFSET_FETCH = 64
    LIST_GROUPS = 65
    DESCRIBE_GROUPS = 66
    DELETE_GROUPS = 67
    ALTER_GROUP_OFFSETS = 68
    REMOVE_GROUP_MEMBERS = 69


INNER_APIS: Final = frozenset(
    {
        Api.REGISTER,
        Api.GRANT,
        Api.REVOKE,
        Api.RECONFIGURE,
        Api.ANNOUNCE,
        Api.PROCESS_HELLO,
        Api.ALTER_ISR,
        Api.COPY_SUSPECT,
    }
)
"""What only the broker's own processes may ask."""


class Header(NamedTuple):
    """The forty bytes, decoded."""

    magic: bytes
    version: int
    kind: int
    api: int
    error: int
    correlation: int
    target: int
    topic_id: int
    partition: int
    leader_epoch: int
    acks: int
    flags: int
    zero: int
    timeout_ms: int


_unpack = HEADER.unpack_from
_unpack_begin = struct.Struct("<2sBBHhQ").unpack_from
_pack = HEADER.pack
# Not `Header._make`, which is a call in Python: every request and every reply is decoded here.
_make: Callable[[tuple[Any, ...]], Header] = partial(tuple.__new__, Header)


def pack_request(
    api: int,
    correlation: int,
    target: int,
    topic_id: int = 0,
    partition: int = 0,
    leader_epoch: int = -1,
    acks: int = 0,
    flags: int = 0,
    timeout_ms: int = 0,
) -> bytes:
    """The header of a request."""
    return _pack(
        MAGIC, VERSION, REQUEST, api, 0, correlation, target, topic_id, partition, leader_epoch, acks, flags, 0,
        timeout_ms,
    )  # fmt: skip


def pack_reply(header: Header, error: int = 0) -> bytes:
    """The header of the reply to a request."""
    return _pack(
        MAGIC, VERSION, REPLY, header.api, error, header.correlation, header.target, header.topic_id, header.partition,
        header.leader_epoch, header.acks, 0, 0, 0,
    )  # fmt: skip


def unpack_reply(frame: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(error, correlation) of the header of a reply; raises as `unpack_header`, which looks at what is not as usual."""
    if len(frame) >= HEADER_BYTES:
        magic, version, kind, _, error, correlation = _unpack_begin(frame)
        if magic == MAGIC and version == VERSION and kind == REPLY:
            return error, correlation
    header = unpack_header(frame)
    return header.error, header.correlation


def pack_version_refusal(header: bytes | memoryview, error: int) -> bytes | None:
    """The reply to a request of another version: its own first forty bytes, as a failed reply.

    All versions share the first sixteen: magic, version, kind, api, error, correlation. None for what cannot be
    answered: other bytes, or a reply.
    """
    if len(header) < HEADER_BYTES:
        return None
    asked = _make(_unpack(header))
    if asked.magic != MAGIC or asked.kind != REQUEST:
        return None
    return _pack(*asked._replace(kind=REPLY, error=error))


def unpack_header(frame: bytes | bytearray | memoryview) -> Header:
    """Decode a header. Raises InvalidRequestError for other bytes, UnsupportedVersionError for another version."""
    if len(frame) < HEADER_BYTES:
        raise InvalidRequestError(f"a header has {HEADER_BYTES} bytes, {len(frame)} came")
    header = _make(_unpack(frame))
    if header.magic != MAGIC:
        raise InvalidRequestError("not a zbroker message")
    if header.version != VERSION:
        raise UnsupportedVersionError(f"protocol version {header.version}; this side speaks {VERSION}")
    if header.kind not in (REQUEST, REPLY):
        raise InvalidRequestError(f"message kind {header.kind}")
    return header
