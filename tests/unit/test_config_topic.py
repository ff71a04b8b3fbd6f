"""A topic's settings as texts: one form whatever was written, and what is out of bounds is named."""

from __future__ import annotations

import pytest

from zbroker.config.schema import TopicConfig
from zbroker.config.topic import DOTTED, effective, from_texts, parse_overrides, to_texts
from zbroker.errors import InvalidConfigurationError

MESSAGE_MAX = 1 << 20


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ({"retention.ms": "1000"}, {"retention.ms": "1000"}),
        ({"retention_ms": "7d"}, {"retention.ms": "604800000"}),
        ({"segment.bytes": "2MiB"}, {"segment.bytes": "2097152"}),
        ({"retention.ms": "-1"}, {"retention.ms": "-1"}),
        ({"message.timestamp.type": "LogAppendTime"}, {"message.timestamp.type": "LogAppendTime"}),
        ({}, {}),
    ],
)
def test_settings_are_kept_in_one_form(written: dict[str, str], stored: dict[str, str]) -> None:
    assert parse_overrides(written, TopicConfig(), MESSAGE_MAX) == stored


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"retention.msec": "1"}, "did you mean 'retention.ms'"),
        ({"zzz": "1"}, "unknown topic setting"),
        ({"retention.ms": "soon"}, "retention.ms"),
        ({"retention.ms": "-2"}, "retention.ms"),
        ({"segment.bytes": "1"}, "segment.bytes"),
        ({"min.insync.replicas": "0"}, "min.insync.replicas"),
        ({"min.insync.replicas": "many"}, "min.insync.replicas"),
        ({"cleanup.policy": "compress"}, "cleanup.policy"),
        ({"max.message.bytes": "2MiB"}, "above the broker's"),
        ({"segment.bytes": "4096"}, "no batch would fit"),
    ],
)
def test_what_cannot_be_is_refused_by_name(written: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidConfigurationError, match=words):
        parse_overrides(written, TopicConfig(), MESSAGE_MAX)


def test_a_topics_settings_lie_over_the_brokers() -> None:
    defaults = TopicConfig(retention_ms=5, segment_ms=7)
    found = effective(defaults, {"retention.ms": "9"})
    assert (found.retention_ms, found.segment_ms) == (9, 7)


def test_a_setting_of_another_version_is_passed_over_when_read_back() -> None:
    assert effective(TopicConfig(), {"a.setting.of.tomorrow": "1"}) == TopicConfig()


def test_every_setting_survives_its_text() -> None:
    config = TopicConfig(segment_bytes=8192, max_message_bytes=4096, storage="memory", retention_bytes=1 << 40)
    assert from_texts(to_texts(config)) == config
    assert set(to_texts(config)) == set(DOTTED)
