"""Which leader epoch began at which offset: Kafka's `leader-epoch-checkpoint`, in Kafka's text.

Guarantees: epochs and start offsets only rise; `end_offset_for` answers as KIP-101 and KIP-279 ask. The file is
replaced as a whole; the log knows better, because every batch carries its epoch, so that recovery corrects it.

    0            version
    2            number of lines that follow
    3 0          epoch 3 began at offset 0
    5 1200       epoch 5 began at offset 1200
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zbroker.storage.files import Files
from zbroker.storage.layout import EPOCH_LINES_MAX, EPOCHS

_VERSION = "0"
_FILE_BYTES_MAX = 1 << 26
NO_EPOCH = -1


class EpochStart(NamedTuple):
    """An epoch and the offset of its first record."""

    epoch: int
    start_offset: int


def format_epochs(starts: list[EpochStart]) -> bytes:
    """The file's text."""
    lines = [_VERSION, str(len(starts)), *(f"{epoch} {offset}" for epoch, offset in starts)]
    return ("\n".join(lines) + "\n").encode("ascii")


def parse_epochs(data: bytes) -> list[EpochStart] | None:
    """The inverse. None: not such a text, or one that contradicts itself."""
    try:
        version, count, *lines = data.decode("ascii").splitlines()
        starts = [EpochStart(*map(int, line.split())) for line in lines]
        if version != _VERSION or int(count) != len(starts) or len(starts) > EPOCH_LINES_MAX:
            return None
    except (ValueError, TypeError):
        return None
    for before, after in pairwise(starts):
        if after.epoch <= before.epoch or after.start_offset <= before.start_offset:
            return None
    return starts if all(epoch >= 0 and offset >= 0 for epoch, offset in starts) else None


class Epochs:
    """The epochs of one log."""

    def __init__(self, directory: Path, files: Files) -> None:
        self.path = directory / EPOCHS
        self._files = files
        data = files.read_file(self.path, _FILE_BYTES_MAX)
        found = parse_epochs(data) if data else None
        self.starts: list[EpochStart] = found or []
        self.is_saved = found is not None or data is None
        self.is_durable = self.is_saved
        self.version = 0

    @property
    def latest(self) -> int:
        """The newest epoch, or -1."""
        return self.starts[-1].epoch if self.starts else NO_EPOCH

    def epoch_at(self, offset: int) -> int:
        """The epoch that an offset belongs to, or -1 when it lies before the first known one."""
        number = bisect_right(self.starts, offset, key=lambda start: start.start_offset) - 1
        return self.starts[number].epoch if number >= 0 else NO_EPOCH

    def note_epoch(self, epoch: int, start_offset: int) -> None:
        """A leader of this epoch begins to append at this offset. An epoch that appended nothing is replaced."""
        if epoch == self.latest:
            return
        assert epoch > self.latest, f"epoch {epoch} after {self.latest}"
        while self.starts and self.starts[-1].start_offset >= start_offset:
            self.starts.pop()
        self.starts.append(EpochStart(epoch, start_offset))
        self._changed()

    def end_offset_for(self, epoch: int, log_end: int) -> tuple[int, int]:
        """(largest known epoch at or below `epoch`, the offset at which it ends). (-1, -1) when none is known."""
        number = bisect_right(self.starts, epoch, key=lambda start: start.epoch) - 1
        if number < 0:
            return NO_EPOCH, -1
        end = self.starts[number + 1].start_offset if number + 1 < len(self.starts) else log_end
        return self.starts[number].epoch, end

    def cut_end(self, log_end: int) -> None:
        """Forget epochs that begin at or behind the log end."""
        while self.starts and self.starts[-1].start_offset >= log_end:
            self.starts.pop()
            self._changed()

    def cut_start(self, log_start: int) -> None:
        """Forget epochs that ended before the log start; the one that the log start belongs to begins there."""
        number = bisect_right(self.starts, log_start, key=lambda start: start.start_offset) - 1
        if number >= 0 and self.starts[number].start_offset < log_start:
            self.starts[: number + 1] = [EpochStart(self.starts[number].epoch, log_start)]
            self._changed()

    def replace(self, starts: list[EpochStart]) -> None:
        """Take what a walk over the log found."""
        if starts != self.starts:
            self.starts = starts
            self._changed()

    def save(self) -> None:
        """Write the file if it is not up to date: a death of the process cannot take it back, a power cut can."""
        if not self.is_saved:
            self._files.replace_file(self.path, format_epochs(self.starts), durable=False)
            self.is_saved = True

    def sync(self) -> int:
        """Make the file that was saved last survive a power cut; may run in another thread. Gives its version."""
        version = self.version
        fd = self._files.open(self.path)
        try:
            self._files.fdatasync(fd)
        finally:
            self._files.close(fd)
        self._files.fsync_directory(self.path.parent)
        return version

    def note_synced(self, version: int) -> None:
        """A `sync` of this version has succeeded."""
        self.is_durable = self.is_durable or version == self.version

    def _changed(self) -> None:
        self.version += 1
        self.is_saved = self.is_durable = False
