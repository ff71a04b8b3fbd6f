"""What a client knows of the cluster: one metadata answer, indexed. Immutable: a newer answer is a newer view."""

from __future__ import annotations

from zbroker.errors import LeaderNotAvailableError, UnknownTopicOrPartitionError, error_for
from zbroker.wire.messages import MetadataReply, PartitionInfo, ProcessInfo, TopicInfo


class ClusterView:
    """Topics by name, processes by number."""

    def __init__(self, reply: MetadataReply | None = None) -> None:
        self.version = reply.version if reply else -1
        self.cluster_id = reply.cluster_id if reply else ""
        self.coordinator_board = reply.coordinator_board if reply else ""
        self.topics: dict[str, TopicInfo] = {topic.name: topic for topic in reply.topics} if reply else {}
        self.processes: dict[int, ProcessInfo] = {p.number: p for p in reply.processes} if reply else {}

    def merged(self, newer: ClusterView, asked: list[str] | None) -> ClusterView:
        """This view with a newer one over it. `asked` are the topics that were asked for; None: all of them."""
        if asked is None:
            return newer
        view = ClusterView()
        view.version, view.cluster_id = newer.version, newer.cluster_id
        view.coordinator_board, view.processes = newer.coordinator_board, newer.processes
        view.topics = {name: topic for name, topic in self.topics.items() if name not in asked} | newer.topics
        return view

    def topic(self, name: str) -> TopicInfo:
        """A topic that exists. Raises the error that the coordinator gave for it, or UnknownTopicOrPartitionError."""
        found = self.topics.get(name)
        if found is None:
            raise UnknownTopicOrPartitionError(f"topic {name!r} does not exist")
        if found.error:
            raise error_for(found.error, f"topic {name!r}")
        return found

    def partition(self, name: str, number: int) -> PartitionInfo:
        """A partition that exists. Raises UnknownTopicOrPartitionError."""
        topic = self.topic(name)
        if not 0 <= number < len(topic.partitions):
            raise UnknownTopicOrPartitionError(
                f"topic {name!r} has partitions 0 to {len(topic.partitions) - 1}, not {number}"
            )
        return topic.partitions[number]

    def leader(self, name: str, number: int) -> tuple[TopicInfo, PartitionInfo]:
        """A partition that has a leader. Raises LeaderNotAvailableError."""
        topic, partition = self.topic(name), self.partition(name, number)
        if partition.leader < 0:
            raise LeaderNotAvailableError(f"{name}:{number} has no leader at the moment")
        return topic, partition
