"""How records are printed."""

from __future__ import annotations

from typing import Any

import click
import pytest

from zbroker.cli.produce import parse_json_line
from zbroker.cli.record_format import as_json, parse_format
from zbroker.record.records import ConsumerRecord

RECORD: ConsumerRecord[Any, Any] = ConsumerRecord(
    "orders", 3, 17, 1_795_435_200_123, 0, b"key", b"\xffvalue", (("a", b"1"), ("b", None))
)
NULLS: ConsumerRecord[Any, Any] = ConsumerRecord("orders", 0, 0, 0, 0, None, None, ())


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"%t %p %o %T %k %v\n", b"orders 3 17 1795435200123 key \xffvalue\n"),
        ("%v", b"\xffvalue"),
        ("%s", b"\xffvalue"),
        (r"%K\t%S\0\x41\\%%", b"3\t6\0A\\%"),
        ("%h", b"a=1,b="),
        ("%v{hex} %k{base64}", b"ff76616c7565 a2V5"),
        ("%T{iso}", b"2026-11-23T12:00:00.123+00:00"),
        ("größe: %o", "größe: 17".encode()),
        ("", b""),
    ],
)
def test_a_format_prints_what_its_letters_say(template: str, expected: bytes) -> None:
    assert parse_format(template)([RECORD]) == expected
    assert parse_format(template)([RECORD, RECORD]) == expected * 2
    assert parse_format(template)([]) == b""


def test_null_prints_nothing_and_has_size_minus_one() -> None:
    assert parse_format("[%k] [%v] [%h] %K %S")([NULLS]) == b"[] [] [] -1 -1"


@pytest.mark.parametrize("template", ["%x", "%v{xml}", "%t{hex}", r"\q", "text %", "text \\", r"\xZZ"])
def test_a_format_that_cannot_be_read_is_refused_before_the_first_record(template: str) -> None:
    with pytest.raises(click.BadParameter, match="-f"):
        parse_format(template)


def test_a_record_as_json_keeps_bytes_that_are_no_text() -> None:
    assert as_json(RECORD) == {
        "topic": "orders", "partition": 3, "offset": 17, "timestamp": 1_795_435_200_123, "key": "key",
        "value_base64": "/3ZhbHVl", "headers": [{"name": "a", "value": "1"}, {"name": "b", "value": None}],
    }  # fmt: skip
    assert as_json(NULLS) == {
        "topic": "orders", "partition": 0, "offset": 0, "timestamp": 0, "key": None, "value": None
    }  # fmt: skip


@pytest.mark.parametrize("record", [RECORD, NULLS])
def test_what_consume_prints_as_json_produce_reads_back(record: ConsumerRecord[Any, Any]) -> None:
    import msgspec

    assert parse_json_line(msgspec.json.encode(as_json(record))) == (record.value, record.key, record.headers)
