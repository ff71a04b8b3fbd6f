"""Read the settings: file, then environment, then command line; each later one wins.

Guarantees: the result is fully typed and within every bound, or ConfigError names the setting, where it came from, and
the nearest known name. Nothing is read at import. Environment: `ZBROKER__WORKERS__COUNT=8` is `workers.count`;
command line: `-C workers.count=8`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec

from zbroker.config.schema import ServerConfig
from zbroker.errors import ConfigError

ENVIRONMENT_PREFIX = "ZBROKER__"
_LOOPBACK = re.compile(r"tcp://(127\.\d+\.\d+\.\d+|localhost|\[::1\]):\d+")
_DURATION_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE_BYTES = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


class Setting(NamedTuple):
    """One setting as `config explain` shows it."""

    name: str
    type: str
    default: object
    text: str


class Loaded(NamedTuple):
    """The settings and, for each name that was set, where its value came from."""

    config: ServerConfig
    origins: Mapping[str, str]


def settings() -> dict[str, Setting]:
    """Every setting by its dotted name, in the order of the schema."""
    found: dict[str, Setting] = {}
    for section_field in msgspec.structs.fields(ServerConfig):
        section = section_field.type
        if not (isinstance(section, type) and issubclass(section, msgspec.Struct)):
            continue
        found |= described(section, section_field.name)
    return found


def differences(one: ServerConfig, other: ServerConfig) -> list[str]:
    """The names of the settings in which they differ."""
    sections = ((getattr(one, name), getattr(other, name), name) for name in ServerConfig.__struct_fields__)
    return [
        f"{name}.{key}"
        for left, right, name in sections
        if isinstance(left, msgspec.Struct)
        for key in left.__struct_fields__
        if getattr(left, key) != getattr(right, key)
    ]


def described(section: type[msgspec.Struct], prefix: str) -> dict[str, Setting]:
    """The settings of one section by their dotted names."""
    found: dict[str, Setting] = {}
    hints = get_type_hints(section, include_extras=True)
    for entry in msgspec.structs.fields(section):
        name = f"{prefix}.{entry.name}"
        text = next((m.description for m in get_args(hints[entry.name]) if isinstance(m, msgspec.Meta)), "") or ""
        default = entry.default_factory() if entry.default is msgspec.NODEFAULT else entry.default
        found[name] = Setting(name, _type_text(hints[entry.name]), default, text)
    return found


def _type_text(hint: Any) -> str:
    bounds = [m for m in get_args(hint) if isinstance(m, msgspec.Meta)]
    inner = get_args(hint)[0] if bounds else hint
    text = getattr(inner, "__name__", None) or re.sub(r"typing\.|collections\.abc\.|zbroker\.\S+\.", "", str(inner))
    if text in ("Literal", "Union", "Optional", "Annotated", "UnionType"):
        parts = [part for part in get_args(inner) if not isinstance(part, msgspec.Meta)]
        text = " | ".join(repr(part) if isinstance(part, str | int) else _type_text(part) for part in parts)
        text = text.replace("NoneType", "None")
    low = next((m.ge if m.ge is not None else f">{m.gt}" for m in bounds if m.ge is not None or m.gt is not None), None)
    high = next((m.le for m in bounds if m.le is not None), None)
    if low is not None or high is not None:
        text += f" {low if low is not None else ''}..{high if high is not None else ''}"
    return text


def load(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    preset: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read the settings. `overrides` are `name=value` texts of the command line. Raises ConfigError."""
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if preset is not None:
        _merge(tree, preset, origins, "preset")
    if path is not None:
        _merge(tree, _read_toml(path), origins, str(path))
    for key, value in (os.environ if environment is None else environment).items():
        if key.startswith(ENVIRONMENT_PREFIX):
            name = key[len(ENVIRONMENT_PREFIX) :].lower().replace("__", ".")
            _set(tree, name, value, origins, f"environment {key}")
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"-C {text}: write it as name=value")
        _set(tree, name.strip(), value.strip(), origins, f"-C {text}")
    return Loaded(_convert(tree, origins), origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; zbroker config check FILE looks at a file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _merge(tree: dict[str, Any], other: Mapping[str, Any], origins: dict[str, str], origin: str) -> None:
    known_sections = set(ServerConfig.__struct_fields__)
    for section, values in other.items():
        if section not in known_sections:
            raise ConfigError(f"{origin}: unknown section [{section}]{_suggest(section, known_sections)}")
        if isinstance(values, Mapping):
            into = tree.setdefault(section, {})
            for key, value in values.items():
                check_name(f"{section}.{key}", origin)
                into[key] = _with_units(f"{section}.{key}", value, origin)
                origins[f"{section}.{key}"] = origin
        else:
            tree[section] = values
            origins[section] = origin


def _set(tree: dict[str, Any], name: str, text: str, origins: dict[str, str], origin: str) -> None:
    check_name(name, origin)
    section, _, key = name.partition(".")
    tree.setdefault(section, {})[key] = _with_units(name, _parse(name, text), origin)
    origins[name] = origin


def check_name(name: str, origin: str, known: Collection[str] | None = None) -> None:
    """Raise ConfigError, with the nearest known name, unless `name` is a setting: of the server, or of `known`."""
    known = settings() if known is None else known
    if name not in known:
        close = _suggest(name, known)
        raise ConfigError(f"{origin}: unknown setting {name!r}{close}; zbroker config explain lists them")


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parse(name: str, text: str) -> object:
    """Turn a text of the environment or command line into what TOML would have given."""
    default = settings()[name].default
    if isinstance(default, bool):
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        return text
    if re.fullmatch(r"[+-]?\d[\d_]*", text) and not (isinstance(default, str) and name != "workers.count"):
        return int(text)
    return text


def _with_units(name: str, value: object, origin: str) -> object:
    """Accept '10s' for a name that ends in _ms and '64KiB' for one that ends in _bytes."""
    if not isinstance(value, str):
        return value
    if name.endswith("_ms"):
        return parse_duration_ms(value, f"{origin}: {name}")
    if "_bytes" in name:
        return parse_size_bytes(value, f"{origin}: {name}")
    return value


def _parse_quantity(text: str, units: Mapping[str, int], what: str, example: str) -> int:
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).lower() if match else ""
    if match is None or (unit and unit not in units):
        raise ConfigError(f"{what}: {text!r} is not a quantity; write it as {example}")
    return int(float(match.group(1)) * (units[unit] if unit else 1))


def parse_duration_ms(text: str, what: str = "duration") -> int:
    """`250`, `250ms`, `10s`, `5m`, `1h`, `7d` in milliseconds. Raises ConfigError that begins with `what`."""
    return _parse_quantity(text, _DURATION_MS, what, "250ms, 10s, 5m, 1h or 7d")


def parse_size_bytes(text: str, what: str = "size") -> int:
    """`4096`, `64KiB`, `1MiB`, `1GB` in bytes. Raises ConfigError that begins with `what`."""
    return _parse_quantity(text, _SIZE_BYTES, what, "4096, 64KiB, 1MiB or 1GB")


def _convert(tree: dict[str, Any], origins: Mapping[str, str]) -> ServerConfig:
    try:
        config = msgspec.convert(tree, ServerConfig)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        origin = origins.get(name, "settings")
        known = settings().get(name)
        meant = f"; it is {known.type}" if known else ""
        raise ConfigError(f"{origin}: {name}: {message}{meant}; zbroker config explain {name}") from error
    check(config)
    return config


def check(config: ServerConfig) -> None:
    """The rules that concern more than one setting. Raises ConfigError."""
    if config.topics.max_message_bytes > config.limits.message_max_bytes:
        raise ConfigError("topics.max_message_bytes is above limits.message_max_bytes")
    if config.topics.segment_bytes < config.topics.max_message_bytes:
        raise ConfigError("topics.segment_bytes is below topics.max_message_bytes: no batch would fit")
    if config.limits.lane_bytes_max < 2 * config.limits.message_max_bytes:
        raise ConfigError("limits.lane_bytes_max is below twice limits.message_max_bytes: a lane must hold two batches")
    if config.broker.num_partitions > config.limits.partitions_per_topic_max:
        raise ConfigError("broker.num_partitions is above limits.partitions_per_topic_max")
    workers, replicas = worker_count(config), config.replicas.count
    if workers and config.broker.replication_factor > workers + replicas:
        raise ConfigError(
            f"broker.replication_factor {config.broker.replication_factor}: each copy has a process of its own, and "
            f"there are {workers} workers and {replicas} replicas; raise workers.count or replicas.count"
        )
    if config.supervisor.restart_backoff_ms > config.supervisor.restart_backoff_max_ms:
        raise ConfigError("supervisor.restart_backoff_ms is above supervisor.restart_backoff_max_ms")
    if config.network.tcp_listen and not config.network.tcp_unauthenticated_loopback:
        raise ConfigError(
            "network.tcp_listen needs network.tcp_unauthenticated_loopback = true: "
            "over tcp every user of this host can connect"
        )
    if config.network.tcp_listen and not _LOOPBACK.fullmatch(config.network.tcp_listen):
        raise ConfigError("network.tcp_listen must be a loopback address with a port, such as tcp://127.0.0.1:9190")


def worker_count(config: ServerConfig) -> int:
    """How many workers `workers.count` means on this host; 0 for per-partition."""
    if config.workers.count == "per-partition":
        return 0
    if config.workers.count == "auto":
        return min(8, len(os.sched_getaffinity(0)))
    return config.workers.count
