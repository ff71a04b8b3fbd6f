"""One fdatasync of a log, cut into a part for any thread and a part for the log's own.

Guarantees: `run` touches nothing but its own duplicates of the descriptors, so the log goes on appending meanwhile.
What it makes durable is what had been appended when the job was made. An error is kept, not raised: `Log.finish_flush`
raises it, and the copy is done for, because after a failed sync the kernel calls the lost pages clean.
"""

from __future__ import annotations

from typing import Final

from zbroker.errors import BrokerError, TooManyOpenFilesError
from zbroker.storage.epochs import Epochs
from zbroker.storage.files import Files

FLUSH_SEGMENTS_MAX: Final = 64  # each takes a descriptor until the job has run


class FlushJob:
    """Make a log durable up to `end_offset`. Use it once: `run`, then `Log.finish_flush`."""

    def __init__(self, files: Files, epochs: Epochs | None, *, end_offset: int) -> None:
        self.end_offset = end_offset
        self.error: BrokerError | None = None
        self.epochs_version = -1
        self.cut_count = 0  # how often the log had been cut when the job was made
        self._epochs = epochs
        self._files = files
        self._fds: list[int] = []

    def add(self, fd: int, end_offset: int) -> None:
        """Sync this file too; it reaches up to `end_offset`. Raises TooManyOpenFilesError, and the job is void then."""
        try:
            self._fds.append(self._files.duplicate(fd))
        except BrokerError:
            for taken in self._fds:
                self._files.close(taken)
            raise
        self.end_offset = end_offset

    def run(self) -> None:
        """Sync, in any thread. Returns when the bytes are on the device, or `error` says why not."""
        for fd in self._fds:
            if self.error is None:
                try:
                    self._files.fdatasync(fd)
                except BrokerError as error:
                    self.error = error
            self._files.close(fd)
        self._fds = []
        if self._epochs is not None and self.error is None:
            try:
                self.epochs_version = self._epochs.sync()
            except (TooManyOpenFilesError, FileNotFoundError):
                pass  # the log carries every epoch itself: without the file the next start walks it
            except BrokerError as error:
                self.error = error
