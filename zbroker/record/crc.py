"""CRC-32C (Castagnoli), the checksum of Kafka's record batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fastcrc import crc32

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview

crc32c: Callable[[ReadableBuffer], int] = crc32.iscsi
"""CRC-32C of a buffer: tens of GB/s from 64 KiB on. Takes memoryviews, writable or not, without a copy."""
