"""Settings: where they come from, what they refuse, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from zbroker.config.load import load, parse_duration_ms, parse_size_bytes, settings
from zbroker.config.paths import make_directories, paths_for
from zbroker.config.presets import PRESETS
from zbroker.config.schema import ServerConfig
from zbroker.errors import ConfigError


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text("[workers]\ncount = 2\npin = true\n[limits]\ntopics_max = 7\n")
    environment = {"ZBROKER__WORKERS__COUNT": "3", "ZBROKER__LIMITS__TOPICS_MAX": "8", "HOME": "/"}
    loaded = load(file, environment=environment, overrides=["workers.count=4"])
    assert loaded.config.workers.count == 4
    assert loaded.config.workers.pin is True
    assert loaded.config.limits.topics_max == 8
    assert loaded.origins["workers.count"] == "-C workers.count=4"
    assert loaded.origins["limits.topics_max"] == "environment ZBROKER__LIMITS__TOPICS_MAX"
    assert loaded.origins["workers.pin"] == str(file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workers.cuont=2", ["workers.cuont", "did you mean 'workers.count'"]),
        ("workers.count=0", ["workers.count", ">= 1"]),
        ("workers.count=many", ["workers.count", "'many'", "int 1..256 | 'auto' | 'per-partition'"]),
        ("topics.retention_ms=soon", ["topics.retention_ms", "5m"]),
        ("limits.topics_max=-1", ["limits.topics_max", ">= 1"]),
        ("nothing", ["name=value"]),
        ("topics.max_message_bytes=2MiB", ["max_message_bytes", "limits.message_max_bytes"]),
        ("network.tcp_listen=tcp://127.0.0.1:9190", ["tcp_unauthenticated_loopback"]),
    ],
)
def test_a_bad_setting_is_refused_by_name(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(environment={}, overrides=[override])
    for word in words:
        assert word in str(caught.value)


def test_a_public_address_is_refused() -> None:
    overrides = ["network.tcp_unauthenticated_loopback=true", "network.tcp_listen=tcp://10.0.0.1:9190"]
    with pytest.raises(ConfigError, match="loopback"):
        load(environment={}, overrides=overrides)


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("workers = [")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(bad, environment={})
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml", environment={})
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("[worker]\ncount = 2\n")
    with pytest.raises(ConfigError, match=r"\[worker\]; did you mean 'workers'"):
        load(unknown, environment={})


@pytest.mark.parametrize(
    ("text", "expected"), [("250", 250), ("10s", 10_000), ("1.5h", 5_400_000), ("-1", -1), ("7d", 604_800_000)]
)
def test_durations_are_read_in_milliseconds(text: str, expected: int) -> None:
    assert parse_duration_ms(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("4096", 4096), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2 GB", 2 * 10**9)]
)
def test_sizes_are_read_in_bytes(text: str, expected: int) -> None:
    assert parse_size_bytes(text) == expected


def test_every_setting_has_a_meaning() -> None:
    silent = [entry.name for entry in settings().values() if not entry.text and not entry.name.startswith("client.")]
    assert not silent


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_valid(name: str) -> None:
    assert load(environment={}, preset=PRESETS[name]).config != ServerConfig()


def test_the_kafka_preset_has_the_articles_values() -> None:
    """S-031, S-045, S-068, S-069, S-081, S-082, S-142..S-145."""
    config = load(environment={}, preset=PRESETS["kafka"]).config
    assert config.topics.segment_bytes == 1 << 30
    assert config.topics.flush_messages == 10_000
    assert config.network.io_threads == 8
    assert config.workers.count == 16
    assert config.client.producer["batch_size"] == 16_384
    assert config.client.producer["linger_ms"] == 5
    assert config.client.consumer == {
        "fetch_min_bytes": 1024,
        "max_poll_records": 500,
        "max_poll_interval_ms": 300_000,
        "session_timeout_ms": 10_000,
    }


def test_a_run_directory_that_is_too_long_for_a_socket_is_refused() -> None:
    config = ServerConfig()
    config.broker.run_dir = "/tmp/" + "r" * 100
    with pytest.raises(ConfigError, match=r"107; give a shorter directory with --run-dir"):
        paths_for(config)


def test_two_data_directories_have_two_run_directories(tmp_path: Path) -> None:
    first, second = ServerConfig(), ServerConfig()
    first.broker.data_dir = str(tmp_path / "a")
    second.broker.data_dir = str(tmp_path / "b")
    assert paths_for(first).run_dir != paths_for(second).run_dir
    assert paths_for(first) == paths_for(first)


def test_boards_lie_on_tmpfs_wherever_the_run_directory_is(tmp_path: Path) -> None:
    config = ServerConfig()
    config.broker.data_dir = str(tmp_path / "data")
    config.broker.run_dir = "/var/tmp/zb-run"
    assert str(paths_for(config).boards_dir).startswith("/dev/shm/zbroker-")


def test_directories_are_made_private_to_the_user(tmp_path: Path) -> None:
    config = ServerConfig()
    config.broker.data_dir = str(tmp_path / "data")
    config.broker.run_dir = str(tmp_path / "run")
    paths = paths_for(config)._replace(boards_dir=tmp_path / "boards", memory_dir=tmp_path / "memory")
    make_directories(paths)
    for directory in (paths.data_dir, paths.metadata_dir, paths.run_dir, paths.boards_dir, *paths.copies_dirs):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_place_of_a_directory_is_named(tmp_path: Path) -> None:
    config = ServerConfig()
    (tmp_path / "data").write_text("")
    config.broker.data_dir = str(tmp_path / "data")
    config.broker.run_dir = str(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"broker\.data_dir: cannot make"):
        make_directories(paths_for(config))


def test_a_directory_of_another_user_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Path("/closed/run")
    real = Path.exists

    def exists(path: Path) -> bool:  # root may look everywhere
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    paths = paths_for(load(overrides=[f"broker.run_dir={closed}"], environment={}).config)
    assert paths.run_dir == closed
    assert not paths.boards_dir.is_relative_to(closed)
