"""What a consumer's partition is read from: mapped files (`local_partition`) or answers (`remote_fetch`)."""

from __future__ import annotations

from typing import Protocol

from zbroker.record.view import RecordBatch


class Source(Protocol):
    """Where batches of a partition come from: mapped files, or fetch answers."""

    is_local: bool
    leader: int
    topic_id: int

    def high_watermark(self) -> int | None:
        """Readers may read what lies before it; None: not known yet."""

    def has_more(self, offset: int) -> bool:
        """Whether `read` is worth calling."""

    def held_back(self, offset: int) -> int:
        """The high watermark, when there are records at `offset` that this reader may not see yet; else 0."""

    def read(self, offset: int, max_bytes: int) -> list[RecordBatch]:
        """Batches from the one that contains `offset`."""

    def range(self) -> tuple[int, int] | None:
        """(log start, high watermark), when they are known."""

    def bytes_ahead(self, offset: int) -> int | None:
        """Bytes that could be read now; None: do not ask."""

    def is_moved(self) -> bool:
        """Whether the metadata should be asked who leads now."""

    def is_leader_alive(self) -> bool:
        """Whether the process that led when this was made still runs."""
