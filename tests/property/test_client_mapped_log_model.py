"""The mapped reader against a list of records: appends, rolls, deletions, seeks in any order, and the same records."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_client_mapped_log import Writer
from zbroker.client.mapped_log import Mappings, SegmentMissingError

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 12), st.integers(0, 300)),
        st.tuples(st.just("read"), st.integers(1, 5000), st.just(0)),
        st.tuples(st.just("seek"), st.integers(0, 1000), st.just(0)),
        st.tuples(st.just("delete"), st.integers(0, 1000), st.just(0)),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, count_max=st.integers(1, 3))
def test_a_reader_sees_exactly_what_was_appended(steps: list[tuple[str, int, int]], count_max: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        writer = Writer(Path(directory) / "copy", index_interval_bytes=64)
        reader = writer.reader(Mappings(count_max))
        values: list[bytes] = []
        offset = 0
        for kind, number, size_bytes in steps:
            log = writer.log
            if kind == "append":
                batch = [b"%d:" % (len(values) + index) + b"x" * size_bytes for index in range(number)]
                writer.append(*batch)
                values += batch
            elif kind == "seek":
                offset = log.log_start + number % (log.log_end - log.log_start + 1)
            elif kind == "delete":
                log.truncate_before(log.log_start + number % (log.log_end - log.log_start + 1))
            elif offset >= log.log_start:
                batches = reader.read(offset, writer.frontier, number)
                assert bool(batches) == (offset < log.log_end)
                for found in batches:
                    assert found.base_offset <= offset <= found.last_offset
                    for record in found.records_from(offset):
                        assert record.offset == offset
                        assert record.value == values[offset]
                        offset += 1
            else:
                # The board refuses what lies below the start; who asks all the same finds old bytes or none.
                try:
                    found_below = reader.read(offset, writer.frontier, number)
                except SegmentMissingError:
                    found_below = []
                assert all(record.value == values[record.offset] for batch in found_below for record in batch)
                offset = log.log_start
        writer.log.close()
