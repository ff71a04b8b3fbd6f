"""What one copy knows of producers: loaded with its log, noted with every batch, saved now and then.

Guarantees: after `load` and after each `note` the state is that of the log's batches; a snapshot on the disk never
tells of more than the log has. A copy that follows keeps it like one that leads, so that it can lead at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from zbroker.clock import Clock
from zbroker.config.schema import TopicConfig
from zbroker.core.dedup import Appended, Producer, Sequences
from zbroker.errors import BrokerError
from zbroker.record.layout import BatchHeader
from zbroker.storage import producer_snapshot
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import KnownBatch, KnownProducer


class ProducerState:
    """See the module. `sequences` is what the partition's state machine asks."""

    def __init__(self, log: CopiedLog, files: Files, clock: Clock, config: TopicConfig, expiration_ms: int) -> None:
        """Read the state of an open log."""
        self._log = log
        self._files = files
        self._clock = clock
        self._expiration_ms = expiration_ms
        self._saved_version = -1
        self._saved_offset = -1
        self.sequences = self._empty(config)
        self._load()

    def _empty(self, config: TopicConfig) -> Sequences:
        return Sequences(
            expiration_ms=self._expiration_ms,
            window_ms=config.dedup_window_ms,
            window_entries_max=config.dedup_window_entries_max,
        )

    def _load(self) -> None:
        known, headers = producer_snapshot.load(self._log, self._files)
        for one in known:
            batches = [Appended(*batch) for batch in one.batches]
            self.sequences.restore(one.producer_id, Producer(one.epoch, batches, one.used_ms))
        self.note_all(headers)

    def reload(self, config: TopicConfig) -> None:
        """The log was cut: read the state anew."""
        self.sequences = self._empty(config)
        self._saved_version = self._saved_offset = -1
        self._load()

    def configure(self, config: TopicConfig) -> None:
        """Take a topic's changed settings."""
        self.sequences.configure(
            expiration_ms=self._expiration_ms,
            window_ms=config.dedup_window_ms,
            window_entries_max=config.dedup_window_entries_max,
        )

    def note_all(self, headers: Iterable[BatchHeader]) -> None:
        """Stamped batches were appended, in this order."""
        now_ms = self._clock.wall_ms()
        for header in headers:
            if header.producer_id >= 0:
                self.sequences.note(header, header.base_offset, now_ms)

    def note(self, header: BatchHeader, base_offset: int) -> None:
        """A batch was appended at `base_offset`; its header may be the one from before the stamp."""
        if header.producer_id >= 0:
            self.sequences.note(header, base_offset, self._clock.wall_ms())

    def tick(self) -> None:
        """Forget who is too old."""
        self.sequences.expire(self._clock.wall_ms())

    @property
    def is_saved(self) -> bool:
        """Whether the snapshot tells all that is known, or there is nothing to tell."""
        return self._log.log_end == 0 or not self._is_new()

    def _is_new(self) -> bool:
        sequences = self.sequences
        is_older = len(sequences) == 0 and self._log.log_end != self._saved_offset
        return sequences.version != self._saved_version or is_older

    def save(self) -> None:
        """Write the snapshot if there is something new to tell. A full disk keeps the older one, which stays true."""
        sequences, log_end = self.sequences, self._log.log_end
        if log_end == 0:
            return  # Nothing was ever appended: there is nothing to tell, and a thousand new partitions write no file.
        if not self._is_new():
            return
        known = [
            KnownProducer(producer_id, found.used_ms, found.epoch, [KnownBatch(*batch) for batch in found.batches])
            for producer_id, found in sequences.producers()
        ]
        try:
            producer_snapshot.save(self._log.directory, self._files, log_end, known)
        except BrokerError:
            return
        self._saved_version, self._saved_offset = sequences.version, log_end
