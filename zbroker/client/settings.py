"""The clients' settings: snake_case of Kafka's dotted names, with Kafka's defaults unless the field says otherwise.

Guarantees: a keyword, a mapping in dotted or snake_case form, or both (keywords win) give the same settings; an unknown
name raises ConfigError with the nearest known one; every number is within its bounds before a client does anything.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from zbroker.config.load import Setting, described
from zbroker.config.schema import doc
from zbroker.errors import ConfigError

TIME_MS_MAX = 2**31 - 1  # Kafka's, and what a request's header holds

ACKS = {"0": 0, "1": 1, "-1": -1, "all": -1, "fsync": 2}
IDEMPOTENT_IN_FLIGHT_MAX = 5  # the batches of a producer that a leader remembers
PARTITIONERS = ("mmh3", "murmur2_random", "round_robin", "sticky")


class ConnectionSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every client has."""

    bootstrap_servers: Annotated[
        str | Sequence[str] | None,
        doc("ipc://RUN_DIR or tcp://127.0.0.1:PORT; not set: ZBROKER_BOOTSTRAP_SERVERS, or the one of a bare serve"),
    ] = None
    client_id: Annotated[str, doc("a name of your choice, shown in logs")] = ""
    request_timeout_ms: Annotated[
        int, doc("how long an answer may take before the request is sent again", ge=1, le=TIME_MS_MAX)
    ] = 30_000
    retry_backoff_ms: Annotated[int, doc("longest pause before a retry; the first is 1 ms", ge=0, le=TIME_MS_MAX)] = 100
    metadata_max_age_ms: Annotated[
        int, doc("how old knowledge of topics and leaders may get", ge=1, le=TIME_MS_MAX)
    ] = 300_000
    transport: Annotated[
        Literal["auto", "shm", "zmq"],
        doc("auto: shared memory where it can be had, else messages; shm: nothing else; zmq: messages only"),
    ] = "auto"


class ProducerSettings(ConnectionSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of a Producer. zbroker's own defaults: linger_ms 0, batch_size 256 KiB, partitioner mmh3."""

    acks: Annotated[
        int | str,
        doc("who has what is acknowledged; 0: nobody is asked, 1: the leader, all: each copy in sync, fsync: disks"),
    ] = "all"
    enable_idempotence: Annotated[
        bool, doc("a batch that is sent again is stored once, and batches keep their order")
    ] = True
    transactional_id: Annotated[
        str | None, doc("a name that one producer has at a time: a newer one fences the older")
    ] = None
    retries: Annotated[int, doc("how often a batch is sent again, within delivery_timeout_ms", ge=0)] = 2**31 - 1
    delivery_timeout_ms: Annotated[
        int, doc("a record that was not acknowledged by then has failed", ge=1, le=TIME_MS_MAX)
    ] = 120_000
    linger_ms: Annotated[
        float, doc("how long a batch that is not full waits for more records", ge=0, le=TIME_MS_MAX)
    ] = 0.0
    batch_size: Annotated[int, doc("most bytes of a batch, for each partition", ge=1, le=16 << 20)] = 262_144
    buffer_memory: Annotated[
        int, doc("bytes of all that is not acknowledged; send() waits when it is full", ge=65_536)
    ] = 33_554_432
    max_block_ms: Annotated[
        int, doc("how long send() waits for memory or for a first topic's metadata", ge=0, le=TIME_MS_MAX)
    ] = 60_000
    max_request_size: Annotated[int, doc("bytes of the largest record or batch that is sent", ge=1024, le=16 << 20)] = (
        1_048_576
    )
    max_in_flight_requests_per_connection: Annotated[
        int, doc("batches of one partition that wait for their acknowledgement at once", ge=1, le=1000)
    ] = 5
    compression_type: Annotated[
        Literal["none", "lz4", "zstd", "gzip"], doc("batches are packed with it, and stored so")
    ] = "none"
    compression_level: Annotated[int | None, doc("of the compression; not set: its own default")] = None
    partitioner: Annotated[
        Any, doc("mmh3, murmur2_random (as Kafka), round_robin, sticky, or a callable(key, partition_count)")
    ] = "mmh3"
    key_serializer: Annotated[Callable[[Any], bytes] | None, doc("makes bytes of a key")] = None
    value_serializer: Annotated[Callable[[Any], bytes] | None, doc("makes bytes of a value")] = None
    on_delivery: Annotated[
        Callable[..., None] | None, doc("called with (metadata, error), one of them None, when a record is done")
    ] = None


class ConsumerSettings(ConnectionSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of a Consumer. Those of groups need a `group_id`.

    `partition_assignment_strategy`: "sticky", "range", "roundrobin", "single-active", a callable (see `assignors`), or
    a list of them, the one that is wanted most first. `max_records_per_s`: give out no more than that, by whatever
    call; a tenth of a second's worth may come at once, and a batch of `batches` comes whole. `isolation_level`:
    "read_durable" holds back what has not been synced yet (see `Consumer`).
    """

    group_id: Annotated[str | None, doc("the consumer group; not set: every partition, and nothing is committed")] = (
        None
    )
    group_instance_id: Annotated[str | None, doc("a name that stays over restarts: its partitions wait for it")] = None
    partition_assignment_strategy: Annotated[
        Any, doc("sticky, range, roundrobin, single-active, a callable, or a list of them, the most wanted first")
    ] = ("sticky",)
    enable_auto_commit: Annotated[
        bool, doc("commit what was given out, every auto_commit_interval_ms and at close()")
    ] = True
    auto_commit_interval_ms: Annotated[int, doc("time between two such commits", ge=0, le=TIME_MS_MAX)] = 5_000
    session_timeout_ms: Annotated[
        int,
        doc(
            "a member that was not heard for so long has left; the death of its process is seen at once",
            ge=1,
            le=TIME_MS_MAX,
        ),
    ] = 45_000
    heartbeat_interval_ms: Annotated[
        int, doc("how often a member is heard; below session_timeout_ms", ge=1, le=TIME_MS_MAX)
    ] = 3_000
    max_poll_interval_ms: Annotated[
        int, doc("a member that does not poll for so long loses its partitions", ge=1, le=TIME_MS_MAX)
    ] = 300_000
    auto_offset_reset: Annotated[
        Literal["earliest", "latest", "none"],
        doc("where to begin without a position, or with one that was deleted; none: an error"),
    ] = "latest"
    max_poll_records: Annotated[int, doc("records of one poll()", ge=1)] = 500
    max_records_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, doc("give out no more than so many; not set: no bound")
    ] = None
    fetch_min_bytes: Annotated[int, doc("wait for so many bytes, up to fetch_max_wait_ms", ge=1)] = 1
    fetch_max_bytes: Annotated[int, doc("bytes that are fetched ahead", ge=1024)] = 52_428_800
    fetch_max_wait_ms: Annotated[int, doc("how long fetch_min_bytes are waited for", ge=0, le=TIME_MS_MAX)] = 500
    max_partition_fetch_bytes: Annotated[int, doc("bytes of one partition in one look", ge=1024)] = 1_048_576
    check_crcs: Annotated[bool, doc("check the CRC of every batch")] = True
    isolation_level: Annotated[
        Literal["read_uncommitted", "read_durable"], doc("read_durable: records that are on a disk only")
    ] = "read_uncommitted"
    consumer_timeout_ms: Annotated[
        int | None, doc("iteration, batches() too, ends after so long without a record; not set: never")
    ] = None
    key_deserializer: Annotated[Callable[[bytes], Any] | None, doc("makes an object of a key's bytes")] = None
    value_deserializer: Annotated[Callable[[bytes], Any] | None, doc("makes an object of a value's bytes")] = None

    @property
    def iteration_timeout_ms(self) -> int | None:
        """`consumer_timeout_ms`; None: never, which Kafka's clients also write as a negative number."""
        return None if self.consumer_timeout_ms is None or self.consumer_timeout_ms < 0 else self.consumer_timeout_ms


CLIENTS: Final[dict[str, type[ConnectionSettings]]] = {
    "client.producer": ProducerSettings,
    "client.consumer": ConsumerSettings,
}
GROUP_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
GROUP_NAME_RULE = "1 to 249 of [a-zA-Z0-9._-]"
GROUP_SETTINGS = frozenset(
    {
        "group_id",
        "group_instance_id",
        "enable_auto_commit",
        "auto_commit_interval_ms",
        "session_timeout_ms",
        "heartbeat_interval_ms",
        "max_poll_interval_ms",
        "partition_assignment_strategy",
    }
)

_CALLABLE = frozenset(
    {
        "partitioner",
        "partition_assignment_strategy",
        "key_serializer",
        "value_serializer",
        "key_deserializer",
        "value_deserializer",
        "on_delivery",
    }
)

_reading = threading.Lock()  # as in wire.codec: the first use of a struct is for one thread

S = TypeVar("S", bound=ConnectionSettings)


def client_settings() -> dict[str, Setting]:
    """Every setting of the clients by its dotted name in zbroker.toml, such as client.producer.linger_ms."""
    return {name: one for prefix, kind in CLIENTS.items() for name, one in described(kind, prefix).items()}


def read_settings(kind: type[S], mapping: Mapping[str, object] | None, keywords: Mapping[str, object]) -> S:
    """Build settings of a kind. Raises ConfigError."""
    known = kind.__struct_fields__
    merged: dict[str, object] = {}
    for source in (mapping or {}, keywords):
        for name, value in source.items():
            snake = name.replace(".", "_")
            if snake in GROUP_SETTINGS and value is None:
                continue
            if snake not in known:
                close = difflib.get_close_matches(snake, known, n=1, cutoff=0.5)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"unknown setting {name!r}{meant}; zbroker config explain client lists them")
            if value is not None or source is mapping:
                merged[snake] = value
    callables = {name: merged.pop(name) for name in _CALLABLE & merged.keys() if callable(merged[name])}
    try:
        with _reading:
            settings = msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        setting = described(kind, "client").get(f"client.{name}")
        hint = f"; it is {setting.type}; zbroker config explain {name}" if setting else ""
        raise ConfigError(f"{name or 'settings'}: {message}{hint}") from error
    for name, call in callables.items():
        setattr(settings, name, call)
    if isinstance(settings, ProducerSettings):
        _check_producer(settings, "enable_idempotence" in merged)
    if isinstance(settings, ConsumerSettings):
        _check_consumer(settings)
    return settings


def _check_consumer(settings: ConsumerSettings) -> None:
    if settings.group_id is not None and not GROUP_NAME.fullmatch(settings.group_id):
        raise ConfigError(f"group_id: {settings.group_id!r:.300} is not {GROUP_NAME_RULE}")
    if settings.group_instance_id is not None:
        if settings.group_id is None:
            raise ConfigError("group_instance_id: needs a group_id")
        if not GROUP_NAME.fullmatch(settings.group_instance_id):
            raise ConfigError(f"group_instance_id: {settings.group_instance_id!r:.300} is not {GROUP_NAME_RULE}")
    if settings.group_id is not None and settings.heartbeat_interval_ms >= settings.session_timeout_ms:
        raise ConfigError("heartbeat_interval_ms: must be below session_timeout_ms")


def _check_producer(settings: ProducerSettings, is_idempotence_asked: bool) -> None:
    acks = ACKS.get(str(settings.acks))
    if acks is None:
        raise ConfigError(f"acks: {settings.acks!r} is not one of 0, 1, 'all', 'fsync'")
    settings.acks = acks
    if not callable(settings.partitioner) and settings.partitioner not in PARTITIONERS:
        raise ConfigError(
            f"partitioner: {settings.partitioner!r} is not one of {', '.join(PARTITIONERS)} or a callable"
        )
    if settings.acks == 0 or settings.max_in_flight_requests_per_connection > IDEMPOTENT_IN_FLIGHT_MAX:
        if (settings.enable_idempotence and is_idempotence_asked) or settings.transactional_id:
            raise ConfigError(
                "enable_idempotence and transactional_id need acks=1, 'all' or 'fsync', and "
                f"max_in_flight_requests_per_connection of at most {IDEMPOTENT_IN_FLIGHT_MAX}"
            )
        settings.enable_idempotence = False
    if settings.transactional_id and not settings.enable_idempotence:
        raise ConfigError("transactional_id: needs enable_idempotence")
    if settings.max_request_size > settings.buffer_memory:
        raise ConfigError("max_request_size is above buffer_memory: one request would never fit")
