"""The calls of a consumer that ask about topics: which there are, where they begin and end, what was written when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zbroker.client.commit_calls import Partition
from zbroker.client.connection import Connection
from zbroker.client.offsets import ask_offsets
from zbroker.client.single_use import SingleUse
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndTimestamp
from zbroker.wire.messages import EARLIEST, LATEST


class TopicQueries:
    """See the module; a part of `Consumer`. None of it changes what is read."""

    _use: SingleUse
    _connection: Connection

    def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """The first record of each partition that is as late as its time in ms; None where there is none."""
        with self._use:
            found = ask_offsets(self._connection, {TopicPartition(*tp): when for tp, when in timestamps.items()})
        return {
            tp: OffsetAndTimestamp(one.offset, one.timestamp_ms) if one.offset >= 0 else None
            for tp, one in found.items()
        }

    def beginning_offsets(self, partitions: Iterable[Partition]) -> dict[TopicPartition, int]:
        """Offset of the first record that each partition still has."""
        return self._ends(partitions, EARLIEST)

    def end_offsets(self, partitions: Iterable[Partition]) -> dict[TopicPartition, int]:
        """Offset behind the last record of each partition that readers may read."""
        return self._ends(partitions, LATEST)

    def _ends(self, partitions: Iterable[Partition], which: int) -> dict[TopicPartition, int]:
        with self._use:
            found = ask_offsets(self._connection, {TopicPartition(*tp): which for tp in partitions})
        return {tp: one.offset for tp, one in found.items()}

    def topics(self) -> set[str]:
        """Names of all topics."""
        with self._use:
            return set(self._connection.metadata(None, refresh=True).topics)

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Numbers of a topic's partitions. Raises UnknownTopicOrPartitionError."""
        with self._use:
            found = self._connection.metadata([topic], refresh=True).topic(topic)
            return {info.partition for info in found.partitions}
