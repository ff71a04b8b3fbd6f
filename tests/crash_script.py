"""A life of a copy and of a metadata log, drawn from a seed, and what its files must hold whenever that life ends.

One step is one operation that changes files: append one batch or several copied ones, roll, flush at once or in two
halves, save the high watermark, save the producer snapshot, retain, delete what was retained, cut the log to another
history, begin it anew, close and open again, append to the metadata log or replace it by a snapshot.

`Promises` says before a step what may be true while it runs, and after it what is true from then on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from tests.storage_logs import SMALL, append_batch, batches_of, make_batch
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.core.entries import AnyEntry, Booted, ClusterCreated
from zbroker.record.batch import batches_in
from zbroker.record.layout import BatchHeader
from zbroker.storage import producer_snapshot
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import PRODUCERS, SNAPSHOT_BYTES_MAX, KnownProducer, unpack_snapshot
from zbroker.workers.metadata_log import MetadataLog

STEPS = 60
CONFIG = TopicConfig(**SMALL, retention_bytes=9_000, retention_ms=-1, file_delete_delay_ms=0)  # type: ignore[arg-type]  # the settings' types are TopicConfig's


class Written:
    """A batch of the history: its bytes, its offsets, and a sum of everything up to it."""

    __slots__ = ("base_offset", "data", "epoch", "next_offset", "sum")

    def __init__(self, data: bytes, header: BatchHeader, before: int) -> None:
        self.data = data
        self.base_offset = header.base_offset
        self.next_offset = header.next_offset
        self.epoch = header.leader_epoch
        self.sum = crc32(data, before)


class Promises:
    """What was promised. Ends are log ends: `cached_end` outlives the process, `synced_end` the power."""

    def __init__(self) -> None:
        self.history: list[Written] = []
        self.start_min = self.start_max = 0
        self.cached_end = self.synced_end = self.end_max = 0
        self.other_ends: set[int] = set()
        self.entries: list[AnyEntry] = []
        self.entries_max: list[AnyEntry] = []
        self.entries_synced = 0
        self.snapshots: list[list[AnyEntry]] = []

    def settle(self, log: CopiedLog) -> None:
        """A step has returned: the log is what it says."""
        self.history = [one for one in self.history if one.next_offset <= log.log_end]
        self.start_min = self.start_max = log.log_start
        self.cached_end = self.end_max = log.log_end
        # What was deleted before it was synced is durable for the log, but its offsets may come again.
        self.synced_end = log.durable_end if log.durable_end > log.log_start else min(self.synced_end, log.log_end)
        self.other_ends = set()

    def sum_at(self, offset: int) -> int:
        """A sum of all batches below an offset."""
        return next((one.sum for one in reversed(self.history) if one.next_offset <= offset), 0)


class Life:
    """Runs the steps of a seed. `files` may end it at any call by an exception that is no Exception."""

    def __init__(self, directory: Path, files: Files, seed: int) -> None:
        self.promises = Promises()
        self.directory = directory
        self.log: CopiedLog | None = None
        self._files = files
        self._generator = random.Random(seed)
        self._clock = ManualClock()
        self._epoch = 1
        self._count = 0

    def run(self, steps: int = STEPS) -> None:
        """All steps, and a clean close."""
        log = self.log = self._open()
        metadata = self._open_metadata()
        names = self._names(steps)
        for name in names:
            if name == "metadata":
                self._append_metadata(metadata)
                continue
            if name == "metadata_snapshot":
                self._replace_metadata(metadata)
                continue
            step: Callable[[CopiedLog], CopiedLog | None] = getattr(self, f"_{name}")
            log = self.log = step(log) or log
            self.promises.settle(log)
        log.close()
        metadata.close()

    def _names(self, steps: int) -> list[str]:
        """Each kind of step at least once, appends most of the time."""
        rare = ["roll", "retain", "truncate_before", "cut", "cut", "begin_anew", "reopen", "snapshot", "new_epoch"]
        rare += ["flush", "flush", "flush_in_halves", "save", "copy", "metadata", "metadata", "metadata_snapshot"]
        common = ["append"] * 5 + ["copy", "flush", "save", "metadata"]
        names = rare + self._generator.choices(common, k=steps - len(rare))
        self._generator.shuffle(names)
        return names

    # --- the log -----------------------------------------------------------------------------------------------------

    def _open(self) -> CopiedLog:
        return open_copy(self.directory, self._files, self._clock)

    def _batch(self, base_offset: int, epoch: int) -> bytearray:
        self._count += 1
        count = self._generator.randint(1, 4)
        values = [b"%d.%d." % (self._count, number) for number in range(count)]
        padding = self._generator.choice((0, 60, 600))
        return make_batch(base_offset, [value.ljust(padding, b".") for value in values], epoch=epoch)

    def _note(self, data: bytes) -> list[BatchHeader]:
        headers = []
        for position, header in batches_in(data):
            before = self.promises.history[-1].sum if self.promises.history else 0
            self.promises.history.append(Written(data[position : position + header.size_bytes], header, before))
            self.promises.end_max = header.next_offset
            headers.append(header)
        return headers

    def _append(self, log: CopiedLog) -> None:
        batch = self._batch(log.log_end, self._epoch)
        self._note(bytes(batch))
        append_batch(log, batch)

    def _copy(self, log: CopiedLog) -> None:
        data = b""
        end = log.log_end
        for epoch in (self._epoch, self._epoch, self._epoch + self._generator.randint(0, 1)):
            self._epoch = epoch
            batch = self._batch(end, epoch)
            end = next(header for _, header in batches_in(batch)).next_offset
            data += bytes(batch)
        log.append_copied(data, self._note(data))

    def _new_epoch(self, log: CopiedLog) -> None:
        self._epoch += self._generator.randint(1, 3)

    def _roll(self, log: CopiedLog) -> None:
        log.roll()

    def _flush(self, log: CopiedLog) -> None:
        log.flush()

    def _flush_in_halves(self, log: CopiedLog) -> None:
        job = log.begin_flush()
        self._append(log)
        self.promises.cached_end = log.log_end
        job.run()
        log.finish_flush(job)

    def _save(self, log: CopiedLog) -> None:
        log.save_high_watermark(log.log_end - self._generator.randint(0, log.log_end - log.log_start))

    def _snapshot(self, log: CopiedLog) -> None:
        known = KnownProducer(self.promises.sum_at(log.log_end), 0, 0, [])
        producer_snapshot.save(log.directory, self._files, log.log_end, [known])

    def _retain(self, log: CopiedLog) -> None:
        self.promises.start_max = log.log_end
        log.retain(0, log.log_end)
        log.unlink_deleted(1 << 62)

    def _truncate_before(self, log: CopiedLog) -> None:
        offset = self._generator.randint(log.log_start, log.log_end)
        self.promises.start_max = offset
        log.truncate_before(offset)

    def _cut(self, log: CopiedLog) -> None:
        """Another leader's history goes on below this one's end."""
        offset = self._generator.randint(max(log.log_start, log.log_end - 40), log.log_end)
        promises = self.promises
        end = log.batch_base(offset)
        promises.start_min = min(promises.start_min, end)
        promises.cached_end = min(promises.cached_end, end)
        promises.synced_end = min(promises.synced_end, end)
        log.truncate_to(offset)
        self._epoch += 1

    def _begin_anew(self, log: CopiedLog) -> None:
        """The leader's log begins behind this one's end."""
        promises = self.promises
        offset = log.log_end + self._generator.randint(1, 50)
        promises.cached_end = promises.synced_end = 0
        promises.start_max = offset
        promises.other_ends = {offset}
        log.reset_to(offset)
        promises.history = []
        self._epoch += 1

    def _reopen(self, log: CopiedLog) -> CopiedLog:
        log.close()
        return self._open()

    # --- the metadata log --------------------------------------------------------------------------------------------

    def _open_metadata(self) -> MetadataLog:
        self._files.make_directory(self.directory.with_name("metadata"))
        return MetadataLog.open(self.directory.with_name("metadata"), self._files)

    def _append_metadata(self, metadata: MetadataLog) -> None:
        promises = self.promises
        is_durable = self._generator.random() < 0.6
        entry: AnyEntry = Booted(f"boot-{len(promises.entries)}") if promises.entries else ClusterCreated("id")
        promises.entries_max = [*promises.entries, entry]
        metadata.append([entry], durable=is_durable)
        promises.entries = promises.entries_max
        if is_durable:
            promises.entries_synced = len(promises.entries)

    def _replace_metadata(self, metadata: MetadataLog) -> None:
        promises = self.promises
        snapshot = promises.entries[-1:]
        promises.snapshots = [snapshot]
        metadata.replace(snapshot)
        promises.entries = promises.entries_max = snapshot
        promises.entries_synced = len(snapshot)
        promises.snapshots = []


def open_copy(directory: Path, files: Files, clock: ManualClock | None = None) -> CopiedLog:
    """Open a copy as a worker does: the log, then what is known of its producers."""
    log = CopiedLog.open(directory, CONFIG, files, clock or ManualClock())
    producer_snapshot.load(log, files)
    return log


def check_copy(log: CopiedLog, files: Files, promises: Promises, *, has_power: bool) -> list[bytes]:
    """The log holds what was promised; its batches. `has_power`: only the process died, not the host."""
    found = batches_of(log)
    ends = (promises.cached_end if has_power else promises.synced_end, promises.end_max)
    assert ends[0] <= log.log_end <= ends[1] or log.log_end in promises.other_ends, f"ends at {log.log_end}: {ends}"
    assert log.log_start <= max(promises.start_max, log.log_end)
    if has_power:
        assert log.log_start >= min(promises.start_min, log.log_end), f"deleted records came back: {log.log_start}"
    history = [one for one in promises.history if one.next_offset > log.log_start and one.next_offset <= log.log_end]
    assert found == [one.data for one in history], f"{len(found)} batches from {log.log_start} to {log.log_end}"
    starts: dict[int, int] = {}
    for one in history:
        starts.setdefault(one.epoch, max(one.base_offset, log.log_start))
    known = {epoch: max(offset, log.log_start) for epoch, offset in log.epochs.starts}
    assert {epoch: known.get(epoch) for epoch in starts} == starts, f"epochs {log.epochs.starts}, not {starts}"
    _check_producers(log, files, promises)
    return found


def _check_producers(log: CopiedLog, files: Files, promises: Promises) -> None:
    """Of a snapshot, either nothing is known or what its offset's history says."""
    known, headers = producer_snapshot.load(log, files)
    data = files.read_file(log.directory / PRODUCERS, SNAPSHOT_BYTES_MAX)
    if known:
        assert data is not None
        offset = unpack_snapshot(data)[0]  # type: ignore[index]  # it was loaded from these bytes
        assert [one.producer_id for one in known] == [promises.sum_at(offset)], f"not a snapshot of {offset}"
        assert all(header.next_offset > offset for header in headers)


def check_metadata(directory: Path, files: Files, promises: Promises, *, has_power: bool) -> None:
    """The metadata log holds what was promised."""
    if not promises.entries_max and not has_power:
        return
    files.make_directory(directory)
    log = MetadataLog.open(directory, files)
    log.close()
    found = log.entries
    least = len(promises.entries) if has_power else promises.entries_synced
    is_prefix = found == promises.entries_max[: len(found)] and len(found) >= least
    assert is_prefix or found in promises.snapshots, f"{found}, where {least} of {promises.entries_max} were promised"
