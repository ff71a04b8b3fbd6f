"""Each rule of the doctor, provoked, and the fix that it names."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from zbroker.cli.main import main
from zbroker.config.load import load
from zbroker.config.paths import paths_for
from zbroker.config.presets import PRESETS
from zbroker.config.schema import MIB, ServerConfig
from zbroker.doctor import host, settings, traffic
from zbroker.doctor.findings import Finding, Level
from zbroker.ids import own_incarnation, worker_number
from zbroker.shm.board import READERS_GONE_NS, BoardWriter, PartitionView
from zbroker.shm.layout import CellState, Counter

HERE = Path("/somewhere")


@pytest.mark.parametrize(
    ("finding", "level", "fix"),
    [
        (host.open_files(1024, 512), Level.FAIL, "LimitNOFILE"),
        (host.open_files(1024, 4096), Level.WARN, "LimitNOFILE"),
        (host.open_files(1024, 1 << 20), Level.PASS, ""),
        (host.shared_memory(8 * MIB, MIB), Level.FAIL, "shm-size"),
        (host.shared_memory(64 * MIB, 256 * MIB), Level.WARN, "limits.lane_bytes_total_max"),
        (host.shared_memory(1024 * MIB, 256 * MIB), Level.PASS, ""),
        (host.clock_source("hpet"), Level.WARN, "tsc"),
        (host.clock_source("tsc"), Level.PASS, ""),
        (host.data_directory(HERE, exists=False, is_readable=False), Level.WARN, "--data-dir"),
        (host.data_directory(HERE, exists=True, is_readable=False), Level.FAIL, "as the user"),
        (host.data_directory(HERE, exists=True, is_readable=True), Level.PASS, ""),
        (host.file_system("nfs4", HERE), Level.FAIL, "--data-dir"),
        (host.file_system("tmpfs", HERE), Level.WARN, "--data-dir"),
        (host.file_system("ext4", HERE), Level.PASS, ""),
        (host.disk_room(MIB, 16 * MIB, HERE), Level.FAIL, "retention.ms"),
        (host.disk_room(32 * MIB, 16 * MIB, HERE), Level.WARN, "retention.ms"),
        (host.disk_room(1024 * MIB, 16 * MIB, HERE), Level.PASS, ""),
        (host.mappings(1000), Level.WARN, "vm.max_map_count"),
        (host.leftovers(2, HERE), Level.WARN, "zbroker serve"),
        (host.temporary_directories([HERE, HERE / "b"]), Level.WARN, f"rm -r {HERE} {HERE / 'b'}"),
        (host.temporary_directories([]), Level.PASS, ""),
        (host.versions((3, 11, 7), (4, 3, 4)), Level.FAIL, "pyzmq"),
        (host.versions((3, 11, 7), (4, 3, 5)), Level.PASS, ""),
        (host.cores(2, 16), Level.WARN, "workers.count"),
    ],
)
def test_a_host_rule_names_its_fix(finding: Finding, level: Level, fix: str) -> None:
    assert finding.level is level
    assert fix in finding.fix
    assert bool(finding.fix) == (level is not Level.PASS)


def config_with(*overrides: str) -> ServerConfig:
    return load(environment={}, overrides=overrides).config


def test_rule_3_frequent_rebalances_are_traced_to_max_poll_interval_ms() -> None:
    config = ServerConfig()
    assert settings.rebalances(config).level is Level.PASS
    config.client.consumer = {"max_poll_interval_ms": 20_000, "session_timeout_ms": 10_000}
    assert settings.rebalances(config).level is Level.WARN
    config.client.consumer = {"max_poll_interval_ms": 5_000}
    assert settings.rebalances(config).level is Level.FAIL
    assert "max_poll_interval_ms" in settings.rebalances(config).fix


def test_rule_4_data_loss_is_traced_to_acks() -> None:
    config = ServerConfig()
    assert settings.acknowledgements(config).level is Level.PASS
    config.client.producer = {"acks": 0}
    assert settings.acknowledgements(config).level is Level.FAIL
    config.client.producer = {"acks": 1}
    assert settings.acknowledgements(config).level is Level.PASS
    config.replicas.count = 2
    assert settings.acknowledgements(config).level is Level.WARN
    assert "acks" in settings.acknowledgements(config).fix


def test_rule_5_disk_load_is_traced_to_the_flush_interval() -> None:
    assert settings.flushes(ServerConfig()).level is Level.PASS
    assert settings.flushes(config_with("topics.flush_messages=10000")).level is Level.PASS
    for override in ("topics.flush_messages=10", "topics.flush_ms=5"):
        finding = settings.flushes(config_with(override))
        assert finding.level is Level.WARN
        assert "topics.flush_" in finding.fix


def test_the_no_loss_preset_passes_the_rule_against_loss() -> None:
    config = load(environment={}, preset=PRESETS["no-loss"]).config
    assert settings.acknowledgements(config).level is Level.PASS


def test_boards_of_dead_processes_are_leftovers(tmp_path: Path) -> None:
    own = own_incarnation()
    (tmp_path / f"router.{own:016x}.board").touch()
    (tmp_path / f"worker-0.{own + (1 << 30):016x}.board").touch()
    assert [path.name for path in host.dead_boards(tmp_path)] == [f"worker-0.{own + (1 << 30):016x}.board"]


def test_every_rule_answers_on_this_host(tmp_path: Path) -> None:
    config = ServerConfig()
    config.broker.data_dir = str(tmp_path)
    findings = host.examine_host(config, paths_for(config), (4, 3, 5)) + settings.examine_settings(config)
    assert len({finding.rule for finding in findings}) == len(findings) == 14
    assert host.file_system_of(tmp_path)


def test_rule_2_slow_produce_is_traced_to_small_batches() -> None:
    """S-194: the batch size and the linger time are what to change."""
    assert traffic.batching(10, 10, 1_000).level is Level.PASS
    assert traffic.batching(5_000, 500_000, 50_000_000).level is Level.PASS
    finding = traffic.batching(5_000, 6_000, 600_000)
    assert finding.level is Level.WARN
    assert "linger_ms" in finding.fix
    assert "batch_size" in finding.fix


NOW_NS = 10 * READERS_GONE_NS


def look(
    high_watermark: int, readers_next: int, state: CellState = CellState.LEADING, seen_ns: int = NOW_NS
) -> PartitionView:
    return PartitionView(1, 0, 1, 0, high_watermark, 0, 0, high_watermark, 0, 0, 0, 1, state, readers_next, seen_ns)


def test_rule_1_a_backlog_is_traced_to_too_few_consumers() -> None:
    """S-193: more consumers, each with its own partitions, are what to add."""
    assert traffic.backlog([], NOW_NS).level is Level.PASS
    assert traffic.backlog([look(5_000_000, 0)], NOW_NS).level is Level.PASS, "nobody reads it"
    assert traffic.backlog([look(5_000_000, 4_999_991)], NOW_NS).level is Level.PASS
    assert traffic.backlog([look(5_000_000, 1, CellState.RETIRED)], NOW_NS).level is Level.PASS, "led elsewhere by now"
    long_ago_ns = NOW_NS - READERS_GONE_NS
    assert traffic.backlog([look(5_000_000, 1, seen_ns=long_ago_ns)], NOW_NS).level is Level.PASS, "its reader has left"
    finding = traffic.backlog([look(10, 11), look(5_000_000, 4_000_001)], NOW_NS)
    assert finding.level is Level.WARN
    assert "1000000 records behind in 2 partitions" in finding.message
    assert "more consumers" in finding.fix
    assert "zbroker topics partitions" in finding.fix


def test_the_traffic_of_live_workers_is_read_from_their_boards(tmp_path: Path) -> None:
    board = BoardWriter.create(tmp_path, worker_number(0), own_incarnation(), cells=1)
    board.set_counter(Counter.BATCHES_IN, 2_000)
    board.set_counter(Counter.RECORDS_IN, 2_000)
    board.set_counter(Counter.BYTES_IN, 200_000)
    cell = board.claim(1, 0)
    cell.restate(
        leader_epoch=1, log_start=0, log_end=900_000, segment_base=0, position=0, high_watermark=900_000, durable=0,
        size_bytes=0, segment_count=1,
    )  # fmt: skip
    cell.note_reader(1_000)
    cell.note_reader(500)
    assert [finding.level for finding in traffic.examine_traffic(tmp_path)] == [Level.WARN, Level.WARN]
    assert "899000 records behind" in traffic.examine_traffic(tmp_path)[1].message
    board.close(unlink=True)
    assert [finding.level for finding in traffic.examine_traffic(tmp_path)] == [Level.PASS, Level.PASS]


def test_the_command_prints_every_rule_and_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["doctor", "--data-dir", str(tmp_path), "--json"]
    assert main(arguments) in (0, 4)
    found = msgspec.json.decode(capsys.readouterr().out)
    assert {"batching", "backlog", "acknowledgements", "open files"} <= {entry["rule"] for entry in found}
    assert main([*arguments, "-C", "client.producer={}"]) == 2, "a setting that is none is a usage error"


def test_a_data_directory_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json", "--data-dir", str(tmp_path / "typo")])
    found = {entry["rule"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["data directory"]["level"] == "WARN"
    assert f"{tmp_path / 'typo'} does not exist" in found["data directory"]["message"]
