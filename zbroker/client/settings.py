"""The clients' settings: snake_case of Kafka's dotted names, with Kafka's defaults unless the field says otherwise.

Guarantees: a keyword, a mapping in dotted or snake_case form, or both (keywords win) give the same settings; an unknown
name raises ConfigError with the nearest known one; every number is within its bounds before a client does anything.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from zbroker.errors import ConfigError

TIME_MS_MAX = 2**31 - 1  # Kafka's, and what a request's header holds
Milliseconds = Annotated[int, Meta(ge=0, le=TIME_MS_MAX)]
PositiveMs = Annotated[int, Meta(ge=1, le=TIME_MS_MAX)]
Positive = Annotated[int, Meta(ge=1)]

ACKS = {"0": 0, "1": 1, "-1": -1, "all": -1, "fsync": 2}
IDEMPOTENT_IN_FLIGHT_MAX = 5  # the batches of a producer that a leader remembers
PARTITIONERS = ("mmh3", "murmur2_random", "round_robin", "sticky")


class ConnectionSettings(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every client has."""

    bootstrap_servers: str | Sequence[str] | None = None
    client_id: str = ""
    request_timeout_ms: PositiveMs = 30_000
    retry_backoff_ms: Milliseconds = 100
    metadata_max_age_ms: PositiveMs = 300_000
    transport: Literal["auto", "shm", "zmq"] = "auto"


class ProducerSettings(ConnectionSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of a Producer. zbroker's own defaults: linger_ms 0, batch_size 64 KiB, partitioner mmh3."""

    acks: int | str = "all"
    enable_idempotence: bool = True
    transactional_id: str | None = None
    retries: Annotated[int, Meta(ge=0)] = 2**31 - 1
    delivery_timeout_ms: PositiveMs = 120_000
    linger_ms: Annotated[float, Meta(ge=0, le=TIME_MS_MAX)] = 0.0
    batch_size: Annotated[int, Meta(ge=1, le=16 << 20)] = 65_536
    buffer_memory: Annotated[int, Meta(ge=65_536)] = 33_554_432
    max_block_ms: Milliseconds = 60_000
    max_request_size: Annotated[int, Meta(ge=1024, le=16 << 20)] = 1_048_576
    max_in_flight_requests_per_connection: Annotated[int, Meta(ge=1, le=1000)] = 5
    compression_type: Literal["none", "lz4", "zstd", "gzip"] = "none"
    compression_level: int | None = None
    partitioner: Any = "mmh3"
    key_serializer: Callable[[Any], bytes] | None = None
    value_serializer: Callable[[Any], bytes] | None = None
    on_delivery: Callable[..., None] | None = None


class ConsumerSettings(ConnectionSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of a Consumer. Those of groups need a `group_id`.

    `partition_assignment_strategy`: "sticky", "range", "roundrobin", "single-active", a callable (see `assignors`), or
    a list of them, the one that is wanted most first. `max_records_per_s`: give out no more than that, by whatever
    call; a tenth of a second's worth may come at once, and a batch of `batches` comes whole. `isolation_level`:
    "read_durable" holds back what has not been synced yet (see `Consumer`).
    """

    group_id: str | None = None
    group_instance_id: str | None = None
    partition_assignment_strategy: Any = ("sticky",)
    enable_auto_commit: bool = True
    auto_commit_interval_ms: Milliseconds = 5_000
    session_timeout_ms: PositiveMs = 45_000
    heartbeat_interval_ms: PositiveMs = 3_000
    max_poll_interval_ms: PositiveMs = 300_000
    auto_offset_reset: Literal["earliest", "latest", "none"] = "latest"
    max_poll_records: Positive = 500
    max_records_per_s: Annotated[float, Meta(gt=0)] | None = None
    fetch_min_bytes: Positive = 1
    fetch_max_bytes: Annotated[int, Meta(ge=1024)] = 52_428_800
    fetch_max_wait_ms: Milliseconds = 500
    max_partition_fetch_bytes: Annotated[int, Meta(ge=1024)] = 1_048_576
    check_crcs: bool = True
    isolation_level: Literal["read_uncommitted", "read_durable"] = "read_uncommitted"
    consumer_timeout_ms: int | None = None
    key_deserializer: Callable[[bytes], Any] | None = None
    value_deserializer: Callable[[bytes], Any] | None = None


GROUP_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
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
                raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
            if value is not None or source is mapping:
                merged[snake] = value
    callables = {name: merged.pop(name) for name in _CALLABLE & merged.keys() if callable(merged[name])}
    try:
        with _reading:
            settings = msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise ConfigError(f"{path.rstrip('`') or 'settings'}: {message}") from error
    for name, call in callables.items():
        setattr(settings, name, call)
    if isinstance(settings, ProducerSettings):
        _check_producer(settings, "enable_idempotence" in merged)
    if isinstance(settings, ConsumerSettings):
        _check_consumer(settings)
    return settings


def _check_consumer(settings: ConsumerSettings) -> None:
    if settings.group_id is not None and not GROUP_NAME.fullmatch(settings.group_id):
        raise ConfigError(f"group_id: {settings.group_id!r:.300} is not 1 to 249 of [a-zA-Z0-9._-]")
    if settings.group_instance_id is not None:
        if settings.group_id is None:
            raise ConfigError("group_instance_id: needs a group_id")
        if not GROUP_NAME.fullmatch(settings.group_instance_id):
            raise ConfigError(
                f"group_instance_id: {settings.group_instance_id!r:.300} is not 1 to 249 of [a-zA-Z0-9._-]"
            )
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
