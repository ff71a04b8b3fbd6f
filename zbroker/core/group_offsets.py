"""What groups have committed: the image that the log of offsets gives, and how an entry stands there as a record.

    record key     msgpack array: layout 1, group id, topic id, partition
    record value   msgpack array: offset, leader epoch, metadata, committed_ms, topic name; no value: nothing is
                   committed here any more. The last record of a key is what holds.

It decides nothing. A record of another layout is refused with UnsupportedVersionError.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from zbroker.core.sticky import Key
from zbroker.errors import CorruptRecordError, UnsupportedVersionError

LAYOUT: Final = 1


class Committed(NamedTuple):
    """A committed offset: the next record that the group reads. `committed_ms`: wall clock."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""
    committed_ms: int = 0


class OffsetEntry(NamedTuple):
    """One change: an offset, or None: the group has committed nothing here any more. `topic` is for people."""

    group_id: str
    topic: str
    topic_id: int
    partition: int
    committed: Committed | None

    @property
    def key(self) -> Key:
        """Which partition."""
        return (self.topic_id, self.partition)


_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(tuple[int, str, int, int]).decode
_decode_value = msgspec.msgpack.Decoder(tuple[int, int, str, int, str]).decode


def record_of(entry: OffsetEntry) -> tuple[bytes, bytes | None]:
    """An entry as the key and value of a record."""
    key = _encode((LAYOUT, entry.group_id, entry.topic_id, entry.partition))
    return key, None if entry.committed is None else _encode((*entry.committed, entry.topic))


def entry_of(key: bytes | None, value: bytes | None) -> OffsetEntry:
    """The inverse of `record_of`. Raises CorruptRecordError, UnsupportedVersionError."""
    try:
        layout, group_id, topic_id, partition = _decode_key(key or b"")
        if layout != LAYOUT:
            raise UnsupportedVersionError(f"a committed offset of layout {layout}; this zbroker reads {LAYOUT}")
        if value is None:
            return OffsetEntry(group_id, "", topic_id, partition, None)
        offset, leader_epoch, metadata, committed_ms, topic = _decode_value(value)
    except msgspec.DecodeError as error:
        raise CorruptRecordError(f"not a committed offset: {error}") from error
    return OffsetEntry(group_id, topic, topic_id, partition, Committed(offset, leader_epoch, metadata, committed_ms))


class Offsets:
    """See the module."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[Key, Committed]] = {}
        self._topics: dict[int, str] = {}

    def apply(self, entry: OffsetEntry) -> None:
        """Take one entry in."""
        group = self._groups.setdefault(entry.group_id, {})
        if entry.committed is None:
            group.pop(entry.key, None)
            if not group:
                del self._groups[entry.group_id]
        else:
            group[entry.key] = entry.committed
            self._topics[entry.topic_id] = entry.topic

    def of(self, group_id: str) -> dict[Key, Committed]:
        """Everything that a group has committed; not to be changed."""
        return self._groups.get(group_id, {})

    def get(self, group_id: str, key: Key) -> Committed | None:
        """What a group has committed of a partition."""
        return self._groups.get(group_id, {}).get(key)

    def topic_name(self, topic_id: int) -> str:
        """The name that a topic had when an offset of it was committed."""
        return self._topics.get(topic_id, "")

    def group_ids(self) -> list[str]:
        """Groups that have committed anything."""
        return list(self._groups)

    def last_commit_ms(self, group_id: str) -> int:
        """When a group committed last; 0: never."""
        return max((one.committed_ms for one in self.of(group_id).values()), default=0)

    def count(self) -> int:
        """How many offsets there are."""
        return sum(map(len, self._groups.values()))

    def snapshot(self) -> Iterable[OffsetEntry]:
        """Entries that give this image from nothing."""
        for group_id, offsets in self._groups.items():
            for (topic_id, partition), committed in offsets.items():
                yield OffsetEntry(group_id, self._topics.get(topic_id, ""), topic_id, partition, committed)
