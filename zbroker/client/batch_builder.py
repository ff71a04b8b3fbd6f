"""A batch that the caller fills: it knows before sending whether a record still fits."""

from __future__ import annotations

import time

from zbroker.client.settings import ProducerSettings
from zbroker.clock import NS_PER_MS
from zbroker.record.columns import encode_columns
from zbroker.record.records import Header, Headers, header_tuple

RECORDS_MAX = 10_000
OVERHEAD_BYTES = 16


class BatchBuilder:
    """`append` until it says no, then `producer.send_batch(builder)`."""

    def __init__(self, topic: str, partition: int, size_bytes_max: int, settings: ProducerSettings) -> None:
        self.topic = topic
        self.partition = partition
        self.size_bytes = 0
        self._size_bytes_max = size_bytes_max
        self._settings = settings
        self._values: list[bytes | None] = []
        self._keys: list[bytes | None] = []
        self._headers: list[tuple[Header, ...]] = []
        self._times: list[int] = []

    def __len__(self) -> int:
        return len(self._values)

    def append(
        self, value: bytes | None, key: bytes | None = None, *, headers: Headers = (), timestamp_ms: int | None = None
    ) -> bool:
        """Add a record. False, with nothing added, when it does not fit any more."""
        found = header_tuple(headers) if headers else ()
        size = OVERHEAD_BYTES + len(value or b"") + len(key or b"")
        size += sum(len(name.encode()) + len(blob or b"") + 8 for name, blob in found)
        if self.size_bytes + size > self._size_bytes_max or len(self._values) >= RECORDS_MAX:
            return False
        self._values.append(value)
        self._keys.append(key)
        self._headers.append(found)
        self._times.append(time.time_ns() // NS_PER_MS if timestamp_ms is None else timestamp_ms)
        self.size_bytes += size
        return True

    def encode(self) -> bytearray:
        """The batch as it goes out. At least one record must be in it."""
        if not self._values:
            raise ValueError("the batch is empty")
        return encode_columns(
            self._values,
            self._keys,
            timestamp_ms=self._times[0],
            headers=self._headers,
            timestamps_ms=self._times,
            compression=self._settings.compression_type,
            compression_level=self._settings.compression_level,
        )
