"""What every role shares: exit codes, settings read again, limits."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zbroker.config.schema import RELOADABLE, LoggingSection, ServerConfig, StorageSection, WorkersSection
from zbroker.errors import ConfigError, DirectoryLockedError, StorageError
from zbroker.workers.grants import topic_config
from zbroker.workers.runtime import apply_reloadable, exit_code_of, raise_descriptor_limit


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ConfigError("workers.count"), 2),
        (DirectoryLockedError("held"), 75),
        (StorageError("EIO"), 70),
        (RuntimeError("nobody expected it"), 70),
    ],
)
def test_what_ends_a_role_becomes_its_exit_code(error: Exception | None, code: int) -> None:
    def body() -> None:
        if error is not None:
            raise error

    assert exit_code_of(body) == code


def test_only_what_may_change_is_taken_over_from_settings_read_again() -> None:
    config = ServerConfig()
    fresh = ServerConfig(
        logging=LoggingSection(level="debug", format="json"),
        storage=StorageSection(disk_free_min_bytes=5, high_watermark_checkpoint_interval_ms=77),
        workers=WorkersSection(count=7),
    )
    changed = apply_reloadable(config, fresh)
    assert changed == ["logging.level", "storage.disk_free_min_bytes"]
    assert set(changed) <= RELOADABLE
    assert (config.logging.level, config.storage.disk_free_min_bytes) == ("debug", 5)
    assert config.logging.format == "text"
    assert config.workers.count == "auto"
    assert config.storage.high_watermark_checkpoint_interval_ms == 5_000


def test_the_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert raise_descriptor_limit() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_topic_settings_come_as_text_with_dots_or_underscores() -> None:
    config = topic_config({"retention.ms": "5000", "flush_messages": "7", "message.timestamp.type": "LogAppendTime"})
    assert (config.retention_ms, config.flush_messages) == (5_000, 7)
    assert config.message_timestamp_type == "LogAppendTime"


ROLE = """
import sys
from zbroker.config.schema import BrokerSection, LoggingSection, ServerConfig
from zbroker.workers.runtime import Role, exit_code_of
config = ServerConfig(broker=BrokerSection(data_dir=sys.argv[1] + "/data", run_dir=sys.argv[1] + "/run"))
fresh = ServerConfig(logging=LoggingSection(level="debug"))
def body():
    with Role.start(config, 16, reload=lambda: fresh) as role:
        role.make_board(4)
        role.set_running()
        role.on_reload(lambda: print("level", role.config.logging.level, flush=True))
        print("running", flush=True)
        role.run()
        if sys.argv[2] == "slow":
            print("at once", role.must_stop_now, flush=True)
            while not role.must_stop_now:
                role.turn(10)
        print("stopped", flush=True)
sys.exit(exit_code_of(body))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    # On tmpfs, so that boards lie below it too and are removed with it.
    path = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def start_role(directory: Path, *, slow: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ROLE, str(directory), "slow" if slow else "quick"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_ends_in_order_at_a_signal_and_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    process = start_role(directory)
    assert (directory / "run" / "lock-worker-0").exists()
    assert (directory / "run" / "data-dirs").read_bytes()
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("stopped\n", 0)
    assert [path for path in (directory / "run").rglob("*") if path.is_file()] == []
    assert (directory / "run").stat().st_mode & 0o777 == 0o700


def test_a_second_signal_gives_up_draining(directory: Path) -> None:
    process = start_role(directory, slow=True)
    assert process.stdout is not None
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "at once False\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("stopped\n", 0)


def test_sighup_reads_the_settings_again(directory: Path) -> None:
    process = start_role(directory)
    process.send_signal(signal.SIGHUP)
    assert process.stdout is not None
    assert process.stdout.readline() == "level debug\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "changed=logging.level" in err
