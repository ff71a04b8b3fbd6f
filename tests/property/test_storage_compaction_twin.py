"""Compaction against a dictionary: whatever was appended, the last record of each key stays, and nothing moves."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compacting import DAY_MS, append_pairs, compact, expected, open_copy, records_of
from tests.storage_logs import SHM, batches_of, kill
from zbroker.record.batch import batches_in
from zbroker.storage.clean_points import load_points, tombstones_before
from zbroker.storage.files import Files

KEYS = st.one_of(st.none(), st.sampled_from([b"a", b"b", b"c", b"d" * 40, b""]))
VALUES = st.one_of(st.none(), st.integers(0, 300).map(bytes))
BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=6), st.booleans(), st.booleans(), st.integers(-1, 2)
    ),
    min_size=1,
    max_size=25,
)
AGES = st.sampled_from([0, DAY_MS // 2, DAY_MS])
ROUNDS = st.lists(
    st.tuples(
        BATCHES,
        st.sampled_from([0, DAY_MS // 2, DAY_MS]),
        st.sampled_from([1 << 20, 4_000]),
        st.integers(0, 12_000),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(rounds=ROUNDS)
def test_the_last_record_of_each_key_stays_where_it_was(rounds: Any) -> None:
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as name:
        log = open_copy(Path(name) / "copy")
        wanted, epoch, now_ms, sequences = records_of(log), 1, 0, {0: 0, 1: 0, 2: 0}
        for batches, later_ms, memory_bytes, segment_bytes, dies in rounds:
            newest: dict[int, int] = {}
            before = log.log_end
            for pairs, is_rows, is_new_epoch, producer in batches:
                epoch += is_new_epoch
                who = {}
                if producer >= 0:
                    who = {"producer_id": producer, "producer_epoch": 0, "base_sequence": sequences[producer]}
                    sequences[producer] += len(pairs)
                append_pairs(log, pairs, epoch=epoch, is_rows=is_rows, **who)
            wanted += [one for one in records_of(log) if one[0] >= before]
            log.roll()
            log.flush()
            for header in log.headers_from(0):
                newest[header.producer_id] = header.next_offset
            now_ms += later_ms
            horizon = tombstones_before(load_points(log.directory, Files()), now_ms, DAY_MS)
            starts = list(log.epochs.starts)
            sizes = {"segment_bytes": max(4096, segment_bytes), "delete_retention_ms": DAY_MS}
            todo = {"now_ms": now_ms, "memory_bytes": memory_bytes, **sizes}
            done = compact(log, is_needed=partial(_is_newest, newest), **todo)
            assert done is not None
            wanted = expected(wanted, done.end_offset, tombstones_before=horizon)
            assert records_of(log) == wanted
            ends = {header.producer_id: header.next_offset for header in log.headers_from(0)}
            assert {who: end for who, end in ends.items() if who >= 0} == {w: e for w, e in newest.items() if w >= 0}
            _check_reading(log, wanted)
            content = b"".join(batches_of(log))
            if dies:
                kill(log)
                log = open_copy(Path(name) / "copy")
            else:
                log.close()
                log = open_copy(Path(name) / "copy")
                assert log.recovery.is_clean
            assert b"".join(batches_of(log)) == content
            assert log.epochs.starts == starts
            log.epochs.path.unlink()
            log.close()
            log = open_copy(Path(name) / "copy")
            assert log.epochs.starts == starts, "the log alone tells the same epochs"
        log.close()


def _is_newest(newest: dict[int, int], producer_id: int, next_offset: int) -> bool:
    return newest.get(producer_id) == next_offset


def _check_reading(log: Any, wanted: Any) -> None:
    following = log.log_start
    for data in batches_of(log):
        (_, header), *_ = batches_in(data)
        assert header.base_offset == following, "the offsets of batches go on without a gap"
        following = header.next_offset
    for offset in range(log.log_start, log.log_end):
        base, position = log.position_of(offset)
        found = log.range_from(offset, 1)
        assert (found.segment_base, found.position) == (base, position)
        assert found.end_offset > offset
    for at_ms in range(1_000, 1_000 + log.log_end, 3):
        found_at = log.offset_for_time(at_ms, log.log_end)
        later = [one for one in wanted if one[3] >= at_ms]
        assert (found_at is None) == (not later)
        if later:
            assert found_at is not None
            assert found_at[0] <= later[0][0]
