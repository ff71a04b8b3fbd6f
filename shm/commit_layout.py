"""Where every word of a member's commits lies.

SLOT FILE, `<coordinator's incarnation, 16 hex>-<number>.slots` in the groups' directory beside the boards; made by the
coordinator for one member (one consumer, from joining to leaving), mapped by that member, never another's and never of
another size. Words as in `layout.py`: 64 bits, the host's byte order, one writer each.

      byte 0        4096                      member_position                    writer of the words
      +-------------+-------------------------+---------------------------+
      | header      | grant 0 | grant 1 | ... | slot 0 | slot 1 | ...     |
      +-------------+-------------------------+---------------------------+

    header word  0 magic  1 version  2 slot count  3 member_position  4 incarnation of the member's process, 0: not
                 known  5 file number  6 bytes of the names  7 closed_by                         (constant)
                 8 member_epoch  9 session_timeout_ms  10 max_poll_interval_ms  11 state         coordinator
                12 away_since_ns  13 slots used                                                  coordinator
                32 polled_ns: when the application asked for records last, monotonic clock       member
         byte 512    group id, member id, instance id, client id, UTF-8, a zero byte between     (constant)

    grant, 4 words       0 key (topic id << 32 | partition), 0: never granted  1 closed  2 start  3 granted_epoch
                                                                                                 coordinator
    slot, 2 words        0 committed  1 position                                                 member

    `committed` is the offset minus 1, which is that of the record before it; modulo 2^64, and 2^64 - 2, with which a
    file is made: nothing was stored. `position` and `start` are offsets plus 1; 0: nothing was stored. `start` is what
    the group had committed when the partition was granted. `closed`: 0 the member may commit, 1 it may not any more, 2
    what it had committed is in the log of offsets. `closed_by`: 1 whoever closes a slot makes all processes pass a
    barrier, 0 not.

A slot is given out once: for the next partition, or the same one again, the next slot is used, and when a file has no
more, a further file. So a late store never lands in somebody else's commits.

Unknown versions: refused with UnsupportedVersionError; such a member commits by message.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from zbroker.shm.layout import HEADER_BYTES, WORD_BYTES

SLOTS_MAGIC: Final = int.from_bytes(b"zbSLOTS\0", "little")
SLOTS_VERSION: Final = 3

(
    S_MAGIC,
    S_VERSION,
    S_SLOT_COUNT,
    S_MEMBER_POSITION,
    S_INCARNATION,
    S_FILE,
    S_NAMES_BYTES,
    S_CLOSED_BY,
) = range(8)
S_MEMBER_EPOCH, S_SESSION_TIMEOUT_MS, S_MAX_POLL_INTERVAL_MS, S_STATE, S_AWAY_SINCE_NS, S_SLOTS_USED = range(8, 14)
S_POLLED_NS: Final = 32
NAMES_POSITION: Final = 512
NAMES_BYTES_MAX: Final = HEADER_BYTES - NAMES_POSITION

GRANT_WORDS: Final = 4
G_KEY, G_CLOSED, G_START, G_GRANTED_EPOCH = range(4)
SLOT_WORDS: Final = 2
M_COMMITTED, M_POSITION = range(2)
NOTHING_COMMITTED: Final = (1 << 64) - 2

BY_FENCE: Final = 0
BY_BARRIER: Final = 1

OPEN: Final = 0
CLOSED: Final = 1
FOLDED: Final = 2

SLOTS_MIN: Final = 64
SLOTS_MAX: Final = 1 << 20


_WORD_MAX: Final = (1 << 64) - 1


def committed_word(offset: int) -> int:
    """What `committed` is for an offset. For the place behind a record it is the record's own offset: a commit of that
    has nothing to compute."""
    return offset - 1 & _WORD_MAX


def committed_offset(word: int) -> int:
    """The offset that `committed` says; -1: none."""
    return (word + 2 & _WORD_MAX) - 1


class MemberState(IntEnum):
    """What the coordinator says of a member in its file."""

    HERE = 1
    AWAY = 2  # a static member that may come back
    GONE = 3


def member_position(slot_count: int) -> int:
    """Where the member's slots begin: a page of their own, so that the two writers share no cache line."""
    end = HEADER_BYTES + slot_count * GRANT_WORDS * WORD_BYTES
    return -(-end // HEADER_BYTES) * HEADER_BYTES


def file_bytes(slot_count: int) -> int:
    """The size of a file with so many slots."""
    return member_position(slot_count) + slot_count * SLOT_WORDS * WORD_BYTES


assert S_POLLED_NS * WORD_BYTES % 128 == 0, "the member's word lies on a line of its own"
assert (S_POLLED_NS + 1) * WORD_BYTES <= NAMES_POSITION
assert GRANT_WORDS * WORD_BYTES == 32
assert SLOT_WORDS * WORD_BYTES == 16
assert file_bytes(SLOTS_MIN) == 9216
assert committed_offset(NOTHING_COMMITTED) == -1
