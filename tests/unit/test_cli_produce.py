"""How lines become records."""

from __future__ import annotations

import io
import random

import pytest

from zbroker.cli import produce
from zbroker.cli.produce import Lines, Style, _read
from zbroker.errors import InvalidRecordError

PLAIN = Style(None, None, (), is_json=False, empty_is_null=False)


class Chunks(io.RawIOBase):
    """A stream that gives its bytes in pieces of its own choice, as a pipe does."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def read1(self, _: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def records_of(text: bytes, style: Style = PLAIN) -> Lines:
    """All records of a text, whatever the reads."""
    values, keys, headers, size_bytes = [], [], [], 0
    for lines in _read(io.BytesIO(text), style):
        values += lines.values
        keys += lines.keys or []
        headers += lines.headers or []
        size_bytes += lines.size_bytes
    return Lines(values, keys or None, headers or None, size_bytes)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"", []),
        (b"one", [b"one"]),
        (b"one\n", [b"one"]),
        (b"one\n\ntwo", [b"one", b"", b"two"]),
        (b"\n", [b""]),
        (b"a\r\nb\x00c\n", [b"a\r", b"b\x00c"]),
    ],
)
def test_a_line_is_a_record_without_its_line_feed(text: bytes, values: list[bytes]) -> None:
    found = records_of(text)
    assert found.values == values
    assert found.keys is None
    assert found.size_bytes == len(text)


def test_a_file_without_line_feeds_is_refused_before_it_fills_the_memory() -> None:
    with open("/dev/zero", "rb") as zeros, pytest.raises(InvalidRecordError, match=r"line 1 is longer than 16\.0 MiB"):
        list(_read(zeros, PLAIN))


def test_an_input_that_cannot_be_read_is_named() -> None:
    with open("/proc/self/mem", "rb") as unreadable, pytest.raises(OSError, match="Input/output error") as caught:
        list(_read(unreadable, PLAIN))
    assert caught.value.filename == "/proc/self/mem"


@pytest.mark.parametrize("seed", range(20))
def test_how_a_pipe_cuts_its_bytes_does_not_matter(seed: int) -> None:
    chance = random.Random(seed)
    text = b"\n".join(chance.randbytes(chance.randrange(6)).replace(b"\n", b"") for _ in range(100)) + b"\nlast"
    pieces, position = [], 0
    while position < len(text):
        size = chance.choice((1, 2, 7, 50))
        pieces.append(text[position : position + size])
        position += size
    values = [value for lines in _read(Chunks(pieces), PLAIN) for value in lines.values]  # type: ignore[arg-type]  # read1 is enough
    assert values == text.split(b"\n"), f"seed {seed}"


def test_a_line_longer_than_a_read_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "_READ_BYTES", 4)
    assert records_of(b"0123456789abcdef\nxy\nz").values == [b"0123456789abcdef", b"xy", b"z"]


def test_what_comes_is_given_on_before_the_stream_ends() -> None:
    stream = Chunks([b"one\ntw", b"o\n"])
    read = _read(stream, PLAIN)  # type: ignore[arg-type]  # read1 is enough
    assert next(read).values == [b"one"]
    assert stream._pieces == [b"o\n"]


def test_a_key_can_be_split_off_every_line() -> None:
    found = records_of(b"k1::v1\nplain\n::v3\nk4::\n", PLAIN._replace(separator=b"::"))
    assert found.keys == [b"k1", None, b"", b"k4"]
    assert found.values == [b"v1", b"plain", b"v3", b""]


def test_one_key_and_headers_can_be_given_to_every_line() -> None:
    found = records_of(b"a\nb\n", PLAIN._replace(key=b"k", headers=(("h", b"1"),)))
    assert found.keys == [b"k", b"k"]
    assert found.headers == [(("h", b"1"),)] * 2


def test_an_empty_value_can_be_a_null() -> None:
    assert records_of(b"k:\nk:v\n", PLAIN._replace(separator=b":", empty_is_null=True)).values == [None, b"v"]


def test_json_lines_have_value_key_and_headers() -> None:
    lines = (
        b'{"value": "v", "key": "k", "headers": {"a": "1", "b": null}}\n'
        b'{"value_base64": "/w==", "headers": [{"name": "c", "value_base64": "AA=="}]}\n'
        b'{"key": "only"}\n'
    )
    found = records_of(lines, PLAIN._replace(is_json=True, headers=(("all", b""),)))
    assert found.values == [b"v", b"\xff", None]
    assert found.keys == [b"k", None, b"only"]
    assert found.headers == [
        (("all", b""), ("a", b"1"), ("b", None)), (("all", b""), ("c", b"\0")), (("all", b""),),
    ]  # fmt: skip


@pytest.mark.parametrize("line", [b"no json", b'{"value": 5}', b'{"value_base64": "?"}', b"[]"])
def test_a_json_line_that_cannot_be_read_is_named_by_its_number(line: bytes) -> None:
    with pytest.raises(InvalidRecordError, match="line 3: "):
        records_of(b'{"value": "a"}\n{"value": "b"}\n' + line + b"\n", PLAIN._replace(is_json=True))
