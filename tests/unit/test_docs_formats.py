"""docs/formats.md says what the code says, and its reader reads what the storage writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zbroker.record.layout
import zbroker.storage.layout
from zbroker.record.batch import stamp
from zbroker.record.columns import encode_columns

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()


def reader_of_the_page() -> Callable[[bytes], Iterator[tuple[Any, ...]]]:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(compile(code.group(1), "docs/formats.md", "exec"), names)
    found: Callable[[bytes], Iterator[tuple[Any, ...]]] = names["records"]
    return found


def test_the_page_quotes_the_layouts_as_they_are() -> None:
    for module in (zbroker.record.layout, zbroker.storage.layout):
        assert module.__doc__ is not None
        assert module.__doc__.strip() in PAGE, f"quote {module.__name__} anew"


def test_the_pages_reader_reads_a_log() -> None:
    first = encode_columns([b"a", None, b"ccc"], [b"k", b"", None], timestamp_ms=5)
    second = encode_columns([b"x", b""], timestamps_ms=[7, 9], timestamp_ms=0, headers=[(), (("h", b"v"),)])
    stamp(first, 100, 3)
    stamp(second, 103, 3)
    log = bytes(first + second + bytes(4096))
    assert list(reader_of_the_page()(log)) == [
        (100, 5, b"k", b"a"),
        (101, 5, b"", None),
        (102, 5, None, b"ccc"),
        (103, 7, None, b"x"),
        (104, 9, None, b""),
    ]
