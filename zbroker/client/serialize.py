"""The check that what is sent is bytes, and what a record takes in a batch.

Checked before a record joins a batch: one that cannot be encoded must fail alone, at its own `send`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from zbroker.errors import InvalidRecordError
from zbroker.record.records import Header

RECORD_OVERHEAD_BYTES: Final = 16
HEADER_OVERHEAD_BYTES: Final = 8


def as_bytes(found: Any, what: str) -> bytes | None:
    """The same as bytes; a buffer that may change is copied. Raises InvalidRecordError that names the serializer."""
    if found is None or found.__class__ is bytes:
        return found
    if isinstance(found, bytes | bytearray | memoryview):
        return bytes(found)
    raise InvalidRecordError(
        f"a {what} is bytes or None, not {type(found).__name__}",
        hint=f"{what}_serializer, for text {what}_serializer=str.encode",
    )


def plain_size(value: bytes | None, key: bytes | None, headers: Sequence[Header]) -> int:
    """About what a record takes in a batch that is not compressed."""
    size = RECORD_OVERHEAD_BYTES + len(value or b"") + len(key or b"")
    if headers:
        size += sum(len(name.encode()) + len(blob or b"") + HEADER_OVERHEAD_BYTES for name, blob in headers)
    return size
