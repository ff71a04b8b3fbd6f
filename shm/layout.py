"""Where every shared word lies: boards, partition cells, the coordinator's cells, lanes and rings.

All words are unsigned 64-bit in the host's byte order (these bytes never leave the host), 8-byte aligned. Each word has
exactly one writer, named here; the argument why its readers are safe stands above the class that writes it.

BOARD, one file `<process name>.<incarnation, 16 hex>.board` per process incarnation, never changes its size:

      byte 0             4096                                            writer
      +------------------+----------+----------+---------+
      | header, one page | cell 0   | cell 1   | ...     |     the process that the file is named after,
      +------------------+----------+----------+---------+     except `successor`

    header word  0 magic  1 version  2 kind  3 process number  4 incarnation  5 pid  6 cell count  7 cells' position
                 (constant: written before the file gets its name)
                 8 beat_ns  9 io_since_ns  10 state  11 cells used  12 ready  13..15 reserved
                16 sleep_seq (on a line of its own: ringers read it after every message)
                24 successor: the incarnation that took over; written once, by that successor, after this one's death
                32..95 counters

    partition cell, 16 words, two cache lines; a consumer's read touches the first only:
                 0 version  1 key  2 leader_epoch  3 log_start  4 log_end  5 segment_base  6 position  7 high_watermark
                 8 durable  9 last_append_ns  10 size_bytes  11 segment_count  12 state
                13 readers_next: 1 + the highest offset that a reader asked for; 0: none has asked
                14 readers_seen_ns: when one asked last  15 reserved

COORDINATOR'S BOARD: the same header with kind 2; then the wanted processes; then one 8-word cell a partition:

      byte 0       4096                    36864
      +------------+-----------------------+---------+---------+-----
      | header     | version count numbers | cell 0  | cell 1  | ...
      +------------+-----------------------+---------+---------+-----

    coordinator cell  0 version  1 key  2 leader_epoch  3 leader incarnation  4 leader's process number  5..7 reserved

LANE, a sealed memfd made by the worker:

      byte 0     4096                4096 + request_bytes
      +----------+-------------------+-------------------+
      | header   | requests          | replies           |
      +----------+-------------------+-------------------+

    header word  0 magic  1 version  2 lane number  3 request_bytes  4 reply_bytes  5 worker incarnation   (constant)
                16 requests.head (client)   32 requests.tail (worker)
                48 replies.head (worker)    64 replies.tail (client)
                80 client_sleep_seq (client)   96 client_closed (client)   112 worker_closed (worker)
                (128 bytes apart: a CPU fetches lines in pairs)

    ring message, always contiguous, every part a multiple of 8 bytes:

      0             4             8                      8 + 4n, padded to 8
      +-------------+-------------+----------------------+---------+---------+-----
      | total u32   | frames u32  | length u32 x frames  | frame 0 | frame 1 | ...
      +-------------+-------------+----------------------+---------+---------+-----

    `total` counts from its own first byte. total = PAD_MARKER: the next message begins at byte 0 of the ring.

Unknown versions: a reader refuses any version but its own with UnsupportedVersionError. Both sides of a board or lane
are started from one installation; a client of another one falls back to messages.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from zbroker.errors import StorageError, UnsupportedVersionError

WORD_BYTES: Final = 8
HEADER_BYTES: Final = 4096

BOARD_MAGIC: Final = int.from_bytes(b"zbBOARD\0", "little")
BOARD_VERSION: Final = 1
KIND_PROCESS: Final = 1
KIND_COORDINATOR: Final = 2

H_MAGIC, H_VERSION, H_KIND, H_NUMBER, H_INCARNATION, H_PID, H_CELL_COUNT, H_CELLS_POSITION = range(8)
H_BEAT_NS, H_IO_SINCE_NS, H_STATE, H_CELLS_USED, H_READY = range(8, 13)
H_SLEEP_SEQ: Final = 16
H_SUCCESSOR: Final = 24
H_COUNTERS: Final = 32
COUNTERS_MAX: Final = 64

PARTITION_CELL_WORDS: Final = 16
(
    P_VERSION,
    P_KEY,
    P_LEADER_EPOCH,
    P_LOG_START,
    P_LOG_END,
    P_SEGMENT_BASE,
    P_POSITION,
    P_HIGH_WATERMARK,
    P_DURABLE,
    P_LAST_APPEND_NS,
    P_SIZE_BYTES,
    P_SEGMENT_COUNT,
    P_STATE,
    P_READERS_NEXT,
    P_READERS_SEEN_NS,
) = range(15)

WANTED_WORDS: Final = 4096
WANTED_MAX: Final = WANTED_WORDS - 2
W_VERSION: Final = HEADER_BYTES // WORD_BYTES
W_COUNT: Final = W_VERSION + 1
W_NUMBERS: Final = W_VERSION + 2
COORDINATOR_CELLS_POSITION: Final = HEADER_BYTES + WANTED_WORDS * WORD_BYTES
COORDINATOR_CELL_WORDS: Final = 8
C_VERSION, C_KEY, C_LEADER_EPOCH, C_LEADER_INCARNATION, C_LEADER_NUMBER = range(5)
NO_LEADER: Final = (1 << 64) - 1

LANE_MAGIC: Final = int.from_bytes(b"zbLANE\0\0", "little")
LANE_VERSION: Final = 1
L_MAGIC, L_VERSION, L_NUMBER, L_REQUEST_BYTES, L_REPLY_BYTES, L_WORKER_INCARNATION = range(6)
L_REQUESTS_HEAD, L_REQUESTS_TAIL, L_REPLIES_HEAD, L_REPLIES_TAIL = 16, 32, 48, 64
L_CLIENT_SLEEP_SEQ, L_CLIENT_CLOSED, L_WORKER_CLOSED = 80, 96, 112
LANE_HEADER_BYTES: Final = HEADER_BYTES

PAD_MARKER: Final = 0xFFFF_FFFF
FRAMES_MAX: Final = 16
RING_BYTES_MIN: Final = 4096


class ProcessState(IntEnum):
    """What a process says about itself in its header."""

    STARTING = 1
    RUNNING = 2
    STOPPING = 3


class CellState(IntEnum):
    """What a partition's cell says about itself."""

    FREE = 0
    LEADING = 1
    RETIRED = 2
    FOLLOWING = 3


class Counter(IntEnum):
    """Counters of a process since its start, by their index in the header. An index never changes its meaning.

    Those named PARTITIONS_ say how many there are now.
    """

    RECORDS_IN = 0
    BYTES_IN = 1
    BATCHES_IN = 2
    REQUESTS = 3
    ERRORS = 4
    FETCHES = 5
    BYTES_OUT = 6
    WAITS = 7
    WAKES = 8
    LANES_OPENED = 9
    LANES_CLOSED = 10
    LANE_BYTES = 11
    FSYNCS = 12
    SEGMENTS_ROLLED = 13
    SEGMENTS_DELETED = 14
    MESSAGES_FORWARDED = 15
    BYTES_FORWARDED = 16
    MESSAGES_DROPPED = 17
    LOOPS = 18
    ELECTIONS = 19
    DEATHS_SEEN = 20
    PARTITIONS_OFFLINE = 21
    PARTITIONS_BEHIND = 22


assert max(Counter) < COUNTERS_MAX
assert (H_COUNTERS + COUNTERS_MAX) * WORD_BYTES <= HEADER_BYTES
assert (L_WORKER_CLOSED + 1) * WORD_BYTES <= LANE_HEADER_BYTES
assert PARTITION_CELL_WORDS * WORD_BYTES == 128
assert COORDINATOR_CELL_WORDS * WORD_BYTES == 64
assert COORDINATOR_CELLS_POSITION == 36_864
assert P_HIGH_WATERMARK < 8, "a consumer's read touches one cache line"


def cell_key(topic_id: int, partition: int) -> int:
    """The word that names a partition. Topic ids begin at 1: the key of a free cell is 0."""
    assert 0 < topic_id < 1 << 32, f"topic id {topic_id}"
    assert 0 <= partition < 1 << 32, f"partition {partition}"
    return topic_id << 32 | partition


def split_key(key: int) -> tuple[int, int]:
    """The inverse of `cell_key`: (topic id, partition)."""
    return key >> 32, key & 0xFFFF_FFFF


def check_header(words: memoryview, magic: int, version: int, what: str) -> None:
    """Raise StorageError for foreign bytes, UnsupportedVersionError for another version."""
    if words[0] != magic:
        raise StorageError(f"{what}: not a zbroker file", hint="it was not written by zbroker")
    if words[1] != version:
        raise UnsupportedVersionError(f"{what}: layout version {words[1]}, this zbroker reads {version}")
