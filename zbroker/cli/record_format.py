r"""How a record is printed: `-f '%t %p %o %T %k %v\n'` (kcat's and rpk's letters), or one JSON object a line.

    %t topic  %p partition  %o offset  %T timestamp in ms  %k key  %v or %s value  %h headers  %K %S bytes of key, value
    %% a percent sign    \n \t \r \0 \\ \xHH as in C    %k{hex} %v{base64} %T{iso} another form

Guarantees: bytes go out as they are; a null key or value prints nothing, and -1 as its size. A format that cannot be
read is refused before the first record.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import click

from zbroker.record.records import ConsumerRecord

Record: TypeAlias = ConsumerRecord[Any, Any]
Formatter: TypeAlias = Callable[[Record], bytes]

_TOKEN: Final = re.compile(
    r"%(?P<letter>.)(?:\{(?P<form>[a-z0-9]+)\})?|\\(?P<escape>x[0-9a-fA-F]{2}|.)|(?P<text>[^%\\]+)", re.S
)
_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}


def _iso(record: Record) -> bytes:
    return datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(timespec="milliseconds").encode()


def _headers(record: Record) -> bytes:
    return b",".join(name.encode() + b"=" + (value or b"") for name, value in record.headers)


_PLAIN: Final[dict[str, Formatter]] = {
    "t": lambda record: record.topic.encode(),
    "p": lambda record: b"%d" % record.partition,
    "o": lambda record: b"%d" % record.offset,
    "T": lambda record: b"%d" % record.timestamp,
    "k": lambda record: record.key or b"",
    "v": lambda record: record.value or b"",
    "s": lambda record: record.value or b"",
    "h": _headers,
    "K": lambda record: b"%d" % (-1 if record.key is None else len(record.key)),
    "S": lambda record: b"%d" % (-1 if record.value is None else len(record.value)),
}


def _transformed(plain: Formatter, transform: Callable[[bytes], bytes]) -> Formatter:
    return lambda record: transform(plain(record))


def parse_format(text: str) -> Formatter:
    """A function that gives a record's bytes. Raises click.BadParameter that shows the part it cannot read."""
    parts = list(_parse(text))
    if len(parts) == 1 and not isinstance(parts[0], bytes):
        return parts[0]
    return lambda record: b"".join([part if isinstance(part, bytes) else part(record) for part in parts])


def _parse(text: str) -> Iterator[bytes | Formatter]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise click.BadParameter(f"-f: {text[position:]!r} ends in the middle")
        position = match.end()
        letter, form, escape = match["letter"], match["form"], match["escape"]
        if match["text"] is not None:
            yield match["text"].encode()
        elif escape is not None:
            if len(escape) == 3:
                yield bytes.fromhex(escape[1:])
            elif escape in _ESCAPES:
                yield _ESCAPES[escape]
            else:
                raise click.BadParameter(f"-f: \\{escape} is none of \\n \\t \\r \\0 \\\\ \\xHH")
        elif letter == "%":
            yield b"%"
        else:
            yield _field(letter, form)


def _field(letter: str, form: str | None) -> Formatter:
    plain = _PLAIN.get(letter)
    if plain is None:
        raise click.BadParameter(f"-f: %{letter} is none of %{' %'.join(_PLAIN)} %%")
    if form is None:
        return plain
    if letter == "T" and form == "iso":
        return _iso
    if letter in "kvs" and form == "hex":
        return _transformed(plain, lambda blob: blob.hex().encode())
    if letter in "kvs" and form == "base64":
        return _transformed(plain, base64.b64encode)
    raise click.BadParameter(f"-f: %{letter}{{{form}}}: %T{{iso}}, and hex and base64 of %k and %v are known")


def as_json(record: Record) -> dict[str, object]:
    """A record as an object. Bytes that are no UTF-8 are under `key_base64`, `value_base64`."""
    found: dict[str, object] = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
    }
    _put(found, "key", record.key)
    _put(found, "value", record.value)
    if record.headers:
        found["headers"] = [_header(name, value) for name, value in record.headers]
    return found


def _header(name: str, value: bytes | None) -> dict[str, object]:
    found: dict[str, object] = {"name": name}
    _put(found, "value", value)
    return found


def _put(into: dict[str, object], name: str, blob: bytes | None) -> None:
    if blob is None:
        into[name] = None
        return
    try:
        into[name] = blob.decode()
    except UnicodeDecodeError:
        into[f"{name}_base64"] = base64.b64encode(blob).decode()
