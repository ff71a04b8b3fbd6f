"""The admin client: topics, their settings, records to delete, groups, the broker's processes.

Every call returns when the coordinator or the leader has done it, or raises a typed error that names what to look at.
With `raise_errors=False` the errors of single topics are in the result instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.descriptions import (
    ENDS,
    CopyDescription,
    PartitionDescription,
    TopicDescription,
    describe_topic,
)
from zbroker.client.exchange import ATTEMPT_TIMEOUT_MS
from zbroker.client.group_admin import GroupAdmin
from zbroker.client.offsets import ask_offsets
from zbroker.client.settings import ConnectionSettings, read_settings
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    CoordinatorNotAvailableError,
    InvalidRequestError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
    error_for,
)
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndTimestamp
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import DrainProcess, ElectLeaders, MoveCopy, PartitionResults
from zbroker.wire.layout import Api
from zbroker.wire.messages import (
    AlterConfigs,
    ClusterInfo,
    ConfigEntries,
    CreatePartitions,
    CreateTopics,
    DeleteRecords,
    DeleteTopics,
    DescribeConfigs,
    LowWatermark,
    NewTopicSpec,
    ProcessInfo,
    TopicResult,
    TopicResults,
)

_NOT_SEEN_MS = 20
_REPEATABLE = frozenset(
    {
        Api.DESCRIBE_CLUSTER,
        Api.DESCRIBE_CONFIGS,
        Api.ALTER_CONFIGS,
        Api.LIST_GROUPS,
        Api.DESCRIBE_GROUPS,
        Api.OFFSET_FETCH,
        Api.ALTER_GROUP_OFFSETS,
    }
)
_ROLES = ("worker", "replica")


class NewTopic:
    """A topic to create. None: the broker's default."""

    def __init__(
        self,
        name: str,
        num_partitions: int | None = None,
        replication_factor: int | None = None,
        config: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name
        self.num_partitions = num_partitions
        self.replication_factor = replication_factor
        self.config = dict(config or {})


class AdminClient(GroupAdmin):
    """See the module. Settings are those of every client: `bootstrap_servers`, `client_id`, time-outs, `transport`."""

    def __init__(self, config: Mapping[str, object] | None = None, /, **settings: object) -> None:
        """Connect. Raises ConfigError, BrokerNotAvailableError."""
        self._connection = Connection(read_settings(ConnectionSettings, config, settings))

    def create_topics(
        self,
        topics: Iterable[NewTopic | str],
        *,
        validate_only: bool = False,
        timeout_ms: int | None = None,
        raise_errors: bool = True,
    ) -> dict[str, TopicDescription]:
        """Create topics; when this returns their partitions have leaders. Raises the first topic's error."""
        specs = [_spec(topic) for topic in topics]
        results = self._ask_topics(Api.CREATE_TOPICS, CreateTopics(specs, validate_only), timeout_ms, raise_errors)
        made = [result.name for result in results if result.error == 0]
        found = {} if validate_only or not made else self.describe_topics(made)
        for result in results:
            if result.error:
                text = str(error_for(result.error, result.message))
                found[result.name] = TopicDescription(result.name, 0, {}, [], text)
        return found

    def delete_topics(
        self, names: Iterable[str], *, timeout_ms: int | None = None, raise_errors: bool = True
    ) -> dict[str, str]:
        """Delete topics and their records. Returns each topic's error text, '' when it is gone."""
        results = self._ask_topics(Api.DELETE_TOPICS, DeleteTopics(list(names)), timeout_ms, raise_errors)
        return {result.name: result.message for result in results}

    def _ask_topics(self, api: Api, body: Any, timeout_ms: int | None, raise_errors: bool) -> list[TopicResult]:
        results = decode(TopicResults, self._ask(api, body, timeout_ms)).topics
        for result in results:
            if result.error and raise_errors:
                raise error_for(result.error, result.message)
        return results

    def _ask(self, api: Api, body: Any, timeout_ms: int | None = None) -> Any:
        """Ask the coordinator. What must not be done twice is asked again only when it surely was not done."""
        total_ms = self._connection.settings.request_timeout_ms if timeout_ms is None else timeout_ms
        deadline_ns = time.monotonic_ns() + total_ms * NS_PER_MS
        while True:
            left_ms = max(1, (deadline_ns - time.monotonic_ns()) // NS_PER_MS)
            once_ms = min(left_ms, ATTEMPT_TIMEOUT_MS) if api in _REPEATABLE else left_ms
            try:
                frames = self._connection.request(
                    ids.COORDINATOR, api, [encode(body)], timeout_ms=once_ms, repeats=False
                )
                return frames[0]
            except CoordinatorNotAvailableError:
                if time.monotonic_ns() >= deadline_ns:
                    raise
            except (RequestTimedOutError, BrokerNotAvailableError):
                if api not in _REPEATABLE or time.monotonic_ns() >= deadline_ns:
                    raise
            self._connection.wait_for(lambda: False, _NOT_SEEN_MS)

    def create_partitions(self, totals: Mapping[str, int], *, timeout_ms: int | None = None) -> None:
        """Give topics more partitions: `totals` says how many each shall have."""
        for name, total in totals.items():
            self._ask(Api.CREATE_PARTITIONS, CreatePartitions(name, total), timeout_ms)

    def list_topics(self, *, include_internal: bool = False) -> list[str]:
        """The names of all topics, sorted. Internal ones begin with two underscores."""
        names = self._connection.metadata(None, refresh=True).topics
        return sorted(name for name in names if include_internal or not name.startswith("__"))

    def describe_topics(
        self, names: Iterable[str] | None = None, *, raise_errors: bool = True
    ) -> dict[str, TopicDescription]:
        """Topics with their partitions, leaders and offsets; None: all. Raises UnknownTopicOrPartitionError."""
        asked = None if names is None else list(names)
        view = self._connection.metadata(asked, refresh=True)
        found = {}
        for name in asked if asked is not None else sorted(view.topics):
            topic = view.topics.get(name)
            if topic is None or topic.error:
                code = topic.error if topic is not None else UnknownTopicOrPartitionError.code
                error = error_for(code, f"topic {name!r} does not exist")
                if raise_errors:
                    raise error
                found[name] = TopicDescription(name, 0, {}, [], str(error))
            else:
                found[name] = describe_topic(self._connection, topic, view.processes)
        return found

    def describe_configs(self, name: str) -> dict[str, tuple[str, str]]:
        """A topic's settings in force: name -> (value, origin: topic, broker or default)."""
        entries = decode(ConfigEntries, self._ask(Api.DESCRIBE_CONFIGS, DescribeConfigs(name))).entries
        return {entry.name: (entry.value, entry.origin) for entry in entries}

    def alter_configs(
        self, name: str, settings: Mapping[str, object] | None = None, *, unset: Sequence[str] = ()
    ) -> None:
        """Change a topic's own settings; `unset` puts settings back to the broker's defaults."""
        texts = {key: str(value) for key, value in (settings or {}).items()}
        self._ask(Api.ALTER_CONFIGS, AlterConfigs(name, texts, list(unset)))

    def delete_records(self, offsets: Mapping[TopicPartition | tuple[str, int], int]) -> dict[TopicPartition, int]:
        """Delete records before an offset (-1: before the high watermark). Returns where each log starts now."""
        wanted = {TopicPartition(*tp): offset for tp, offset in offsets.items()}
        return {tp: self._delete_records(tp, offset) for tp, offset in wanted.items()}

    def _delete_records(self, tp: TopicPartition, offset: int) -> int:
        deadline_ns = time.monotonic_ns() + self._connection.settings.request_timeout_ms * NS_PER_MS
        while True:
            try:
                info, partition = self._connection.metadata([tp.topic], refresh=True).leader(*tp)
                frames = self._connection.request(
                    partition.leader, Api.DELETE_RECORDS, [encode(DeleteRecords(offset))], topic_id=info.topic_id,
                    partition=tp.partition, leader_epoch=partition.leader_epoch, timeout_ms=ATTEMPT_TIMEOUT_MS,
                    repeats=False,
                )  # fmt: skip
                return decode(LowWatermark, frames[0]).log_start
            except (LeaderNotAvailableError, NotLeaderForPartitionError, RequestTimedOutError):
                if time.monotonic_ns() >= deadline_ns:
                    raise
            self._connection.wait_for(lambda: False, _NOT_SEEN_MS)

    def list_offsets(
        self, queries: Mapping[TopicPartition | tuple[str, int], int | str]
    ) -> dict[TopicPartition, OffsetAndTimestamp]:
        """Offsets by 'earliest', 'latest' (high watermark), 'end', or a time in ms; offset -1: no record that late."""
        asked = {TopicPartition(*tp): ENDS[what] if isinstance(what, str) else what for tp, what in queries.items()}
        found = ask_offsets(self._connection, asked)
        return {tp: OffsetAndTimestamp(answer.offset, answer.timestamp_ms) for tp, answer in found.items()}

    def wait_for_topics(self, names: Iterable[str], *, timeout_ms: int = 10_000) -> None:
        """Return when every topic exists and every partition has a leader. Raises the last error after `timeout_ms`."""
        wanted = list(names)
        deadline_s = time.monotonic() + timeout_ms / 1000
        while True:
            try:
                view = self._connection.metadata(wanted, refresh=True)
                for name in wanted:
                    for info in view.topic(name).partitions:
                        if info.leader < 0:
                            raise LeaderNotAvailableError(f"{name}:{info.partition} has no leader yet")
                return
            except BrokerError as error:
                if not error.retriable or time.monotonic() > deadline_s:
                    raise
            self._connection.wait_for(lambda: False, _NOT_SEEN_MS)

    def elect_leaders(
        self,
        partitions: Iterable[TopicPartition | tuple[str, int]] | None = None,
        *,
        unclean: bool = False,
        timeout_ms: int | None = None,
        raise_errors: bool = True,
    ) -> dict[TopicPartition, str]:
        """Have the preferred copies lead; None: of all partitions. Returns each partition's error text, '' when done.

        `unclean`: where no copy in sync is left, another one leads, and records that it does not have are lost; the
        broker's log says of which partitions. Raises the first partition's error.
        """
        asked = [(str(topic), int(number)) for topic, number in partitions or ()]
        return self._ask_partitions(Api.ELECT_LEADERS, ElectLeaders(asked, unclean), timeout_ms, raise_errors)

    def move(
        self,
        tp: TopicPartition | tuple[str, int],
        target: str,
        *,
        source: str | None = None,
        timeout_ms: int | None = None,
    ) -> None:
        """Move a copy to process `target` (such as "worker-1"): the leader's, or that of process `source`.

        When this returns the new copy is in sync and the old one is gone. Raises InvalidRequestError where there is a
        copy already; RequestTimedOutError when it is not done in time: it goes on.
        """
        body = MoveCopy(tp[0], tp[1], -1 if source is None else _number_of(source), _number_of(target))
        self._ask_partitions(Api.MOVE_COPY, body, timeout_ms, True)

    def drain(self, process: str, *, timeout_ms: int | None = None) -> list[TopicPartition]:
        """Move every copy of a process (such as "worker-0") to others; the partitions that were moved.

        Raises InvalidRequestError for the last process, InvalidReplicationFactorError where no other can take a copy.
        """
        body = DrainProcess(_number_of(process))
        return list(self._ask_partitions(Api.DRAIN_PROCESS, body, timeout_ms, True))

    def _ask_partitions(
        self, api: Api, body: Any, timeout_ms: int | None, raise_errors: bool
    ) -> dict[TopicPartition, str]:
        results = decode(PartitionResults, self._ask(api, body, timeout_ms)).partitions
        for result in results:
            if result.error and raise_errors:
                raise error_for(result.error, f"{result.topic}:{result.partition}: {result.message}")
        return {TopicPartition(one.topic, one.partition): one.message if one.error else "" for one in results}

    def describe_cluster(self) -> ClusterInfo:
        """The broker as a whole: its id, version, directory, processes, counts."""
        return decode(ClusterInfo, self._ask(Api.DESCRIBE_CLUSTER, DescribeConfigs("")))

    def describe_processes(self) -> list[ProcessInfo]:
        """The processes that are registered."""
        return self.describe_cluster().processes

    def describe_log_dirs(self) -> dict[str, dict[TopicPartition, int]]:
        """Bytes of each partition by the directory that holds its copy."""
        found: dict[str, dict[TopicPartition, int]] = {}
        for name, topic in self.describe_topics().items():
            for partition in topic.partitions:
                root = str(Path(partition.directory).parent.parent)
                found.setdefault(root, {})[TopicPartition(name, partition.partition)] = partition.size_bytes or 0
        return found

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("an AdminClient cannot be pickled: create one per process")


def _number_of(process: str) -> int:
    """A process's number. Raises InvalidRequestError for what has no copies."""
    if process.partition("-")[0] in _ROLES:
        try:
            return ids.process_number(process)
        except ValueError:
            pass  # the error below says the same, with what to look at
    raise InvalidRequestError(
        f"{process!r}: worker-N or replica-N", hint="zbroker cluster describe shows the processes"
    )


def _spec(topic: NewTopic | str) -> NewTopicSpec:
    if isinstance(topic, str):
        return NewTopicSpec(topic, -1, -1, {})
    partitions = -1 if topic.num_partitions is None else topic.num_partitions
    factor = -1 if topic.replication_factor is None else topic.replication_factor
    return NewTopicSpec(topic.name, partitions, factor, {key: str(value) for key, value in topic.config.items()})


__all__ = ["AdminClient", "CopyDescription", "NewTopic", "PartitionDescription", "TopicDescription"]
