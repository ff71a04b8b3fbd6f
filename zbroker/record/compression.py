"""Compress and decompress batch bodies, with a bound on what comes out.

A few kilobytes can hold hundreds of megabytes of zeros (measured: 1,028 to 1). Every decompressor here stops at its
bound and raises CorruptRecordError. The broker never decompresses; clients do.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import lz4.frame

from zbroker.errors import ConfigError, CorruptRecordError
from zbroker.record.crc import ReadableBuffer

NONE: Final = 0
GZIP: Final = 1
SNAPPY: Final = 2
LZ4: Final = 3
ZSTD: Final = 4

CODEC_NUMBERS: Final = {"none": NONE, "gzip": GZIP, "lz4": LZ4, "zstd": ZSTD}
CODEC_NAMES: Final = {NONE: "none", GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}
DECOMPRESSED_BYTES_MAX: Final = 64 << 20
_GZIP_WINDOW: Final = 31  # zlib: 15 bits of window, plus 16 for the gzip container


def codec_number(name: str) -> int:
    """The attribute bits of a codec. Raises ConfigError for an unknown name, or zstd without its extra."""
    number = CODEC_NUMBERS.get(name)
    if number is None:
        raise ConfigError(f"compression_type: {name!r} is not one of {', '.join(CODEC_NUMBERS)}")
    if number == ZSTD:
        _zstandard()
    return number


def compress(codec: int, body: ReadableBuffer, level: int | None = None) -> bytes:
    """Compress a body; codec 0 is not compression and not allowed here."""
    if codec == LZ4:
        return bytes(lz4.frame.compress(body, compression_level=level or 0, store_size=False))
    if codec == GZIP:
        deflate = zlib.compressobj(level if level is not None else 6, zlib.DEFLATED, _GZIP_WINDOW)
        return deflate.compress(body) + deflate.flush()
    assert codec == ZSTD, f"codec {codec}"
    return bytes(_zstandard().ZstdCompressor(level=level or 3).compress(body))


def decompress(codec: int, data: ReadableBuffer, size_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """Decompress a body. Raises CorruptRecordError for damage, an unknown codec, or more bytes than the bound."""
    try:
        if codec == LZ4:
            return _decompress_lz4(data, size_bytes_max)
        if codec == GZIP:
            inflate = zlib.decompressobj(_GZIP_WINDOW)
            body = inflate.decompress(data, size_bytes_max)
            return _bounded(body, inflate.eof, size_bytes_max)
        if codec == ZSTD:
            reader = _zstandard().ZstdDecompressor(max_window_size=8 << 20).decompressobj()
            body = bytes(reader.decompress(bytes(data))) if _zstd_fits(data, size_bytes_max) else b""
            return _bounded(body, reader.eof, size_bytes_max)
    except (zlib.error, RuntimeError, EOFError, ConfigError) as error:
        raise CorruptRecordError(f"the body cannot be decompressed: {error}") from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # its module may be absent, so it cannot be named in an except clause
            raise CorruptRecordError(f"the body cannot be decompressed: {error}") from error
        raise
    raise CorruptRecordError(f"compression {CODEC_NAMES.get(codec, codec)} is not supported")


def _decompress_lz4(data: ReadableBuffer, size_bytes_max: int) -> bytes:
    reader = lz4.frame.LZ4FrameDecompressor()
    body = bytes(reader.decompress(data, size_bytes_max))
    return _bounded(body, reader.eof, size_bytes_max)


def _bounded(body: bytes, is_whole: bool, size_bytes_max: int) -> bytes:
    if not is_whole:
        reason = f"larger than {size_bytes_max} bytes" if len(body) >= size_bytes_max else "cut short"
        raise CorruptRecordError(f"the compressed body is {reason}")
    return body


def _zstd_fits(data: ReadableBuffer, size_bytes_max: int) -> bool:
    size_bytes: int = _zstandard().frame_content_size(bytes(data[:18]))
    if size_bytes < 0:
        raise CorruptRecordError("a zstd frame must say its size")
    return size_bytes <= size_bytes_max


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigError("compression zstd needs an extra: pip install 'zbroker[zstd]'") from None
    return zstandard
