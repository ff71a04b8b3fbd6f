"""Compress and decompress batch bodies, with a bound on what comes out.

A few kilobytes can hold hundreds of megabytes of zeros (measured: 1,028 to 1). Every decompressor here stops one byte
past its bound and raises CorruptRecordError, so that memory stays within the bound. The broker never decompresses;
clients do.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

import lz4.frame

from zbroker.errors import ConfigError, CorruptRecordError, UnsupportedCompressionTypeError
from zbroker.record.crc import ReadableBuffer

NONE: Final = 0
GZIP: Final = 1
SNAPPY: Final = 2
LZ4: Final = 3
ZSTD: Final = 4

CODEC_NUMBERS: Final = {"none": NONE, "gzip": GZIP, "lz4": LZ4, "zstd": ZSTD}
CODEC_NAMES: Final = {NONE: "none", GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}

DECOMPRESSED_BYTES_MAX: Final = 64 << 20
"""What one batch may decompress to: four times the largest `message_max_bytes` that a broker can be given."""

_GZIP_WINDOW: Final = 31  # zlib: 15 bits of window, plus 16 for the gzip container
_ZSTD_WINDOW_BYTES_MAX: Final = 8 << 20  # what RFC 8878 asks every decoder to support
_PIECE_BYTES: Final = 64 << 10


def codec_number(name: str) -> int:
    """The attribute bits of a codec. Raises ConfigError for an unknown name, or zstd without its extra."""
    number = CODEC_NUMBERS.get(name)
    if number is None:
        raise ConfigError(f"compression_type: {name!r} is not one of {', '.join(CODEC_NUMBERS)}")
    if number == ZSTD:
        try:
            _zstandard()
        except UnsupportedCompressionTypeError as error:
            raise ConfigError(str(error)) from None
    return number


def compress(codec: int, body: ReadableBuffer, level: int | None = None) -> bytes:
    """Compress a body; codec 0 is not compression and not allowed here.

    LZ4 blocks are independent, because Kafka's Java reader refuses linked ones.
    """
    if codec == LZ4:
        return bytes(
            lz4.frame.compress(
                body,
                compression_level=level or 0,
                block_size=lz4.frame.BLOCKSIZE_MAX1MB,
                block_linked=False,
                store_size=False,
            )
        )
    if codec == GZIP:
        deflate = zlib.compressobj(level if level is not None else 6, zlib.DEFLATED, _GZIP_WINDOW)
        return deflate.compress(body) + deflate.flush()
    assert codec == ZSTD, f"codec {codec}"
    return bytes(_zstandard().ZstdCompressor(level=level or 3).compress(body))


def decompress(codec: int, data: ReadableBuffer, size_bytes_max: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """Decompress a body of at most `size_bytes_max` bytes.

    Raises CorruptRecordError for damage, bytes after the end, or a larger body; UnsupportedCompressionTypeError for
    a codec that this installation has not.
    """
    assert size_bytes_max >= 0
    if codec == LZ4:
        body, is_whole = _decompress_lz4(data, size_bytes_max)
    elif codec == GZIP:
        body, is_whole = _decompress_gzip(data, size_bytes_max)
    elif codec == ZSTD:
        body, is_whole = _decompress_zstd(data, size_bytes_max)
    else:
        raise UnsupportedCompressionTypeError(f"compression {CODEC_NAMES.get(codec, codec)} cannot be read here")
    if len(body) > size_bytes_max:
        raise CorruptRecordError(f"the compressed body is larger than {size_bytes_max} bytes")
    if not is_whole:
        raise CorruptRecordError("the compressed body is cut short, or something follows it")
    return body


def _decompress_lz4(data: ReadableBuffer, size_bytes_max: int) -> tuple[bytes, bool]:
    reader = lz4.frame.LZ4FrameDecompressor()
    pending: list[ReadableBuffer] = [data]

    def read(size_bytes: int) -> bytes:
        if reader.eof:
            return b""
        return bytes(reader.decompress(pending.pop() if pending else b"", size_bytes))

    try:
        body = _read_up_to(read, size_bytes_max + 1, 4 * len(data))
    except (RuntimeError, EOFError) as error:
        raise CorruptRecordError(f"the lz4 body cannot be decompressed: {error}") from error
    return body, reader.eof and not reader.unused_data


def _decompress_gzip(data: ReadableBuffer, size_bytes_max: int) -> tuple[bytes, bool]:
    inflate = zlib.decompressobj(_GZIP_WINDOW)
    try:
        body = inflate.decompress(data, size_bytes_max + 1)
    except zlib.error as error:
        raise CorruptRecordError(f"the gzip body cannot be decompressed: {error}") from error
    return body, inflate.eof and not inflate.unused_data


def _decompress_zstd(data: ReadableBuffer, size_bytes_max: int) -> tuple[bytes, bool]:
    """A frame need not say its size (Kafka's Java clients do not), and what it says is not believed."""
    zstandard = _zstandard()
    try:
        with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).stream_reader(bytes(data)) as reader:
            body = _read_up_to(reader.read, size_bytes_max + 1, 4 * len(data))
            parameters = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise CorruptRecordError(f"the zstd body cannot be decompressed: {error}") from error
    said_bytes = parameters.content_size
    return body, said_bytes == zstandard.CONTENTSIZE_UNKNOWN or said_bytes == len(body)


def _read_up_to(read: Callable[[int], bytes], size_bytes: int, piece_bytes: int) -> bytes:
    """Call `read` for pieces until it gives nothing more, or `size_bytes` in all; it allocates what it is asked for."""
    piece_bytes = max(piece_bytes, _PIECE_BYTES)
    pieces = []
    while size_bytes > 0:
        piece = read(min(size_bytes, piece_bytes))
        if not piece:
            break
        pieces.append(piece)
        size_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UnsupportedCompressionTypeError(
            "compression zstd needs an extra", hint="pip install 'zbroker[zstd]'"
        ) from None
    return zstandard
