"""Encode and decode message bodies: msgpack of typed structs, with a bound on what is read."""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar

import msgspec

from zbroker.errors import InvalidRequestError

T = TypeVar("T")

BODY_BYTES_MAX: Final = 16 << 20

encode = msgspec.msgpack.Encoder().encode
"""The body of a message."""


_decoders: dict[type[Any], msgspec.msgpack.Decoder[Any]] = {}
_making = threading.Lock()  # two threads that meet in what msgspec does at the first use of a struct crash the process


def _decoder_for(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    with _making:
        return _decoders.get(kind) or _decoders.setdefault(kind, msgspec.msgpack.Decoder(kind))


def decode(kind: type[T], body: bytes | bytearray | memoryview) -> T:
    """Decode a body into exactly `kind`. Raises InvalidRequestError for anything else, and never another error."""
    if len(body) > BODY_BYTES_MAX:
        raise InvalidRequestError(f"a body of {len(body)} bytes; at most {BODY_BYTES_MAX} are read")
    try:
        decoder: msgspec.msgpack.Decoder[T] = _decoders.get(kind) or _decoder_for(kind)
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is no {kind.__name__}: {error}") from error
