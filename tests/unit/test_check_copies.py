"""Copies are compared batch by batch, over what all of them have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import append_batch, fill, make_batch, open_log
from zbroker.check.copies import compare_copies

NAME = "t00000001-0"


def copy(root: Path, number: int, batches: int, *, odd: int = -1, start: int = 0) -> None:
    log = open_log(root / "copies" / str(number) / NAME)
    for index in range(batches):
        value = b"another" if index == odd else b"value %d" % index
        append_batch(log, make_batch(log.log_end, [value] * 2))
    if start:
        log.truncate_before(start)
    log.close()


def test_copies_that_are_alike_but_for_their_ends_do_not_differ(tmp_path: Path) -> None:
    copy(tmp_path, 1, 60)
    copy(tmp_path, 2, 50)
    copy(tmp_path, 3, 60, start=90)
    assert compare_copies([tmp_path]) == []


@pytest.mark.parametrize("odd", [0, 30, 49])
def test_one_other_batch_is_found(tmp_path: Path, odd: int) -> None:
    copy(tmp_path, 1, 60)
    copy(tmp_path, 2, 50, odd=odd)
    assert compare_copies([tmp_path]) == [f"{NAME}: 1 and 2 differ from offset {2 * odd} on"]


def test_an_empty_copy_and_another_partition_do_not_differ(tmp_path: Path) -> None:
    copy(tmp_path, 1, 10)
    copy(tmp_path, 2, 0)
    log = open_log(tmp_path / "copies" / "3" / "t00000002-0")
    fill(log, 10)
    log.close()
    assert compare_copies([tmp_path, tmp_path / "nothing"]) == []
