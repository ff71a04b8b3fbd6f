"""Settings of clients: every way of writing them, and every one that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zbroker.client.settings import (
    ConnectionSettings,
    ConsumerSettings,
    ProducerSettings,
    client_settings,
    read_settings,
)
from zbroker.config.load import load
from zbroker.config.reference import client_toml
from zbroker.errors import ConfigError


def test_keywords_and_mappings_dotted_or_not_give_the_same_settings() -> None:
    keywords = read_settings(ProducerSettings, None, {"linger_ms": 5, "batch_size": 1000})
    dotted = read_settings(ProducerSettings, {"linger.ms": 5, "batch.size": 1000}, {})
    snake = read_settings(ProducerSettings, {"linger_ms": "5", "batch_size": "1000"}, {})
    assert keywords == dotted == snake


def test_keywords_win_over_the_mapping() -> None:
    found = read_settings(ProducerSettings, {"linger.ms": 5, "acks": "1"}, {"linger_ms": 7})
    assert (found.linger_ms, found.acks) == (7, 1)


@pytest.mark.parametrize(("written", "acks"), [(0, 0), ("0", 0), (1, 1), ("all", -1), (-1, -1), ("fsync", 2)])
def test_acks_are_what_kafka_calls_them_and_fsync(written: object, acks: int) -> None:
    assert read_settings(ProducerSettings, None, {"acks": written}).acks == acks


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        (ProducerSettings, "linger_msec", 5, "did you mean 'linger_ms'"),
        (ProducerSettings, "acks", 2, "acks"),
        (ProducerSettings, "acks", "most", "acks"),
        (ProducerSettings, "request_timeout_ms", 2**32, "request_timeout_ms"),
        (ProducerSettings, "request_timeout_ms", 0, "request_timeout_ms"),
        (ProducerSettings, "request_timeout_ms", "soon", "request_timeout_ms"),
        (ProducerSettings, "linger_ms", float("inf"), "linger_ms"),
        (ProducerSettings, "linger_ms", -1, "linger_ms"),
        (ProducerSettings, "max_request_size", 100, "max_request_size"),
        (ProducerSettings, "client_id", print, "client_id"),
        (ProducerSettings, "batch_size", len, "batch_size"),
        (ProducerSettings, "partitioner", "random", "partitioner"),
        (ProducerSettings, "compression_type", "snappy", "compression_type"),
        (ProducerSettings, "value_serializer", "json", "value_serializer"),
        (ConsumerSettings, "auto_offset_reset", "newest", "auto_offset_reset"),
        (ConsumerSettings, "max_poll_records", 0, "max_poll_records"),
        (ConsumerSettings, "group_id", "a/b", "group_id"),
        (ConsumerSettings, "group_instance_id", "one", "needs a group_id"),
        (ConnectionSettings, "transport", "udp", "transport"),
        (ConnectionSettings, "linger_ms", 1, "unknown setting"),
    ],
)
def test_what_is_wrong_is_named(kind: type[Any], name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_settings(kind, None, {name: value})
    with pytest.raises(ConfigError, match=words):
        read_settings(kind, {name.replace("_", "."): value}, {})


def test_a_request_that_can_never_fit_the_buffer_is_refused() -> None:
    with pytest.raises(ConfigError, match="buffer_memory"):
        read_settings(ProducerSettings, None, {"max_request_size": 1 << 20, "buffer_memory": 65_536})


def test_callables_are_taken_where_they_belong() -> None:
    found = read_settings(ProducerSettings, None, {"partitioner": max, "value_serializer": str.encode})
    assert (found.partitioner, found.value_serializer) == (max, str.encode)


def test_none_as_a_keyword_is_the_default() -> None:
    assert read_settings(ProducerSettings, None, {"linger_ms": None, "client_id": None}).linger_ms == 0


def test_group_settings_that_are_none_are_passed_over() -> None:
    assert read_settings(ConsumerSettings, {"group.id": None}, {}).max_poll_records == 500


def test_the_file_of_client_settings_is_their_defaults_and_says_what_each_means() -> None:
    path = Path(__file__).resolve().parents[2] / "configs" / "client.toml"
    known = client_settings()
    assert path.read_text() == client_toml(known), (
        "write it anew: python -c 'from zbroker.config.reference import *; "
        'from zbroker.client.settings import *; print(client_toml(client_settings()), end="")\''
    )
    assert [name for name, one in known.items() if not one.text] == []
    read = load(path, environment={}).config.client
    for kind, section in ((ProducerSettings, read.producer), (ConsumerSettings, read.consumer)):
        groupless = {name: value for name, value in section.items() if name != "partition_assignment_strategy"}
        assert read_settings(kind, groupless, {}) == read_settings(kind, None, {})
