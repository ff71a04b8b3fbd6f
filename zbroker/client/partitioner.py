"""Which partition a record goes to.

`mmh3` (default) is murmur3 of the key; `murmur2_random` is Kafka's own map, for topics that move to Kafka. The two
give different partitions for the same key. Without a key every strategy but `round_robin` stays with one partition for
a whole batch (KIP-480), so that batches fill.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import mmh3

Choose = Callable[[bytes | None, int], int]

_MASK = 0xFFFF_FFFF
mmh3_of: Callable[[bytes], int] = mmh3.mmh3_32_uintdigest
"""murmur3 (x86, 32 bit, seed 0) of a key, as an unsigned number."""


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (`Utils.murmur2`), seed 0x9747b28c, as an unsigned 32-bit number."""
    length = len(data)
    m = 0x5BD1E995
    h = (0x9747B28C ^ length) & _MASK
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & _MASK
        k = (k ^ k >> 24) * m & _MASK
        h = (h * m & _MASK) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & _MASK
    h = (h ^ h >> 13) * m & _MASK
    return h ^ h >> 15


def murmur2_of(key: bytes) -> int:
    """Kafka's `toPositive(murmur2(key))`."""
    return murmur2(key) & 0x7FFF_FFFF


def round_robin() -> Choose:
    """Each record to the next partition, whatever its key."""
    numbers = count()
    return lambda _key, partitions: next(numbers) % partitions
