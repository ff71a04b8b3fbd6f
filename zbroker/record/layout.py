"""Where every byte of a record batch lies.

The header is Kafka's RecordBatch v2 (KIP-98, `DefaultRecordBatch`), big-endian, 61 bytes. The CRC covers everything
after its own field; `base_offset` and `leader_epoch` lie before it, so a broker stamps them without touching it.

     0 base_offset i64 | 8 batch_length i32 | 12 leader_epoch i32 | 16 magic i8 | 17 crc u32 | 21 attributes i16
    23 last_offset_delta i32 | 27 base_timestamp i64 | 35 max_timestamp i64 | 43 producer_id i64 | 51 producer_epoch i16
    53 base_sequence i32 | 57 record_count i32 | 61 ...

    batch_length counts from byte 12.      attributes: bits 0-2 compression (0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd),
    crc is CRC-32C.                        3 timestamp type (1: LogAppendTime), 4 transactional, 5 control,
                                           7 compacted (below).

MAGIC 2: Kafka's rows follow at byte 61 (`rows.py`); compressed, the codec's bytes stand there in place of the rows.

MAGIC 67: columns, little-endian; the whole batch is a multiple of 8 bytes, so that arrays stay aligned in a file.

    61 column flags u8 | 62 zero u16 | 64 body

    flags: 1 keys  2 null values  4 null keys  8 timestamps  16 headers; every other bit is 0

    body, n = record_count; each array begins at a multiple of 8 from byte 64, zeros fill the gap before the next:

      value_ends    u32[n]   end of each value in the value blob; the first begins at 0; never descending
      key_ends      u32[n]   the same for the key blob; only with flag 1
      value_nulls   ceil(n/8) bytes, bit i%8 (1 << i%8) of byte i/8 set: value i is null; only with flag 2
      key_nulls     the same for keys; only with flag 4
      timestamps    i64[n]   milliseconds since 1970; only with flag 8
      header_ends   u32[n]   end of each record's headers in the header blob; only with flag 16
      deltas        u32[n]   offset of each record less base_offset, ascending; only with attribute bit 7
      value blob, key blob, header blob: each as long as its last end says, no gap between; zeros to a multiple of 8

    A null has length 0 in its blob. Without flag 1 every key is null. Without flag 8 every record's time is
    base_timestamp; with attribute bit 3 every record's time is max_timestamp, whatever flag 8 says. Record i has offset
    base_offset + i; last_offset_delta is n - 1. Without flag 16 no record has headers.

    Attribute bit 7: compaction took records away. Record i has offset base_offset + deltas[i], and last_offset_delta
    is what it was when the batch was produced, so that offsets of batches go on without a gap. With n = 0 the batch is
    64 bytes long, not compressed, and its times are -1: a *hole*. One without a producer stands for whole batches that
    are gone and may be of any length; one with a producer is what is left of the newest batch of that producer. No
    producer sends such batches, and rows (magic 2) become columns when records are taken from them.

      a header in the header blob: name length u16 | value length u32 (0xFFFFFFFF: null) | name, UTF-8 | value

    compressed (attributes bits 0-2 not 0): the bytes from 64 on are

      stored_bytes u32 | body_bytes u32 | stored_bytes of the codec's output | zeros to a multiple of 8

    and what comes out is exactly body_bytes: the body above without its last zeros. LZ4 and zstd are frames of their
    formats, gzip is RFC 1952. body_bytes is at most 64 MiB.

A reader refuses what it does not know: magic other than 2 and 67, a flag or an u16 at 62 that should be 0, compression
5 to 7, a length that leaves bytes over or wants more than there are. Magic 0 does not exist, so that an unwritten tail
of zeros shows itself.
"""

from __future__ import annotations

import struct
import sys
from typing import Final, NamedTuple

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = 61
LOG_OVERHEAD: Final = 12  # base_offset and batch_length, which batch_length does not count
POSITION_LENGTH: Final = 8
POSITION_EPOCH: Final = 12
POSITION_MAGIC: Final = 16
POSITION_CRC: Final = 17
POSITION_ATTRIBUTES: Final = 21  # the first byte that the CRC covers
POSITION_LAST_DELTA: Final = 23
POSITION_MAX_TIMESTAMP: Final = 35
POSITION_PRODUCER: Final = 43  # id i64, epoch i16, base sequence i32

MAGIC_ROWS: Final = 2
MAGIC_COLUMNS: Final = 67

COMPRESSION_MASK: Final = 0x07
COMPRESSION_MAX: Final = 4  # zstd; 5 to 7 have no meaning
LOG_APPEND_TIME: Final = 0x08
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
COMPACTED: Final = 0x80

COLUMN_HEAD = struct.Struct("<BH")
COLUMN_BODY: Final = 64
COMPRESSED_HEAD = struct.Struct("<II")
FLAG_KEYS: Final = 1
FLAG_NULL_VALUES: Final = 2
FLAG_NULL_KEYS: Final = 4
FLAG_TIMESTAMPS: Final = 8
FLAG_HEADERS: Final = 16
FLAGS_KNOWN: Final = 31
RECORD_HEADER = struct.Struct("<HI")
NULL_LENGTH: Final = 0xFFFF_FFFF
HEADER_NAME_BYTES_MAX: Final = 0xFFFF

BATCH_BYTES_MAX: Final = LOG_OVERHEAD + 0x7FFF_FFF8  # what batch_length can say, in whole words
ROW_BYTES_MIN: Final = 7  # length, attributes, two deltas, two lengths, header count: a byte each

NO_PRODUCER: Final = -1
NO_EPOCH: Final = -1

assert HEADER.size == HEADER_BYTES
assert HEADER_BYTES + COLUMN_HEAD.size == COLUMN_BODY
assert COLUMN_BODY % 8 == 0
assert (COMPRESSED_HEAD.size, RECORD_HEADER.size) == (8, 6)
assert sys.byteorder == "little", "columns are little-endian, and views cast them in place"


class BatchHeader(NamedTuple):
    """The 61 bytes, decoded. Offsets and deltas count records, lengths bytes, timestamps milliseconds."""

    base_offset: int
    batch_length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, header included."""
        return LOG_OVERHEAD + self.batch_length

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        """Offset that follows the batch."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def compression(self) -> int:
        """The codec's number: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd."""
        return self.attributes & COMPRESSION_MASK

    @property
    def has_append_time(self) -> bool:
        """Whether every record's time is the broker's, and is `max_timestamp`."""
        return bool(self.attributes & LOG_APPEND_TIME)

    @property
    def is_transactional(self) -> bool:
        """Whether the batch belongs to a transaction."""
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        """Whether the batch holds a marker in place of records."""
        return bool(self.attributes & CONTROL)

    @property
    def is_compacted(self) -> bool:
        """Whether records of it are gone, so that their offsets do not follow on each other."""
        return bool(self.attributes & COMPACTED)

    @property
    def has_sound_counts(self) -> bool:
        """Whether its records fit into its offsets: one for each, fewer only after compaction."""
        if self.attributes & COMPACTED:
            if self.record_count == 0 and self.batch_length != COLUMN_BODY - LOG_OVERHEAD:
                return False
            return self.magic == MAGIC_COLUMNS and 0 <= self.record_count <= self.last_offset_delta + 1
        return self.record_count == self.last_offset_delta + 1 > 0


def padding(size_bytes: int) -> int:
    """How many bytes are missing to a multiple of 8."""
    return -size_bytes & 7
