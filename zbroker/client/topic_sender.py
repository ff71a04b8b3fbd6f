"""A topic as a producer sees it: the queues of its partitions, and how one is chosen for a record.

A topic only ever gets more partitions, so a queue that was found stays the right one. What a user's partitioner answers
is checked: it names a partition that exists, or the record is refused. Everything here is called under the producer's
lock, but for `at`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from zbroker.client.partition_queue import PartitionQueue
from zbroker.client.partitioner import mmh3_of, murmur2_of, round_robin
from zbroker.errors import InvalidRecordError, UnknownTopicOrPartitionError


class TopicSender:
    """The queues of one topic. `hash_of(key) % count` is the partition of a record with a key; `keyless(key, count)`,
    where there is one, that of every record."""

    __slots__ = (
        "batch_bytes_max",
        "content_bytes_max",
        "count",
        "hash_of",
        "keyless",
        "queues",
        "room",
        "room_min",
        "sticky",
        "topic",
        "turn",
    )

    def __init__(self, topic: str, queues: list[PartitionQueue], partitioner: Any) -> None:
        self.topic = topic
        self.batch_bytes_max = self.content_bytes_max = sys.maxsize
        self.room = self.room_min = 0
        self.queues = queues
        self.count = len(queues)
        self.turn = 0
        self.sticky = queues[0]
        self.keyless: Callable[[bytes | None, int], int] | None = None
        self.hash_of: Callable[[bytes], int] = mmh3_of
        if partitioner == "murmur2_random":
            self.hash_of = murmur2_of
        elif partitioner == "sticky":
            self.hash_of = lambda _key: self.turn
        elif partitioner == "round_robin":
            self.keyless = round_robin()
        elif callable(partitioner):
            self.keyless = partitioner

    def next_sticky(self) -> None:
        """Keyless records go to the next partition from now on."""
        self.turn = (self.turn + 1) % self.count
        self.sticky = self.queues[self.turn]

    def bound(self, bytes_max: int, overhead_bytes: int, room: int) -> None:
        """No batch of more than `bytes_max` with its overhead; `room` is aimed at, which the last record may pass."""
        self.batch_bytes_max = bytes_max
        self.content_bytes_max = bytes_max - overhead_bytes
        self.room = min(room, self.content_bytes_max)
        self.room_min = self.room - self.content_bytes_max

    def grow(self, queues: list[PartitionQueue]) -> None:
        """Take the queues of partitions that the topic got meanwhile."""
        self.queues.extend(queues)
        self.count = len(self.queues)

    def at(self, partition: int) -> PartitionQueue:
        """The queue of a partition that the caller named. Raises UnknownTopicOrPartitionError."""
        if not 0 <= partition < self.count:
            raise UnknownTopicOrPartitionError(
                f"topic {self.topic!r} has partitions 0 to {self.count - 1}, not {partition}"
            )
        return self.queues[partition]

    def queue_for(self, key: bytes | None) -> PartitionQueue:
        """The queue of a record's partition. Raises InvalidRecordError when a user's partitioner names none."""
        if self.keyless is not None:
            number = self.keyless(key, self.count)
            if not isinstance(number, int) or not 0 <= number < self.count:
                raise InvalidRecordError(
                    f"the partitioner answered {number!r} for topic {self.topic!r}; it has {self.count} partitions"
                )
            return self.queues[number]
        if key is None:
            return self.sticky
        return self.queues[self.hash_of(key) % self.count]
