"""A topic's settings as people and messages write them: texts by Kafka's dotted names.

Guarantees: `parse_overrides` accepts `retention.ms` and `retention_ms`, '7d' and '64KiB', and refuses the unknown and
the out of bounds with InvalidConfigurationError that names it. What it returns is what the metadata log keeps: dotted
names, plain values.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import msgspec

from zbroker.config.load import parse_duration_ms, parse_size_bytes
from zbroker.config.schema import TopicConfig
from zbroker.errors import ConfigError, InvalidConfigurationError

FIELDS = tuple(TopicConfig.__struct_fields__)
DOTTED = {name.replace("_", "."): name for name in FIELDS}


def parse_overrides(overrides: Mapping[str, str], defaults: TopicConfig, max_message_bytes: int) -> dict[str, str]:
    """Check settings of a topic and give them in their one form. Raises InvalidConfigurationError."""
    parsed: dict[str, str] = {}
    for name, text in overrides.items():
        dotted = name.replace("_", ".")
        if dotted not in DOTTED:
            close = difflib.get_close_matches(dotted, DOTTED, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidConfigurationError(f"unknown topic setting {name!r}{hint}")
        parsed[dotted] = _plain(dotted, str(text))
    found = effective(defaults, parsed)
    if found.max_message_bytes > max_message_bytes:
        raise InvalidConfigurationError(
            f"max.message.bytes {found.max_message_bytes} is above the broker's {max_message_bytes}",
            hint="limits.message_max_bytes in zbroker.toml",
        )
    if found.segment_bytes < found.max_message_bytes:
        sizes = f"segment.bytes {found.segment_bytes} is below max.message.bytes {found.max_message_bytes}"
        raise InvalidConfigurationError(f"{sizes}: no batch would fit")
    return parsed


def _plain(dotted: str, text: str) -> str:
    try:
        if dotted.endswith(".ms"):
            return str(parse_duration_ms(text, dotted))
        if dotted.endswith(".bytes"):
            return str(parse_size_bytes(text, dotted))
    except ConfigError as error:
        raise InvalidConfigurationError(str(error)) from error
    return text


def effective(defaults: TopicConfig, overrides: Mapping[str, str]) -> TopicConfig:
    """The settings in force: the broker's defaults, and over them the topic's own. Raises InvalidConfigurationError."""
    values: dict[str, object] = {name: getattr(defaults, name) for name in FIELDS}
    for dotted, text in overrides.items():
        if dotted in DOTTED:  # an older broker's setting that exists no more is passed over
            values[DOTTED[dotted]] = text
    try:
        return msgspec.convert(values, TopicConfig, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`").replace("_", ".")
        raise InvalidConfigurationError(f"{name}: {message}") from error


def to_texts(config: TopicConfig) -> dict[str, str]:
    """Every setting as text by its dotted name: what a grant carries."""
    return {dotted: str(getattr(config, name)) for dotted, name in DOTTED.items()}


def from_texts(texts: Mapping[str, str]) -> TopicConfig:
    """The inverse of `to_texts`; what is missing has its default. Raises InvalidConfigurationError."""
    return effective(TopicConfig(), texts)
