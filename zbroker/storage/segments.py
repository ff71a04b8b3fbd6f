"""The segments of one log, oldest first: which one holds an offset, how one begins and how the oldest go.

Guarantees: there is always at least one, and the last one is active; each begins where the one before it ends. Adding
and removing either happened or raised with nothing changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from zbroker.clock import Clock
from zbroker.config.schema import TopicConfig
from zbroker.errors import BrokerError
from zbroker.storage.files import Files
from zbroker.storage.handles import Handles
from zbroker.storage.retention import DeletedFiles
from zbroker.storage.segment import Segment
from zbroker.storage.store import DiskSpace


class Segments:
    """A list of segments that knows the sum of their sizes."""

    def __init__(
        self, directory: Path, config: TopicConfig, files: Files, clock: Clock, handles: Handles, space: DiskSpace
    ) -> None:
        self.directory = directory
        self.config = config
        self.active: Segment
        self.size_bytes = 0
        self.deleted = DeletedFiles(files)
        self._files = files
        self._clock = clock
        self._handles = handles
        self._space = space
        self._segments: list[Segment] = []
        self._bases: list[int] = []
        self._candidates: list[Segment] = []

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    @property
    def first_base(self) -> int:
        """Base offset of the oldest segment."""
        return self._bases[0]

    def take(self, segments: list[Segment]) -> None:
        """Begin with these."""
        assert segments
        self._candidates = []
        self._segments = segments
        self._bases = [segment.base_offset for segment in segments]
        self.active = segments[-1]
        self.size_bytes = sum(segment.size_bytes for segment in segments)

    def make(self, base_offset: int) -> Segment:
        """A segment of this log that is not part of it yet; its files are untouched."""
        segment = Segment(
            self.directory,
            base_offset,
            self._files,
            self._handles,
            self._space,
            segment_bytes=self.config.segment_bytes,
            index_interval_bytes=self.config.index_interval_bytes,
        )
        self._candidates.append(segment)
        return segment

    def configure(self, config: TopicConfig) -> None:
        """Take changed settings; the active segment follows the new sizes at once."""
        self.config = config
        self.active.store.limit = config.segment_bytes
        self.active.indexes.interval_bytes = config.index_interval_bytes

    def of(self, offset: int) -> Segment:
        """The segment that holds an offset, or the active one for the log end."""
        return self._segments[bisect_right(self._bases, offset) - 1]

    def roll(self) -> Segment:
        """Seal the active segment and begin another at its end. An empty one stays. On an error nothing changed."""
        active = self.active
        if active.next_offset == active.base_offset:
            return active
        segment = self.make(active.next_offset)
        try:
            segment.create()
            active.store.seal()
        except BrokerError:
            segment.release()
            for path in segment.paths:
                self._files.unlink(path)
            raise
        finally:
            self._candidates = []
        active.seal()
        self._segments.append(segment)
        self._bases.append(segment.base_offset)
        self.active = segment
        return segment

    def drop_oldest(self, count: int) -> None:
        """Delete the oldest segments, but never the active one."""
        assert 0 <= count < len(self._segments)
        gone = self._segments[:count]
        del self._segments[:count]
        del self._bases[:count]
        self.size_bytes -= sum(segment.size_bytes for segment in gone)
        self.retire(gone)

    def replace(self, old: list[Segment], new: Segment) -> None:
        """A sealed segment is there in place of some that follow on each other and are retired already."""
        number = self._segments.index(old[0])
        assert self._segments[number : number + len(old)] == old
        self._segments[number : number + len(old)] = [new]
        self._bases[number : number + len(old)] = [new.base_offset]
        self._candidates = []
        self.size_bytes += new.size_bytes - sum(segment.size_bytes for segment in old)

    def retire(self, segments: list[Segment]) -> None:
        """Rename the files of segments that are not part of the log any more; they are unlinked after the delay."""
        for segment in segments:
            segment.release()
            self.deleted.add(segment.paths, now_ns=self._clock.now_ns(), delay_ms=self.config.file_delete_delay_ms)

    def release(self) -> None:
        """Close every file, those of segments that were made in vain too."""
        for segment in (*self._segments, *self._candidates):
            segment.release()
