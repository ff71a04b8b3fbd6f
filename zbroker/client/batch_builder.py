"""A batch that the caller fills: it knows before sending whether a record still fits."""

from __future__ import annotations

import time

from zbroker.client.serialize import as_bytes, plain_size
from zbroker.client.settings import ProducerSettings
from zbroker.clock import NS_PER_MS
from zbroker.errors import MessageSizeTooLargeError
from zbroker.record.columns import encode_columns
from zbroker.record.records import Header, Headers, header_tuple

RECORDS_MAX = 10_000


class BatchBuilder:
    """`append` until it says no, then `producer.send_batch(builder)`. It takes bytes: serializers are not applied."""

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
        """Add a record. False, with nothing added, when it does not fit any more.

        Raises MessageSizeTooLargeError for a record that fits into no batch, InvalidRecordError for what is not bytes.
        """
        found = header_tuple(headers) if headers else ()
        value, key = as_bytes(value, "value"), as_bytes(key, "key")
        size = plain_size(value, key, found)
        if size > self._size_bytes_max:
            raise MessageSizeTooLargeError(f"a record of {size} bytes; a batch takes {self._size_bytes_max}")
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
