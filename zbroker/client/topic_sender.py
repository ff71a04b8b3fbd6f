"""A topic as a producer sees it: the queues of its partitions, and how one is chosen for a record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zbroker.client.partition_queue import PartitionQueue


class TopicSender:
    """A topic as the producer sees it: its queues, and how a partition is chosen."""

    __slots__ = ("choose", "count", "keyless", "queues", "sticky", "turn")

    def __init__(self, queues: list[PartitionQueue], choose: Callable[[bytes, int], int], keyless: Any) -> None:
        self.queues = queues
        self.count = len(queues)
        self.choose = choose
        self.keyless = keyless  # None: sticky
        self.turn = 0
        self.sticky = queues[0]

    def next_sticky(self) -> None:
        """Keyless records go to the next partition from now on."""
        self.turn = (self.turn + 1) % len(self.queues)
        self.sticky = self.queues[self.turn]

    def queue_for(self, key: bytes | None) -> PartitionQueue:
        """The queue of a record's partition."""
        if self.keyless is not None:
            number: int = self.keyless(key, len(self.queues))
            return self.queues[number]
        if key is None:
            return self.sticky
        return self.queues[self.choose(key, len(self.queues))]
