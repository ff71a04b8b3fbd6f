"""Every server setting: name, type, unit (last in its name), bounds, default and meaning.

Split by blast radius: `TopicConfig` belongs to a topic and is kept in the metadata log; the other sections belong to
the broker and are read at start, but for the names in `RELOADABLE`, which SIGHUP applies to running processes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

FOREVER = -1  # retention and flush: no limit

MIB = 1 << 20


def doc(text: str, *, ge: int | None = None, le: int | None = None) -> Meta:
    """A setting's meaning, as `zbroker config explain` prints it, and its bounds."""
    return Meta(description=text, ge=ge, le=le)


class TopicConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one topic. Kafka's names with '_' for '.'; `topics create --config` takes either form."""

    segment_bytes: Annotated[int, doc("a segment rolls before it would grow past this", ge=4096, le=1 << 31)] = 1 << 30
    segment_ms: Annotated[int, doc("a segment is rolled when its first record is older than this", ge=1)] = 604_800_000
    index_interval_bytes: Annotated[int, doc("bytes of log between two index entries", ge=64)] = 4096
    retention_ms: Annotated[int, doc("segments older than this are deleted; -1: never", ge=-1)] = 604_800_000
    retention_bytes: Annotated[int, doc("oldest segments go while a partition is larger; -1: never", ge=-1)] = -1
    flush_messages: Annotated[int, doc("fdatasync after this many records; -1: never", ge=-1)] = -1
    flush_ms: Annotated[int, doc("fdatasync at the latest after this; -1: never", ge=-1)] = -1
    max_message_bytes: Annotated[int, doc("largest batch accepted", ge=64, le=16 * MIB)] = MIB
    min_insync_replicas: Annotated[int, doc("copies that must be in sync for acks=all", ge=1)] = 1
    file_delete_delay_ms: Annotated[int, doc("from the rename of a segment to .deleted to its unlink", ge=0)] = 1_000
    dedup_window_ms: Annotated[int, doc("how long a batch's dedup_id is remembered", ge=0)] = 120_000
    dedup_window_entries_max: Annotated[int, doc("dedup_ids remembered, the newest", ge=1, le=10_000_000)] = 100_000
    message_timestamp_type: Annotated[
        Literal["CreateTime", "LogAppendTime"], doc("whose time a record carries: the producer's or the broker's")
    ] = "CreateTime"
    cleanup_policy: Annotated[
        Literal["delete", "compact", "compact,delete", "delete,compact"],
        doc("old records: delete by retention_*, compact keeps the last record of each key, or both"),
    ] = "delete"
    delete_retention_ms: Annotated[
        int, doc("compact: how long a record without a value stays after older ones of its key are gone", ge=0)
    ] = 86_400_000
    min_cleanable_dirty_ratio: Annotated[
        float, doc("compact: compacts when this part of the sealed segments is new since the last time", ge=0, le=1)
    ] = 0.5
    min_compaction_lag_ms: Annotated[int, doc("compact: records younger than this are left alone", ge=0)] = 0
    unclean_leader_election_enable: Annotated[
        bool, doc("elect a copy that is not in sync when no other lives: records may be lost")
    ] = False
    storage: Annotated[Literal["disk", "memory"], doc("memory: segments on /dev/shm, gone at a clean stop")] = "disk"

    @property
    def expiry(self) -> tuple[int, int]:
        """(retention in ms, retention in bytes) as far as old segments go by time and size; else `FOREVER`."""
        if "delete" in self.cleanup_policy:
            return self.retention_ms, self.retention_bytes
        return FOREVER, FOREVER

    @property
    def compacts(self) -> bool:
        """Whether older records of a key go."""
        return "compact" in self.cleanup_policy


class BrokerSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[broker]"""

    data_dir: Annotated[str, doc("where logs and metadata live; '': $XDG_DATA_HOME/zbroker")] = ""
    run_dir: Annotated[str, doc("sockets, locks, boards; '': /dev/shm/zbroker-UID/HASH OF data_dir")] = ""
    auto_create_topics_enable: Annotated[bool, doc("the first send to an unknown topic creates it")] = True
    num_partitions: Annotated[int, doc("partitions of a topic created without a number", ge=1, le=10_000)] = 1
    replication_factor: Annotated[int, doc("copies of a topic created without a number", ge=1, le=16)] = 1


class WorkersSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[workers]"""

    count: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | Literal["auto", "per-partition"],
        doc("worker processes; auto: one a core, at most 8; per-partition: one a partition"),
    ] = "auto"
    pin: Annotated[bool, doc("bind worker N to core N modulo the cores")] = False
    spin_us: Annotated[int, doc("busy wait before sleeping, when a core is free; 0: never", ge=0, le=1_000)] = 200


class ReplicasSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[replicas]"""

    count: Annotated[int, doc("replica processes", ge=0, le=256)] = 0
    lag_max_ms: Annotated[int, doc("a copy that has not caught up for longer is not in sync", ge=100)] = 5_000
    stream_credit_bytes: Annotated[int, doc("unconfirmed bytes of one partition to one follower", ge=4096)] = 4 * MIB


class CoordinatorSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[coordinator]"""

    hang_timeout_ms: Annotated[int, doc("a process without a beat for longer is killed; 0: never", ge=0)] = 1_000
    preferred_leader_interval_ms: Annotated[
        int, doc("how often leaders go back to their preferred process; 0: never", ge=0)
    ] = 1_000


class GroupsSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[groups]"""

    heartbeat_interval_ms: Annotated[int, doc("how often a member says that it lives", ge=10)] = 3_000
    session_timeout_min_ms: Annotated[int, doc("shortest session_timeout_ms of a consumer", ge=10)] = 100
    session_timeout_max_ms: Annotated[int, doc("longest session_timeout_ms of a consumer", ge=100)] = 1_800_000
    groups_max: Annotated[int, doc("consumer groups of the broker", ge=1)] = 10_000
    members_max: Annotated[int, doc("members of one group", ge=1)] = 1_000
    commit_interval_ms: Annotated[int, doc("how often commits in shared memory are written to the log", ge=10)] = 500
    offsets_retention_minutes: Annotated[
        int, doc("committed offsets of a group without members are forgotten after this time", ge=1)
    ] = 10_080
    offset_metadata_max_bytes: Annotated[int, doc("text kept with a committed offset", ge=0, le=65_536)] = 4_096
    assignor_timeout_ms: Annotated[int, doc("time for a member's own assignor; then the group is sticky", ge=1)] = 2_000
    stalled_after_ms: Annotated[
        int, doc("a member that stands still while its lag grows is logged after this time; 0: never", ge=0)
    ] = 60_000


class NetworkSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[network]"""

    io_threads: Annotated[int, doc("ZeroMQ I/O threads of the router", ge=1, le=64)] = 1
    tcp_listen: Annotated[str, doc("tcp endpoint for clients, such as tcp://127.0.0.1:9190; '': off")] = ""
    tcp_unauthenticated_loopback: Annotated[
        bool, doc("allow tcp_listen on a loopback address although it cannot tell users apart")
    ] = False


class LimitsSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[limits]"""

    message_max_bytes: Annotated[int, doc("largest batch of any topic", ge=1024, le=16 * MIB)] = MIB
    records_per_batch_max: Annotated[int, doc("records in one batch", ge=1, le=1_000_000)] = 10_000
    frames_per_message_max: Annotated[int, doc("frames of one message", ge=4, le=64)] = 16
    connections_per_user_max: Annotated[int, doc("connections of one uid", ge=1)] = 1024
    topics_max: Annotated[int, doc("topics of the broker", ge=1, le=100_000)] = 10_000
    partitions_per_topic_max: Annotated[int, doc("partitions of a topic", ge=1, le=100_000)] = 10_000
    partitions_per_process_max: Annotated[int, doc("partitions that one process can lead", ge=1, le=65_536)] = 4096
    lane_bytes_max: Annotated[int, doc("largest lane", ge=64 << 10, le=64 * MIB)] = 16 * MIB
    lane_bytes_total_max: Annotated[int, doc("all lanes of a worker; beyond it, messages", ge=0)] = 256 * MIB
    open_segments_max: Annotated[int, doc("segment files a process keeps open", ge=8)] = 512
    fetch_max_bytes: Annotated[int, doc("record bytes of one fetch answer", ge=1024, le=256 * MIB)] = 8 * MIB


class SupervisorSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[supervisor]"""

    restart_backoff_ms: Annotated[int, doc("wait before the second restart in a row; doubles", ge=1)] = 20
    restart_backoff_max_ms: Annotated[int, doc("the longest wait before a restart", ge=1)] = 5_000
    crash_loop_limit: Annotated[int, doc("starts in a row that may fail before the broker gives up", ge=1)] = 5
    crash_loop_window_ms: Annotated[int, doc("a process that lives longer than this starts a new row", ge=1)] = 10_000
    stop_timeout_ms: Annotated[int, doc("time for a clean stop before SIGKILL", ge=100)] = 5_000


class StorageSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[storage]"""

    disk_free_min_bytes: Annotated[int, doc("produce is refused while the disk has less room", ge=0)] = 16 * MIB
    retention_check_interval_ms: Annotated[int, doc("how often retention looks for old segments", ge=10)] = 5_000
    high_watermark_checkpoint_interval_ms: Annotated[int, doc("how often high watermarks are saved", ge=10)] = 5_000
    scrub_bytes_per_s: Annotated[int, doc("old segments read again to find damage; 0: never", ge=0)] = 4 * MIB
    scrub_interval_ms: Annotated[int, doc("how often every old segment is read again", ge=1)] = 3_600_000
    compaction_bytes_per_s: Annotated[int, doc("read to compact, by each process; 0: never", ge=0)] = 8 * MIB
    compaction_check_interval_ms: Annotated[int, doc("how often topics to compact are looked at", ge=10)] = 5_000
    compaction_memory_bytes: Annotated[int, doc("keys that one round of compaction remembers", ge=MIB)] = 64 * MIB
    producer_id_expiration_ms: Annotated[int, doc("a producer silent for longer is forgotten", ge=1)] = 86_400_000


class LoggingSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[logging]"""

    level: Annotated[Literal["debug", "info", "warning", "error"], doc("least severe line written to stderr")] = "info"
    format: Annotated[Literal["text", "json"], doc("how a line is written")] = "text"


class DataDir(Struct, forbid_unknown_fields=True, kw_only=True):
    """[[data_dirs]]: a further disk for copies; new copies go to the directory with the fewest."""

    path: str


class ClientSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """[client]: defaults of clients that read this file (the CLI and the demo do)."""

    producer: dict[str, object] = field(default_factory=dict)
    consumer: dict[str, object] = field(default_factory=dict)


class ServerConfig(Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole of zbroker.toml."""

    broker: BrokerSection = field(default_factory=BrokerSection)
    workers: WorkersSection = field(default_factory=WorkersSection)
    replicas: ReplicasSection = field(default_factory=ReplicasSection)
    coordinator: CoordinatorSection = field(default_factory=CoordinatorSection)
    groups: GroupsSection = field(default_factory=GroupsSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    limits: LimitsSection = field(default_factory=LimitsSection)
    storage: StorageSection = field(default_factory=StorageSection)
    supervisor: SupervisorSection = field(default_factory=SupervisorSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    topics: TopicConfig = field(default_factory=TopicConfig)
    data_dirs: list[DataDir] = field(default_factory=list)
    client: ClientSection = field(default_factory=ClientSection)


RELOADABLE = frozenset(
    {
        "logging.level",
        "broker.auto_create_topics_enable",
        "broker.num_partitions",
        "storage.disk_free_min_bytes",
        "storage.retention_check_interval_ms",
    }
)
