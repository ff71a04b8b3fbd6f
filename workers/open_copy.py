"""An open copy of a partition, whatever this process is to it: its log, its cell on the board, what is known of its
producers, and what housekeeping does for it. `Leader` and `Follower` are this with a state machine.

Guarantees: a copy whose files are done for (a failed fsync, bytes that cannot be taken back, damage) is reported to the
coordinator until it answers. Damage found while it is open is marked on the disk: whoever opens the copy next knows.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError, CopyDamagedError, CorruptRecordError
from zbroker.shm.layout import Counter
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.retention import remove_copy
from zbroker.wire.inner_messages import CopySuspect, PartitionGrant
from zbroker.workers.host import Host
from zbroker.workers.producer_state import ProducerState

SUSPECT_MARK: Final = "suspect"
DAMAGED: Final = ".damaged"
REPORT_AGAIN_MS: Final = 200
FLUSH_PAUSE_MAX_MS: Final = 2.0

Key = tuple[int, int]


class OpenCopy(ABC):
    """See the module. The loop's thread alone calls it."""

    __slots__ = (
        "_cell",
        "_flush_took_ms",
        "_host",
        "_is_reported",
        "_saved_high_watermark",
        "_settled_at",
        "_settled_until_ms",
        "_unlink_at_ns",
        "copy_id",
        "device",
        "directory",
        "is_open",
        "key",
        "log",
        "partition",
        "producers",
        "topic",
        "topic_id",
    )

    def __init__(self, host: Host, grant: PartitionGrant, log: CopiedLog, producers: ProducerState) -> None:
        """Take over an open log. Raises PolicyViolationError when the board has no cell left."""
        self._host = host
        self.topic, self.topic_id = grant.topic, grant.topic_id
        self.partition, self.copy_id = grant.partition, grant.copy_id
        self.key: Key = (grant.topic_id, grant.partition)
        self.directory = grant.directory
        self.device = os.stat(grant.directory).st_dev
        self.log = log
        self.producers = producers
        self._cell = host.board.claim(self.topic_id, self.partition)
        self._saved_high_watermark = log.saved_high_watermark
        self._settled_at: tuple[int, int] | None = None  # log end and last append, of which everything is saved
        self._settled_until_ms = 0
        self._unlink_at_ns = 0
        self._flush_took_ms = 0.0
        self.is_open = True
        self._is_reported = False

    @property
    @abstractmethod
    def high_watermark(self) -> int:
        """Readers see everything before it."""

    @property
    @abstractmethod
    def leader_epoch(self) -> int:
        """The epoch that this copy leads or follows in."""

    @property
    def is_whole(self) -> bool:
        """Whether its files can be used."""
        return self.log.failure is None

    @property
    def is_flushing(self) -> bool:
        """Whether an fdatasync is under way that somebody may wait for."""
        return False

    @abstractmethod
    def tick(self) -> None:
        """Time went on."""

    def save_high_watermark(self) -> None:
        """Write the high watermark to the copy's checkpoint, if it has moved since the last time."""
        high_watermark = min(self.high_watermark, self.log.log_end)
        if high_watermark == self._saved_high_watermark or not self.is_whole:
            return
        try:
            self.log.save_high_watermark(high_watermark)
        except BrokerError as error:
            self.fail(error)
            return
        self._saved_high_watermark = high_watermark

    @property
    def is_settled(self) -> bool:
        """Whether `save` has nothing to do: all is saved, and nothing has happened since."""
        log = self.log
        is_same = (log.log_end, log.last_append_ns) == self._settled_at
        return is_same and self._host.clock.wall_ms() <= self._settled_until_ms

    @property
    def is_untouched(self) -> bool:
        """Whether retention has nothing to do: there never was a record, or all is gone and unlinked."""
        return self.log.log_end == 0 and self._unlink_at_ns == 0

    def save(self) -> None:
        """What is saved every few seconds, so that the next start is quick."""
        log = self.log
        now = (log.log_end, log.last_append_ns)
        self.save_high_watermark()
        if self.is_whole:
            self.producers.tick()
            self.producers.save()
        is_settled = self.is_whole and self._saved_high_watermark == log.log_end and self.producers.is_saved
        self._settled_at = now if is_settled else None
        self._settled_until_ms = self.producers.sequences.quiet_until_ms

    @abstractmethod
    def retain(self, wall_ms: int) -> None:
        """Let go of what the topic's settings let go."""

    def free_bytes(self) -> int:
        """Room on the file system that holds the copy; plenty when it cannot be asked."""
        try:
            found = os.statvfs(self.directory)
        except OSError:
            return 1 << 62
        return found.f_bavail * found.f_frsize

    def may_replace_below(self, offset: int) -> bool:
        """Whether nobody is being told of positions before an offset in our files."""
        return True

    def files_replaced(self) -> None:
        """Compaction has put other files in the place of some, which are unlinked soon."""
        self._unlink_at_ns = self._host.clock.now_ns() + self.log.config.file_delete_delay_ms * NS_PER_MS
        self.show_files()

    @abstractmethod
    def show_files(self) -> None:
        """Show what the files are now, and sync what is sealed."""

    def has_files_to_unlink(self, now_ns: int) -> bool:
        """Whether deleted segments have waited long enough; then it says so once, and the caller unlinks them."""
        is_due = 0 < self._unlink_at_ns <= now_ns
        if is_due:
            self._unlink_at_ns = 0
        return is_due

    def reconfigure(self, config: TopicConfig) -> None:
        """Apply the topic's settings from now on."""
        self.log.configure(config)
        self.producers.configure(config)
        self._settled_at = None

    def revoke(self) -> None:
        """Neither lead nor follow any more; the cell is given back. The caller closes or deletes `log`."""
        self.stop()
        self.give_cell_back()

    @abstractmethod
    def stop(self) -> None:
        """Neither lead nor follow any more, but leave the cell as it is: who takes the log over shows it on another
        one, and then has this one given back."""

    def give_cell_back(self) -> None:
        """After the end: the board shows this copy no more."""
        self._host.board.free(self._cell)

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Files did not do what they were asked."""

    @abstractmethod
    def found_damage(self, error: BrokerError) -> None:
        """Bytes below the high watermark are not what was written."""

    def close(self, *, clean: bool) -> None:
        """Close the copy at the end of the process; `clean` syncs it first, so that the next start need not read it."""
        high_watermark = min(self.high_watermark, self.log.log_end)
        is_whole = self.is_whole
        self.revoke()
        if is_whole:
            self.log.save_high_watermark(high_watermark)
            if clean:
                self.producers.save()
        self.log.close(clean=is_whole and clean)

    # --- for those who inherit ---------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self.is_open = False
        self._host.attention.copied.discard(self)

    def _flush_log(
        self,
        on_flushed: Callable[[int], None],
        on_not_begun: Callable[[BrokerError], None],
        *,
        is_shared: bool = False,
    ) -> None:
        """Sync in the disk's thread, at the end of this turn; `fail` is called when that fails, and then nothing else.

        `is_shared`: later by as long as the last sync took, so that more of those who ask again share this one.
        """
        pause_ms = min(self._flush_took_ms, FLUSH_PAUSE_MAX_MS) if is_shared else 0.0
        self._host.loop.call_after(pause_ms, lambda: self._begin_flush(on_flushed, on_not_begun))

    def _begin_flush(self, on_flushed: Callable[[int], None], on_not_begun: Callable[[BrokerError], None]) -> None:
        if not self.is_open:
            return
        try:
            job = self.log.begin_flush()
        except BrokerError as error:
            on_not_begun(error)
            self.fail(error)
            return
        begin_ns = self._host.clock.now_ns()

        def done(_: object, error: BaseException | None) -> None:
            if not self.is_open:
                return
            try:
                if error is not None:
                    raise error
                durable = self.log.finish_flush(job)
            except BrokerError as caught:
                self.fail(caught)
                return
            self._flush_took_ms = (self._host.clock.now_ns() - begin_ns) / NS_PER_MS
            on_flushed(durable)

        self._host.disk.submit(job.run, done)
        self._host.board.count(Counter.FSYNCS)

    def _note_deleted(self, count_before: int, delay_ms: int) -> None:
        self._host.board.count(Counter.SEGMENTS_DELETED, max(0, count_before - self.log.segment_count))
        self._unlink_at_ns = self._host.clock.now_ns() + delay_ms * NS_PER_MS

    def _mark_suspect(self) -> None:
        try:
            self._host.files.replace_file(Path(self.directory) / SUSPECT_MARK, b"", durable=True)
        except BrokerError as error:
            self._say(logging.ERROR, "damage could not be marked", error)

    def _report_suspect(self, error: BrokerError, on_noted: Callable[[], None]) -> None:
        """Tell the coordinator until it answers; once is enough."""
        if self._is_reported:
            return
        self._is_reported = True
        report = CopySuspect(self.topic_id, self.partition, self.copy_id, error.message[:1000])

        def answered(refusal: BrokerError | None, _: bytes) -> None:
            if not self.is_open:
                return
            if refusal is None:
                on_noted()
            else:
                self._host.loop.call_after(REPORT_AGAIN_MS, again)

        def again() -> None:
            if self.is_open:
                self._host.ask_coordinator(report, answered)

        again()

    def _say(self, level: int, what: str, error: BaseException | None) -> None:
        if not self._host.once.allows(f"{what} {self.topic_id} {self.partition}", self._host.clock.now_ns()):
            return
        where: dict[str, object] = {"topic": self.topic, "partition": self.partition}
        if error is not None:
            where["error"] = error
        logging.getLogger(__name__).log(level, "%s", what, extra=where)


def check_not_suspect(directory: Path, files: Files) -> None:
    """Raise CopyDamagedError for a copy in which damage was found while it was open."""
    if files.read_file(directory / SUSPECT_MARK, 0) is not None:
        raise CopyDamagedError(f"{directory} was found damaged, and has not been fetched again since")


def set_aside(directory: Path, error: BrokerError, files: Files) -> None:
    """Keep a damaged copy's files beside its place until the next one's are set aside: the leader has the records.

    The mark of what was lost comes first and stays: who dies meanwhile does not come back as a sound and empty copy.
    """
    aside = directory.with_name(directory.name + DAMAGED)
    where = {"error": error, "aside": aside}
    logging.getLogger(__name__).error("a damaged copy is set aside, and fetched again", extra=where)
    files.replace_file(directory / SUSPECT_MARK, b"", durable=True)
    remove_copy(aside, files)
    files.make_directory(aside)
    for name in files.list_directory(directory):
        if name != SUSPECT_MARK:
            files.rename(directory / name, aside / name)


def is_damage(error: BaseException) -> bool:
    """Whether an error says that bytes are wrong, not that they cannot be had."""
    return isinstance(error, CorruptRecordError | CopyDamagedError)
