"""`zbroker produce`: lines as records, acknowledged before it ends.

Guarantees: records of one partition keep the order of the lines; when it exits with 0, every line was acknowledged, and
when it ends otherwise, it says how many were. It holds at most the producer's buffer in memory, however large the file.
What comes from a terminal or a pipe is sent as it comes.
"""

from __future__ import annotations

import base64
import binascii
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from zbroker.cli.examples import examples
from zbroker.cli.options import Options, pass_options, shared_options_without
from zbroker.cli.output import print_json, progress, size_text
from zbroker.cli.quantities import parse_pairs
from zbroker.cli.topic_names import complete_topics
from zbroker.errors import InvalidRecordError, MessageSizeTooLargeError
from zbroker.record.records import Header

if TYPE_CHECKING:
    from zbroker.client.batches import BatchFuture
    from zbroker.client.producer import Producer

_READ_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 16 << 20  # message_max_bytes goes no higher
_FUTURES_MAX: Final = 1_000
_LAST_FLUSH_MS: Final = 1_000


class Lines(NamedTuple):
    """Records of some lines: columns for `send_many`."""

    values: list[bytes | None]
    keys: list[bytes | None] | None
    headers: list[tuple[Header, ...]] | None
    size_bytes: int
    number: int = 1  # of the first line


class Style(NamedTuple):
    """How a line becomes a record."""

    key: bytes | None
    separator: bytes | None
    headers: tuple[Header, ...]
    is_json: bool
    empty_is_null: bool


@click.command(epilog=examples("produce"))
@click.argument("topic", shell_complete=complete_topics)
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("-k", "--key", metavar="KEY", help="The key of every record.")
@click.option("--key-sep", "separator", metavar="SEP", help="A line is KEY SEP VALUE; without SEP in it, no key.")
@click.option("-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help="On every record; repeatable.")
@click.option("-p", "--partition", type=click.IntRange(0), metavar="N", help="Into this partition.")
@click.option("--jsonl", "lines_are_json", is_flag=True, help='A line is {"value": ..., "key": ..., "headers": {...}}.')
@click.option("-Z", "--empty-is-null", is_flag=True, help="An empty value is a null: a tombstone.")
@click.option("--compress", type=click.Choice(["none", "lz4", "gzip", "zstd"]), help="Compress batches.")
@click.option("--acks", type=click.Choice(["0", "1", "all", "fsync"]), help="Who must have it.  [default: all]")
@shared_options_without("--jsonl")
@pass_options
def produce(
    options: Options,
    topic: str,
    file: str,
    key: str | None,
    separator: str | None,
    headers: tuple[str, ...],
    partition: int | None,
    lines_are_json: bool,
    empty_is_null: bool,
    compress: str | None,
    acks: str | None,
) -> None:
    """Send the lines of FILE (default, or "-": stdin) to TOPIC. A line is a record, without its line feed."""
    if sum((key is not None, separator is not None, lines_are_json)) > 1:
        raise click.UsageError("one of --key, --key-sep and --jsonl")
    if separator == "":
        raise click.UsageError("--key-sep: an empty text separates nothing")
    pairs = tuple((name, value.encode()) for name, value in parse_pairs(headers, "-H").items())
    key_bytes = key.encode() if key is not None else None
    style = Style(key_bytes, separator.encode() if separator else None, pairs, lines_are_json, empty_is_null)
    given = {"compression_type": compress, "acks": acks}
    settings = {name: value for name, value in given.items() if value is not None}
    with (
        _open(file) as (source, total),
        options.producer(**settings) as producer,
        progress(options, f"Producing {topic}", total, unit="bytes") as advance,
    ):
        started_s = time.monotonic()
        sent = Sent()
        try:
            _send(producer, sent, topic, partition, source, style, advance)
        except BaseException:
            producer.flush(timeout_ms=_LAST_FLUSH_MS)
            sent.add_what_is_done()
            options.note(f"{sent.records:,} records were acknowledged before this end")
            raise
        spent_s = time.monotonic() - started_s
    _summarize(options, topic, sent, spent_s)


@contextmanager
def _open(file: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """(the stream, its size where that is known). stdin stays open."""
    if file == "-":
        yield sys.stdin.buffer, None
        return
    with Path(file).open("rb") as source:
        found = Path(file).stat()
        yield source, found.st_size if stat.S_ISREG(found.st_mode) else None


class Sent:
    """What has been acknowledged: records, bytes, and the offsets of each partition."""

    def __init__(self) -> None:
        self.records = 0
        self.size_bytes = 0
        self.offsets: dict[int, tuple[int, int]] = {}
        self.waiting: deque[tuple[BatchFuture, int]] = deque()

    def add_what_is_done(self) -> None:
        """Count what is acknowledged by now, and forget the rest. Never waits; a delivery's error is passed over."""
        for future, size_bytes in self.waiting:
            if future.done() and future.exception() is None:
                self._add(future, size_bytes)
        self.waiting.clear()

    def add_first(self) -> int:
        """Wait for the oldest acknowledgement and count it; give its bytes. Raises the delivery's error."""
        future, size_bytes = self.waiting[0]
        future.result()
        self.waiting.popleft()
        self._add(future, size_bytes)
        return size_bytes

    def _add(self, future: BatchFuture, size_bytes: int) -> None:
        for found in future.result():
            self.records += found.record_count
            if found.base_offset >= 0:
                last = found.base_offset + found.record_count - 1
                low, high = self.offsets.get(found.partition, (found.base_offset, last))
                self.offsets[found.partition] = (min(low, found.base_offset), max(high, last))
        self.size_bytes += size_bytes


def _send(
    producer: Producer[Any, Any],
    sent: Sent,
    topic: str,
    partition: int | None,
    source: IO[bytes],
    style: Style,
    advance: Callable[[int], None],
) -> None:
    waiting = sent.waiting
    for lines in _read(source, style):
        try:
            future = producer.send_many(topic, lines.values, lines.keys, headers=lines.headers, partition=partition)
        except MessageSizeTooLargeError as error:
            longest = max(range(len(lines.values)), key=lambda index: len(lines.values[index] or b""))
            raise MessageSizeTooLargeError(f"line {lines.number + longest}: {error.message}") from None
        waiting.append((future, lines.size_bytes))
        while waiting and (len(waiting) > _FUTURES_MAX or waiting[0][0].done()):
            advance(sent.add_first())
    while waiting:
        advance(sent.add_first())


def _read(source: IO[bytes], style: Style) -> Iterator[Lines]:
    """Whole lines as records, as many as one read gives. A last line without a line feed is one too."""
    tail: list[bytes] = []
    tail_bytes = 0
    number = 1
    for block in _blocks(source):
        end = block.rfind(b"\n")
        if end < 0:
            tail.append(block)
            tail_bytes += len(block)
            if tail_bytes > _LINE_BYTES_MAX:
                raise InvalidRecordError(
                    f"line {number} is longer than {size_text(_LINE_BYTES_MAX)}", hint="a line is a record"
                )
            continue
        whole = b"".join((*tail, block[:end]))
        tail = [block[end + 1 :]] if end + 1 < len(block) else []
        tail_bytes = len(block) - end - 1
        lines = whole.split(b"\n")
        yield _records(lines, len(whole) + 1, style, number)
        number += len(lines)
    if tail:
        last = b"".join(tail)
        yield _records([last], len(last), style, number)


def _blocks(source: IO[bytes]) -> Iterator[bytes]:
    read = getattr(source, "read1", source.read)  # what is there: a terminal's line is not held back
    try:
        while block := read(_READ_BYTES):
            yield block
    except OSError as error:
        name = "standard input" if source is sys.stdin.buffer else source.name
        raise OSError(error.errno, error.strerror, name) from error


def _records(lines: list[bytes], size_bytes: int, style: Style, number: int) -> Lines:
    values: list[bytes | None] = list(lines)
    keys: list[bytes | None] | None = None
    headers = [style.headers] * len(lines) if style.headers else None
    if style.is_json:
        values, keys, headers = _from_json(lines, style, number)
    elif style.separator is not None:
        keys = []
        for index, line in enumerate(lines):
            key, separator, value = line.partition(style.separator)
            keys.append(key if separator else None)
            values[index] = value if separator else line
    elif style.key is not None:
        keys = [style.key] * len(lines)
    if style.empty_is_null:
        values = [value or None for value in values]
    return Lines(values, keys, headers, size_bytes, number)


def _from_json(
    lines: list[bytes], style: Style, number: int
) -> tuple[list[bytes | None], list[bytes | None], list[tuple[Header, ...]] | None]:
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    headers: list[tuple[Header, ...]] = []
    for index, line in enumerate(lines):
        try:
            value, key, own = parse_json_line(line)
        except (msgspec.DecodeError, binascii.Error) as error:
            raise InvalidRecordError(
                f"line {number + index}: {error}", hint='a line is {"value": "...", "key": "...", "headers": {...}}'
            ) from None
        values.append(value)
        keys.append(key)
        headers.append((*style.headers, *own))
    return values, keys, headers if any(headers) else None


class _HeaderLine(msgspec.Struct):
    name: str
    value: str | None = None
    value_base64: str | None = None


class _JsonLine(msgspec.Struct):
    """What `consume --json` prints is read back; topic, partition, offset and timestamp of it are passed over."""

    value: str | None = None
    key: str | None = None
    value_base64: str | None = None
    key_base64: str | None = None
    headers: dict[str, str | None] | list[_HeaderLine] = {}


_decode_line = msgspec.json.Decoder(_JsonLine).decode


def parse_json_line(line: bytes) -> tuple[bytes | None, bytes | None, tuple[Header, ...]]:
    """(value, key, headers) of a JSON object. Raises msgspec.DecodeError, binascii.Error."""
    found = _decode_line(line)
    if isinstance(found.headers, dict):
        headers = tuple((name, _blob(value, None)) for name, value in found.headers.items())
    else:
        headers = tuple((header.name, _blob(header.value, header.value_base64)) for header in found.headers)
    return _blob(found.value, found.value_base64), _blob(found.key, found.key_base64), headers


def _blob(text: str | None, text_base64: str | None) -> bytes | None:
    if text_base64 is not None:
        return base64.b64decode(text_base64, validate=True)
    return None if text is None else text.encode()


def _summarize(options: Options, topic: str, sent: Sent, spent_s: float) -> None:
    if options.is_json:
        partitions = [
            {"partition": number, "first_offset": first, "last_offset": last}
            for number, (first, last) in sorted(sent.offsets.items())
        ]
        print_json(
            {
                "topic": topic,
                "records": sent.records,
                "bytes": sent.size_bytes,
                "seconds": round(spent_s, 6),
                "partitions": partitions,
            }
        )
        return
    rate = sent.records / max(spent_s, 1e-9)
    options.note(f"{sent.records:,} records, {size_text(sent.size_bytes)} in {spent_s:.2f} s ({rate:,.0f} records/s)")
