"""T02: each test finds the bug that it is there for. Those of replication are in tests/sim, those of syncing in
test_storage_power; here are the others, each seeded into the product and given to the test that must notice.
"""

from __future__ import annotations

import struct
import time
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from tests.fault.test_shm_races import race
from tests.property import test_core_dedup_twin
from tests.scripted_worker import PROGRAM, ScriptedWorker
from tests.system import test_worker_lanes
from tests.unit import test_client_mapped_log
from tests.unit.test_client_mapped_log import Writer
from zbroker.core.dedup import Sequences
from zbroker.record import view
from zbroker.record.layout import BatchHeader
from zbroker.shm import layout
from zbroker.shm.board import PartitionCellWriter


def test_t02_a_partition_that_stores_what_comes_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(self: Sequences, batch: BatchHeader) -> None:
        return None

    monkeypatch.setattr(Sequences, "judge", judge)
    twin = test_core_dedup_twin.test_any_order_of_arrivals_appends_a_prefix_of_each_producer_once
    with pytest.raises(AssertionError):
        twin.hypothesis.inner_test([(0, 0, 1), (0, -1, 1)])  # type: ignore[attr-defined]  # hypothesis adds it


def test_t02_a_high_watermark_that_is_shown_before_the_data_is_found(tmp_path: Path) -> None:
    def publish(cell: PartitionCellWriter, log_end: int, position: int, high_watermark: int, *rest: int) -> None:
        cell._words[layout.P_HIGH_WATERMARK] = high_watermark
        time.sleep(0.0001)
        PartitionCellWriter.publish(cell, log_end, position, high_watermark, *rest)

    for _, wrong, half, snapshots in race(tmp_path, publish):
        assert wrong == 0
        assert half > 0, f"not one of {snapshots} snapshots was half"


def test_t02_a_high_watermark_that_is_packed_into_shared_memory_is_found(tmp_path: Path) -> None:
    def publish(cell: PartitionCellWriter, log_end: int, position: int, high_watermark: int, *rest: int) -> None:
        PartitionCellWriter.publish(cell, log_end, position, high_watermark, *rest)
        struct.pack_into("<Q", cell._words.cast("B"), layout.P_HIGH_WATERMARK * layout.WORD_BYTES, high_watermark)

    assert sum(wrong for _, wrong, _, _ in race(tmp_path, publish)) > 0, "the zero in between was never seen"


def test_t02_a_reader_that_believes_a_batch_without_its_crc_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = view.RecordBatch.__init__

    def believe(*args: Any, **named: Any) -> None:
        given = signature(begin).bind(*args, **named)
        given.arguments["check_crc"] = False
        begin(*given.args, **given.kwargs)

    monkeypatch.setattr(view.RecordBatch, "__init__", believe)
    writer = Writer(tmp_path)
    with pytest.raises(AssertionError):
        test_client_mapped_log.test_t04_a_damaged_body_is_an_error_that_names_the_offset_and_a_seek_skips_it(writer)


def test_t02_a_worker_that_does_not_check_its_own_copy_of_a_batch_is_found() -> None:
    bug = "import zbroker.record.batch as batch\nbatch.crc_matches = lambda view, position, header: True\n"
    with ScriptedWorker(program=bug + PROGRAM) as worker:
        worker.grant()
        with pytest.raises(AssertionError, match="a bad batch is in the log"):
            test_worker_lanes.test_t40_a_producer_that_changes_a_batch_while_it_is_read_stores_nothing_bad(worker)
