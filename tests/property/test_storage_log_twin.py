"""A log and its dumb twin, a list: whatever is done to both, a reader cannot tell them apart."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.storage_logs import RebootableFiles, append_batch, batches_of, make_batch, open_log
from zbroker.errors import OffsetOutOfRangeError
from zbroker.record.batch import batches_in, read_header
from zbroker.storage.log import Log

_ROOT = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


class LogAndTwin(RuleBasedStateMachine):
    """`batches` is the twin: every batch that the log should hold, deleted or not."""

    @initialize(interval=st.sampled_from([64, 300, 2_000]), segment=st.sampled_from([4_096, 8_192]))
    def begin(self, interval: int, segment: int) -> None:
        self.parent = Path(tempfile.mkdtemp(prefix="zbt-twin-", dir=_ROOT))
        self.segment_bytes, self.interval_bytes = segment, interval
        self.files = RebootableFiles()
        self.batches: list[bytes] = []
        self.start = 0
        self.epoch = 1
        self.clock_ms = 1_000
        self.log = self._open()

    def _open(self) -> Log:
        return open_log(
            self.parent / "p",
            files=self.files,
            retention_bytes=9_000,
            segment_bytes=self.segment_bytes,
            index_interval_bytes=self.interval_bytes,
        )

    @property
    def end(self) -> int:
        return read_header(self.batches[-1]).next_offset if self.batches else 0

    @rule(
        count=st.integers(1, 40),
        size_bytes=st.integers(0, 300),
        steps=st.integers(-500, 2_000),
        batches=st.integers(1, 12),
    )
    def append(self, count: int, size_bytes: int, steps: int, batches: int) -> None:
        for _ in range(batches):
            self.clock_ms = max(0, self.clock_ms + steps)
            batch = make_batch(self.end, [b"x" * size_bytes] * count, epoch=self.epoch, timestamp_ms=self.clock_ms or 1)
            self.batches.append(append_batch(self.log, batch))

    @rule()
    def lead_anew(self) -> None:
        self.epoch += 1
        self.log.epochs.note_epoch(self.epoch, self.log.log_end)

    @rule()
    def roll(self) -> None:
        self.log.roll()

    @rule()
    def flush(self) -> None:
        assert self.log.flush() == self.end

    @rule()
    def save_high_watermark(self) -> None:
        self.log.save_high_watermark(self.log.log_end)

    @rule()
    def retain(self) -> None:
        start = self.log.retain(0, self.log.log_end)
        assert start >= self.start
        kept = sum(len(batch) for batch in self.batches if read_header(batch).base_offset >= start)
        assert kept >= 9_000 or start == self.start
        self.start = start

    @rule(part=st.floats(0, 1))
    def delete_records(self, part: float) -> None:
        offset = self.start + int((self.end - self.start) * part)
        assert self.log.truncate_before(offset) == offset
        self.start = offset

    @rule()
    def close_and_open(self) -> None:
        self.log.close()
        self.log = self._open()
        assert self.log.recovery.is_clean

    @rule()
    def die_and_open(self) -> None:
        self.log.close(clean=False)
        self.log = self._open()

    @rule(junk=st.binary(min_size=1, max_size=300))
    def die_in_the_middle_of_an_append(self, junk: bytes) -> None:
        path = self.parent / "p" / f"{self.log.active_base:020d}.log"
        position = self.log.active_position
        self.log.close(clean=False)
        (self.parent / "p" / "clean-shutdown").unlink(missing_ok=True)
        with path.open("r+b") as file:
            file.seek(position)
            file.write(junk)
        self.log = self._open()

    @rule(part=st.floats(0, 1), max_bytes=st.integers(1, 5_000))
    def read(self, part: float, max_bytes: int) -> None:
        offset = self.start + int((self.end - self.start) * part)
        data = self.log.read(offset, max_bytes, self.end)
        expected = [batch for batch in self.batches if read_header(batch).next_offset > offset]
        found = [data[position : position + header.size_bytes] for position, header in batches_in(data)]
        assert found == expected[: len(found)]
        assert bool(found) == bool(expected)
        assert sum(map(len, found)) <= max(max_bytes, len(found[0]) if found else 0)
        for outside in (self.start - 1, self.end + 1):
            try:
                self.log.read(outside, 100, self.end)
            except OffsetOutOfRangeError:
                continue
            raise AssertionError(f"offset {outside} was read from {self.start} to {self.end}")

    @rule(part=st.floats(0, 1))
    def find_a_position(self, part: float) -> None:
        offset = self.start + int((self.end - self.start) * part)
        base, position = self.log.position_of(offset)
        if offset < self.end:
            data = (self.parent / "p" / f"{base:020d}.log").read_bytes()
            assert read_header(data, position).base_offset <= offset < read_header(data, position).next_offset
        else:
            assert (base, position) == (self.log.active_base, self.log.active_position)

    @rule(back_ms=st.integers(-3_000, 3_000))
    def find_a_time(self, back_ms: int) -> None:
        wanted = self.clock_ms - back_ms
        expected = None
        for header in map(read_header, self.batches):
            if header.next_offset > self.start and header.max_timestamp >= wanted:
                expected = max(self.start, header.base_offset), header.max_timestamp
                break
        assert self.log.offset_for_time(wanted, self.end) == expected

    @invariant()
    def a_reader_cannot_tell_them_apart(self) -> None:
        if not hasattr(self, "log"):
            return
        assert (self.log.log_start, self.log.log_end) == (self.start, self.end)
        found = batches_of(self.log)
        assert found == [batch for batch in self.batches if read_header(batch).next_offset > self.start]
        names = {path.name for path in (self.parent / "p").iterdir()}
        assert sum(name.endswith(".log") for name in names) == self.log.segment_count

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
            shutil.rmtree(self.parent)


LogAndTwin.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestALogAndItsTwin = LogAndTwin.TestCase
