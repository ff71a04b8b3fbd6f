"""The reader of mapped segment files, on logs that storage wrote."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from zbroker.client.batch_run import Decoding
from zbroker.client.mapped_log import Frontier, MappedLog, Mappings, SegmentMissingError, map_file
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.errors import CorruptRecordError, StorageError, TooManyOpenFilesError
from zbroker.record.batch import read_header, stamp
from zbroker.record.columns import encode_columns
from zbroker.record.view import RecordBatch
from zbroker.storage.files import Files
from zbroker.storage.layout import LOG, segment_name
from zbroker.storage.log import Log

EPOCH = 3


class Writer:
    """A log that is appended to, and what its leader would publish."""

    def __init__(self, directory: Path, *, segment_bytes: int = 4096, index_interval_bytes: int = 256) -> None:
        self.directory = directory
        config = TopicConfig(
            segment_bytes=segment_bytes, index_interval_bytes=index_interval_bytes, file_delete_delay_ms=0
        )
        self.log = Log.open(directory, config, Files(), ManualClock())

    def append(self, *values: bytes) -> int:
        """One batch; gives its base offset."""
        batch = bytearray(encode_columns(values, timestamp_ms=1_700_000_000_000))
        offset = self.log.log_end
        stamp(batch, offset, EPOCH)
        self.log.append(batch, read_header(batch))
        return offset

    def fill(self, batches: int, records: int = 3, size_bytes: int = 50) -> None:
        """Batches whose values name their offsets."""
        for _ in range(batches):
            start = self.log.log_end
            self.append(*(b"%d" % (start + index) + b"." * size_bytes for index in range(records)))

    @property
    def frontier(self) -> Frontier:
        """Everything that was appended."""
        return self.log.log_end, self.log.active_base, self.log.active_position

    def reader(self, mappings: Mappings | None = None, *, check_crcs: bool = True) -> MappedLog:
        """A reader of this log."""
        make = Decoding(check_crcs).maker("t", 0)
        return MappedLog(str(self.directory), Mappings() if mappings is None else mappings, make, "t:0")


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "copy")
    yield made
    made.log.close()


def read_all(reader: MappedLog, frontier: Frontier, offset: int = 0, max_bytes: int = 1 << 20) -> list[RecordBatch]:
    found: list[RecordBatch] = []
    while offset < frontier[0]:
        batches = reader.read(offset, frontier, max_bytes)
        assert batches, f"nothing at {offset} of {frontier}"
        found.extend(batches)
        offset = batches[-1].last_offset + 1
    return found


def offsets(batches: list[RecordBatch]) -> list[int]:
    return [record.offset for batch in batches for record in batch]


def test_every_record_of_every_segment_is_read_once_and_in_order(writer: Writer) -> None:
    writer.fill(100)
    assert writer.log.segment_count > 3
    found = read_all(writer.reader(), writer.frontier)
    assert offsets(found) == list(range(300))
    assert all(bytes(record.value or b"").startswith(b"%d." % record.offset) for batch in found for record in batch)


def test_nothing_at_the_high_watermark_or_behind_it_is_given_out(writer: Writer) -> None:
    writer.fill(4)
    _, base, position = writer.frontier
    reader = writer.reader()
    assert offsets(reader.read(0, (6, base, position), 1 << 20)) == [0, 1, 2, 3, 4, 5]
    assert reader.read(6, (6, base, position), 1 << 20) == []


def test_bytes_behind_the_boards_position_are_not_looked_at(writer: Writer) -> None:
    """A board whose position lies before the batch says less than its high watermark: that is damage, not data."""
    writer.fill(4)
    end, base, position = writer.frontier
    with pytest.raises(CorruptRecordError):
        read_all(writer.reader(), (end, base, position - 8))


def test_a_run_ends_after_the_bytes_that_were_asked_for(writer: Writer) -> None:
    writer.fill(10)
    reader = writer.reader()
    assert len(reader.read(0, writer.frontier, 1)) == 1
    assert 1 < len(reader.read(3, writer.frontier, 700)) < 9


def test_a_reader_at_the_tail_follows_appends_rolls_and_growing_files(writer: Writer) -> None:
    reader, seen = writer.reader(), 0
    for _ in range(120):
        writer.fill(1)
        for batch in read_all(reader, writer.frontier, seen):
            assert batch.base_offset == seen
            seen = batch.last_offset + 1
    assert seen == 360


def test_a_segment_mapped_while_it_was_short_is_read_to_its_end_after_it_was_sealed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "copy", segment_bytes=256 << 10)
    reader = writer.reader()
    writer.fill(1)
    assert offsets(reader.read(0, writer.frontier, 1)) == [0, 1, 2]  # 64 KiB are allocated, and mapped
    writer.fill(3000)
    assert writer.log.segment_count > 1
    assert offsets(read_all(reader, writer.frontier, 3)) == list(range(3, 9003))
    writer.log.close()


@pytest.mark.parametrize("index", ["sound", "absent", "garbage", "of another log"])
def test_seeking_finds_the_batch_of_every_offset_whatever_the_index_says(writer: Writer, index: str) -> None:
    writer.fill(60)
    for path in writer.directory.glob("*.index"):
        if index == "absent":
            path.unlink()
        elif index == "garbage":
            path.write_bytes(os.urandom(301))
        elif index == "of another log":
            path.write_bytes(b"".join(n.to_bytes(4, "big") + (n * 8).to_bytes(4, "big") for n in range(1, 50)))
    for offset in range(180):
        batch = writer.reader().read(offset, writer.frontier, 1)[0]
        assert batch.base_offset == offset - offset % 3


def test_batches_are_views_into_the_file_and_outlive_its_deletion(writer: Writer) -> None:
    writer.fill(100)
    mappings = Mappings()
    reader = writer.reader(mappings)
    batch = reader.read(0, writer.frontier, 1)[0]
    assert batch.raw().readonly
    writer.log.truncate_before(writer.log.active_base)
    for path in writer.directory.glob("*.deleted"):
        path.unlink()
    mappings.clear()
    assert [record.offset for record in batch] == [0, 1, 2]
    batch.release()


def test_a_deleted_range_is_reported_as_missing(writer: Writer) -> None:
    writer.fill(100)
    reader = writer.reader()
    writer.log.truncate_before(writer.log.active_base)
    with pytest.raises(SegmentMissingError):
        reader.read(0, writer.frontier, 1)
    assert offsets(reader.read(writer.log.active_base, writer.frontier, 1))[0] == writer.log.active_base


def test_a_deleted_directory_is_reported_as_missing(writer: Writer) -> None:
    writer.fill(1)
    reader = MappedLog("/nonexistent", Mappings(), Decoding().maker("t", 0), "t:0")
    with pytest.raises(SegmentMissingError):
        reader.read(0, writer.frontier, 1)


def test_at_most_so_many_segments_stay_mapped(writer: Writer) -> None:
    writer.fill(200)
    mappings = Mappings(3)
    assert offsets(read_all(writer.reader(mappings), writer.frontier)) == list(range(600))
    assert len(mappings) == 3


def damage(writer: Writer, offset: int, position_in_batch: int, bits: int = 0x10) -> None:
    base, position = writer.log.position_of(offset)
    with (writer.directory / f"{base:020d}.log").open("r+b") as file:
        file.seek(position + position_in_batch)
        byte = file.read(1)[0]
        file.seek(position + position_in_batch)
        file.write(bytes([byte ^ bits]))


def test_t04_a_damaged_body_is_an_error_that_names_the_offset_and_a_seek_skips_it(writer: Writer) -> None:
    writer.fill(20)
    damage(writer, 9, 80)
    reader = writer.reader()
    assert offsets(reader.read(0, writer.frontier, 1 << 20)) == list(range(9))
    for _ in range(2):
        with pytest.raises(CorruptRecordError, match=r"t:0.*offset 9\b"):
            reader.read(9, writer.frontier, 1 << 20)
    assert offsets(reader.read(12, writer.frontier, 1))[0] == 12


@pytest.mark.parametrize("position", [0, 5, 8, 11, 16, 23])
def test_t04_a_damaged_header_is_an_error_and_never_a_wrong_record(writer: Writer, position: int) -> None:
    writer.fill(20)
    damage(writer, 9, position)
    reader = writer.reader()
    assert offsets(reader.read(0, writer.frontier, 1 << 20)) == list(range(9))
    with pytest.raises(CorruptRecordError, match="t:0"):
        reader.read(9, writer.frontier, 1 << 20)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("start", [0, 9, 10])
def test_a_damaged_base_offset_which_no_crc_covers_gives_no_record_a_wrong_offset(
    writer: Writer, start: int, bits: int
) -> None:
    writer.fill(20)
    damage(writer, 9, 7, bits)
    reader = writer.reader()
    if start == 0:
        assert offsets(reader.read(0, writer.frontier, 1 << 20)) == list(range(9))
    with pytest.raises(CorruptRecordError, match=r"t:0.*offset (9|10)\b"):
        reader.read(max(start, 9), writer.frontier, 1 << 20)
    for after in 12, 14, 30:
        found = reader.read(after, writer.frontier, 1)[0]
        assert all(bytes(record.value or b"").startswith(b"%d." % record.offset) for record in found)


def test_crcs_can_be_left_unchecked(writer: Writer) -> None:
    writer.fill(1)
    damage(writer, 0, 120)
    with pytest.raises(CorruptRecordError):
        writer.reader().read(0, writer.frontier, 1)
    assert len(writer.reader(check_crcs=False).read(0, writer.frontier, 1)) == 1


def test_bytes_ahead_are_counted_within_the_segment_of_the_frontier(writer: Writer) -> None:
    writer.fill(2)
    reader = writer.reader()
    whole = reader.bytes_ahead(0, writer.frontier)
    assert whole == writer.log.active_position
    assert reader.bytes_ahead(3, writer.frontier) == whole // 2
    assert reader.bytes_ahead(6, writer.frontier) == 0
    writer.fill(60)
    assert reader.bytes_ahead(0, writer.frontier) is None


def test_an_empty_file_maps_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert len(map_file(str(tmp_path / "empty")).view) == 0


def mappings_of(path: Path) -> int:
    """How many mappings of a file this process has."""
    return Path("/proc/self/maps").read_text().count(str(path))


def test_a_file_that_grows_is_read_through_one_mapping_up_to_its_end(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / segment_name(0, LOG), 4096
    path.write_bytes(b"0" * size_bytes)
    mappings = Mappings()
    seen = [mappings.get(str(tmp_path), 0, 1)]
    for digit in b"1", b"2", b"3":
        with path.open("ab") as file:
            file.write(digit * size_bytes)
        seen.append(mappings.get(str(tmp_path), 0, len(seen[-1]) + 1))
        assert bytes(seen[-1][-size_bytes:]) == digit * size_bytes
    assert [len(view) for view in seen] == [n * size_bytes for n in (1, 2, 3, 4)]
    assert all(view.readonly for view in seen)
    assert mappings_of(path) == 2, "the first, and the one that reaches ahead"
    assert len(mappings.get(str(tmp_path), 0, 5 * size_bytes)) == 4 * size_bytes, "the file has no more"
    del seen[0]
    assert mappings_of(path) == 1
    mappings.clear()
    assert mappings_of(path) == 1, "views are in use"
    seen.clear()
    assert mappings_of(path) == 0


def test_a_file_in_place_of_one_that_was_mapped_is_mapped_anew(tmp_path: Path) -> None:
    path, other = tmp_path / segment_name(0, LOG), tmp_path / "other"
    mappings = Mappings()
    for number in range(1, 5):
        other.write_bytes(bytes([number]) * number)
        other.replace(path)
        assert bytes(mappings.get(str(tmp_path), 0, number)) == bytes([number]) * number


def test_without_address_space_to_spare_a_file_that_grows_is_mapped_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, mappings = tmp_path / segment_name(0, LOG), Mappings()
    monkeypatch.setattr("zbroker.client.mapped_log.AHEAD_BYTES", 1 << 50)  # more than there is
    for number in range(1, 5):
        path.write_bytes(b"x" * number)
        assert len(mappings.get(str(tmp_path), 0, number)) == number


def test_a_process_without_descriptors_gets_a_typed_error(writer: Writer) -> None:
    writer.fill(1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        with pytest.raises(TooManyOpenFilesError):
            map_file(str(writer.directory / f"{0:020d}.log"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_symbolic_link_in_place_of_a_segment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError):
        map_file(str(tmp_path / "link"))
