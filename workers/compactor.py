"""Compaction of the topics that ask for it, slice by slice, one partition of the process at a time.

Guarantees: the loop only renames files; reading and writing is done by the disk's thread, in slices of `TICK_MS` worth
of `compaction_bytes_per_s` (or one batch, where that is larger), with a pause of `TICK_MS` between two, so that
neither the loop nor an fdatasync that somebody waits for stands behind more than one slice. Every copy compacts its own
files. A leader's segment is replaced only when every follower that is subscribed has what is in it: what it was told of
the old file, it has read. A copy that was cut or closed meanwhile gives the round up, and a later one begins anew.

Damage found on the way is the copy's business (`found_damage`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import StorageSection
from zbroker.errors import BrokerError
from zbroker.storage.compaction import Compaction, Rewritten, Settings, note_done, plan
from zbroker.workers.host import Host
from zbroker.workers.open_copy import Key, OpenCopy, is_damage

TICK_MS: Final = 20
WAIT_FOR_FOLLOWERS_MS: Final = 200
AGAIN_AFTER_ERROR_MS: Final = 60_000

_log = logging.getLogger(__name__)


class Compactor:
    """See the module. It starts with the first turn of the loop; nothing is done when `compaction_bytes_per_s` is 0."""

    def __init__(self, copies: Callable[[], Iterable[OpenCopy]], host: Host, settings: StorageSection) -> None:
        self._copies = copies
        self._host = host
        self._settings = settings
        self._slice_bytes = max(1, settings.compaction_bytes_per_s * TICK_MS // 1_000)
        self._round: _Round | None = None
        self._not_before_ns: dict[Key, int] = {}
        if settings.compaction_bytes_per_s:
            host.loop.call_every(settings.compaction_check_interval_ms, self.look)

    def look(self) -> None:
        """Begin the next round, unless one is under way."""
        if self._round is not None:
            return
        now_ns = self._host.clock.now_ns()
        waiting = [copy for copy in self._copies() if copy.log.config.compacts and copy.is_open and copy.is_whole]
        self._not_before_ns = {
            copy.key: self._not_before_ns[copy.key] for copy in waiting if copy.key in self._not_before_ns
        }
        for copy in waiting:
            if copy.log.durable_end < copy.log.active_base:
                copy.show_files()  # only what is synced is compacted, and nobody else may ask for it
            if now_ns >= self._not_before_ns.get(copy.key, 0) and self._begin(copy):
                return

    def _begin(self, copy: OpenCopy) -> bool:
        log, host, settings = copy.log, self._host, self._settings
        config = log.config
        try:
            upper, now_ms = copy.high_watermark, host.clock.wall_ms()
            todo = plan(log, host.files, config, high_watermark=upper, now_ms=now_ms)
        except BrokerError as error:
            self._gave_up(copy, error)
            return False
        if todo is None:
            return False
        limits = Settings(
            segment_bytes=config.segment_bytes,
            index_interval_bytes=config.index_interval_bytes,
            memory_bytes=settings.compaction_memory_bytes,
            disk_free_min_bytes=settings.disk_free_min_bytes,
            is_needed=copy.producers.sequences.is_newest,
        )
        work = Compaction(todo, log.directory, host.files, limits)
        self._round = _Round(copy, work, host, self._slice_bytes, self._ended)
        self._round.go_on()
        return True

    def _ended(self, copy: OpenCopy, error: BaseException | None) -> None:
        self._round = None
        if isinstance(error, BrokerError):
            self._gave_up(copy, error)
        elif error is not None:
            raise error

    def _gave_up(self, copy: OpenCopy, error: BrokerError) -> None:
        self._not_before_ns[copy.key] = self._host.clock.now_ns() + AGAIN_AFTER_ERROR_MS * NS_PER_MS
        where: dict[str, object] = {"topic": copy.topic, "partition": copy.partition, "error": error}
        _log.warning("compaction gave up", extra=where)
        if is_damage(error):
            copy.found_damage(error)
        elif copy.log.failure is not None:
            copy.fail(error)


class _Round:
    """One round of one copy."""

    def __init__(
        self,
        copy: OpenCopy,
        work: Compaction,
        host: Host,
        slice_bytes: int,
        on_end: Callable[[OpenCopy, BaseException | None], None],
    ) -> None:
        self._copy = copy
        self._work = work
        self._host = host
        self._slice_bytes = slice_bytes
        self._on_end = on_end
        self._cut_count = copy.log.cut_count
        self._swapped: list[Rewritten] = []

    def go_on(self) -> None:
        """Do the next slice."""
        if self._is_void():
            self._end(None)
            return
        self._host.disk.submit(lambda: self._work.step(self._slice_bytes), self._stepped)

    def _is_void(self) -> bool:
        copy = self._copy
        return not copy.is_open or not copy.is_whole or copy.log.cut_count != self._cut_count

    def _stepped(self, found: Rewritten | None, error: BaseException | None) -> None:
        if isinstance(error, FileNotFoundError) or (isinstance(error, BrokerError) and self._is_void()):
            self._end(None)  # a segment was deleted or cut meanwhile
        elif error is not None:
            self._end(error)
        elif found is not None:
            self._begin_swap(found)
        elif not self._work.is_done:
            self._host.loop.call_after(TICK_MS, self.go_on)
        elif self._is_void():
            self._end(None)
        else:
            self._note_done()

    def _begin_swap(self, new: Rewritten) -> None:
        log = self._copy.log
        if self._is_void():
            self._discard(new)
            return
        if not self._copy.may_replace_below(new.next_offset):
            self._host.loop.call_after(WAIT_FOR_FOLLOWERS_MS, lambda: self._begin_swap(new))
            return
        try:
            if not log.begin_swap(new):
                self._discard(new)
                return
        except BrokerError as error:
            self._end(error)
            return
        self._host.disk.submit(
            lambda: self._host.files.fsync_directory(log.directory), lambda _, error: self._synced(new, error)
        )

    def _synced(self, new: Rewritten, error: BaseException | None) -> None:
        if isinstance(error, BrokerError) and self._copy.log.failure is None:
            self._copy.log.failure = error
        if error is not None:
            self._end(error)
        else:
            self._finish_swap(new)

    def _finish_swap(self, new: Rewritten) -> None:
        if self._is_void():
            self._discard(new)
            return
        if not self._copy.may_replace_below(new.next_offset):
            self._host.loop.call_after(WAIT_FOR_FOLLOWERS_MS, lambda: self._finish_swap(new))
            return
        try:
            if not self._copy.log.finish_swap(new):
                self._discard(new)
                return
        except BrokerError as error:
            self._end(error)
            return
        self._copy.files_replaced()
        self._host.loop.call_after(TICK_MS, self.go_on)

    def _discard(self, new: Rewritten) -> None:
        try:
            self._copy.log.abandon_swap(new)
        except BrokerError as error:
            self._end(error)
            return
        self._end(None)

    def _note_done(self) -> None:
        log, work = self._copy.log, self._work
        try:
            note_done(log, self._host.files, log.config, work, now_ms=self._host.clock.wall_ms())
        except BrokerError as error:
            self._end(error)
            return
        where: dict[str, object] = {"topic": self._copy.topic, "partition": self._copy.partition}
        where |= {"below": work.end_offset, "bytes_before": work.bytes_before, "bytes_after": work.bytes_after}
        _log.info("compacted", extra=where)
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._work.close()
        self._on_end(self._copy, error)
