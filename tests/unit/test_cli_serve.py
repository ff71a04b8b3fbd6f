"""`zbroker serve`: which process it becomes, with which settings. The processes themselves are tested elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zbroker import ids
from zbroker.cli.main import main
from zbroker.config.schema import ServerConfig
from zbroker.workers import supervisor

Seen = dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What serve would have started."""
    found: Seen = {}

    def whole(config: ServerConfig, *, reload: Callable[[], ServerConfig]) -> int:
        found.update(config=config, reload=reload, data_dir=Path(config.broker.data_dir))
        found["directory_existed"] = Path(config.broker.data_dir).parent.is_dir()
        return int(found.get("exit_code", 0))

    def single(config: ServerConfig, number: int, reload: Callable[[], ServerConfig]) -> int:
        found.update(config=config, number=number, reload=reload)
        return 0

    monkeypatch.setattr(supervisor, "main", whole)
    monkeypatch.setattr(supervisor, "run_role", single)
    return found


def test_options_win_over_c_settings_which_win_over_the_file_and_the_preset(seen: Seen, tmp_path: Path) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text("[workers]\ncount = 3\n[broker]\nnum_partitions = 5\n[topics]\nmin_insync_replicas = 1\n")
    arguments = ["serve", "-c", str(file), "-C", "workers.count=4", "-C", "logging.level=error", "--preset", "no-loss"]
    assert (
        main([*arguments, "--workers", "2", "--data-dir", str(tmp_path / "d"), "--run-dir", str(tmp_path / "r")]) == 0
    )
    config = seen["config"]
    assert config.workers.count == 2
    assert config.logging.level == "error"
    assert config.broker.num_partitions == 5
    assert config.topics.min_insync_replicas == 1
    assert config.replicas.count == 2
    assert config.broker.data_dir == str(tmp_path / "d")
    assert config.broker.run_dir == str(tmp_path / "r")


@pytest.mark.parametrize("count", ["auto", "per-partition", "7"])
def test_workers_takes_a_number_and_two_words(seen: Seen, count: str) -> None:
    assert main(["serve", "--workers", count]) == 0
    assert str(seen["config"].workers.count) == count


def test_a_reload_reads_the_file_again(seen: Seen, tmp_path: Path) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text('[logging]\nlevel = "info"\n')
    assert main(["serve", "-c", str(file), "--workers", "2"]) == 0
    file.write_text('[logging]\nlevel = "debug"\n')
    again = seen["reload"]()
    assert again.logging.level == "debug"
    assert again.workers.count == 2


def test_the_supervisors_exit_code_is_the_commands(seen: Seen) -> None:
    seen["exit_code"] = 75
    assert main(["serve"]) == 75


def test_an_ephemeral_broker_leaves_no_directory(seen: Seen) -> None:
    assert main(["serve", "--ephemeral"]) == 0
    assert seen["directory_existed"]
    assert not seen["data_dir"].parent.exists()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["--role", "router"], ids.ROUTER),
        (["--role", "coordinator"], ids.COORDINATOR),
        (["--role", "worker", "--id", "2"], ids.worker_number(2)),
        (["--role", "replica", "--id", "1"], ids.replica_number(1)),
    ],
)
def test_a_role_alone_has_its_process_number(seen: Seen, arguments: list[str], number: int) -> None:
    assert main(["serve", *arguments]) == 0
    assert seen["number"] == number


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ephemeral", "--data-dir", "/tmp/x"], "--ephemeral"),
        (["--ephemeral", "--role", "router"], "--ephemeral"),
        (["--role", "worker", "--workers", "per-partition"], "without --role"),
        (["--workers", "0"], "workers.count"),
        (["--workers", "many"], "workers.count"),
        (["--run-dir", "/" + "x" * 100, "--role", "gateway"], "gateway"),
        (["-C", "workers.cuont=1"], "did you mean"),
    ],
)
def test_what_cannot_be_started_is_refused(
    seen: Seen, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not seen
