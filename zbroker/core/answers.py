"""What the coordinator answers from memory: metadata, settings, the broker as a whole. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from zbroker import __version__
from zbroker.config.schema import TopicConfig
from zbroker.config.topic import DOTTED, effective
from zbroker.core.cluster_state import ClusterState, Standing
from zbroker.core.image import Partition, Topic
from zbroker.core.topic_drafts import known_topic, name_error
from zbroker.wire.messages import (
    ClusterInfo,
    ConfigEntries,
    ConfigEntry,
    MetadataReply,
    PartitionInfo,
    ProcessInfo,
    TopicInfo,
)


def metadata(state: ClusterState, names: Iterable[str] | None, errors: dict[str, int] | None = None) -> MetadataReply:
    """What is known of topics, or of all. `errors`: why a topic of that name could not be made."""
    image = state.image
    if names is None:
        topics = [_topic_info(state, topic) for topic in image.topics.values()]
    else:
        topics = []
        for name in dict.fromkeys(names):
            topic = image.by_name.get(name)
            error = (errors or {}).get(name)
            if topic is not None:
                topics.append(_topic_info(state, topic))
            else:
                topics.append(TopicInfo(name, 0, error or name_error(name), {}, []))
    return MetadataReply(
        version=image.version,
        cluster_id=image.cluster_id,
        coordinator_board=state.site.board,
        processes=[process.info() for process in state.processes.values() if process.is_live],
        topics=topics,
    )


def _topic_info(state: ClusterState, topic: Topic) -> TopicInfo:
    return TopicInfo(topic.name, topic.topic_id, 0, topic.config, [_partition_info(state, p) for p in topic.partitions])


def _partition_info(state: ClusterState, partition: Partition) -> PartitionInfo:
    leads = state.leadership(partition.key).standing is Standing.LEADING
    leader = partition.leader
    return PartitionInfo(
        partition=partition.partition,
        leader=partition.leader_number if leads else -1,
        leader_epoch=partition.leader_epoch,
        leader_incarnation=partition.leader_incarnation if leads else 0,
        replicas=[copy.copy_id for copy in partition.copies],
        isr=partition.isr,
        elr=partition.elr,
        directory=state.directory_of(partition, leader),
        coordinator_cell=state.cell_of(*partition.key),
        owners=[copy.owner for copy in partition.copies],
    )


def settings(state: ClusterState, name: str) -> ConfigEntries:
    """Every setting of a topic in force, and where it comes from. Raises UnknownTopicOrPartitionError."""
    topic = known_topic(state, name)
    of_broker, plain = state.config.topics, TopicConfig()
    found = effective(of_broker, topic.config)
    entries = []
    for dotted, field in DOTTED.items():
        origin: Literal["topic", "broker", "default"] = "default"
        if dotted in topic.config:
            origin = "topic"
        elif getattr(of_broker, field) != getattr(plain, field):
            origin = "broker"
        entries.append(ConfigEntry(dotted, str(getattr(found, field)), origin))
    return ConfigEntries(entries)


def cluster(state: ClusterState) -> ClusterInfo:
    """The broker as a whole."""
    processes: list[ProcessInfo] = [process.info() for process in state.processes.values() if process.incarnation]
    return ClusterInfo(
        cluster_id=state.image.cluster_id,
        software=f"zbroker {__version__}",
        data_dir=state.site.data_dir,
        processes=processes,
        topic_count=len(state.image.topics),
        partition_count=state.image.partition_count(),
    )
