"""docs/formats.md says what the code says, and its reader reads what the storage writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import zbroker.core.group_offsets
import zbroker.record.layout
import zbroker.record.rows
import zbroker.shm.commit_layout
import zbroker.shm.layout
import zbroker.storage.layout
import zbroker.workers.metadata_log
from zbroker.core.entries import AnyEntry
from zbroker.record.batch import stamp
from zbroker.record.columns import encode_columns
from zbroker.wire.layout import Api

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "formats.md").read_text()


def reader_of_the_page() -> Callable[[bytes], Iterator[tuple[Any, ...]]]:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(compile(code.group(1), "docs/formats.md", "exec"), names)
    found: Callable[[bytes], Iterator[tuple[Any, ...]]] = names["records"]
    return found


QUOTED = (
    (zbroker.record.layout, "formats.md"),
    (zbroker.record.rows, "formats.md"),
    (zbroker.storage.layout, "formats.md"),
    (zbroker.workers.metadata_log, "formats.md"),
    (zbroker.core.group_offsets, "formats.md"),
    (zbroker.shm.layout, "shm.md"),
    (zbroker.shm.commit_layout, "shm.md"),
)


@pytest.mark.parametrize(("module", "page"), QUOTED)
def test_the_pages_quote_the_layouts_as_they_are(module: ModuleType, page: str) -> None:
    assert module.__doc__ is not None
    assert f"```\n{module.__doc__.strip()}\n```" in (DOCS / page).read_text(), f"quote {module.__name__} anew"


def test_the_page_names_every_entry_of_the_metadata_log_with_its_fields() -> None:
    table = re.findall(r"^\| (\w+) \| (`.*`) \|$", PAGE[PAGE.index("| type | fields |") :], re.MULTILINE)
    assert table == [
        (kind.__name__, ", ".join(f"`{name}`" for name in kind.__struct_fields__)) for kind in get_args(AnyEntry)
    ]


def test_the_page_of_the_protocol_names_every_request_with_its_number() -> None:
    page = (DOCS / "protocol.md").read_text()
    table = page[page.index("## Requests") : page.index("## Between copies")]
    assert dict(re.findall(r"([A-Z_]{4,}) (\d+)", table)) == {one.name: str(one.value) for one in Api}


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
