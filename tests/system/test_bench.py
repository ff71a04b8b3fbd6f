"""Every benchmark in small: it runs, and what it reports is of one shape and adds up. Speed is not judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from zbroker.load.bench_crew import run_tasks
from zbroker.load.bench_target import own_broker
from zbroker.load.bench_task import Task
from zbroker.load.results import Results, load_results

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zbroker", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def measured(*words: str) -> Results:
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout, type=Results)


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        (("produce", "-n", "20000", "--rounds", "2"), {"producer-0"}),
        (("produce", "-n", "20000", "--mode", "sender", "--acks", "1", "--rounds", "1"), {"producer-0"}),
        (
            (
                "produce", "-n", "20000", "--mode", "send_many", "--compression", "lz4", "--partitions", "3", "--pin",
                "--workers", "2", "--producers", "2", "--batch", "16384", "--rounds", "1",
            ),
            {"producer-0", "producer-1", "worker-1"},
        ),
        (("consume", "-n", "20000", "--rounds", "1"), {"consumer-0"}),
        (
            ("consume", "-n", "20000", "--mode", "batches", "--partitions", "2", "--consumers", "2", "--rounds", "1"),
            {"consumer-0", "consumer-1"},
        ),
        (("latency", "-n", "200", "--rounds", "1"), {"producer-0"}),
        (("latency", "-n", "100", "--transport", "zmq", "--rounds", "1", "--rate", "500"), {"producer-0"}),
        (("e2e", "-n", "200", "--rounds", "1"), {"producer-0", "consumer-0"}),
        (("produce", "-n", "100", "--rate", "500", "--rounds", "1", "--seed", "9"), {"producer-0"}),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)  # fmt: skip
def test_a_benchmark_says_what_it_measured_and_what_each_process_used(
    words: tuple[str, ...], processes: set[str]
) -> None:
    found = measured(*words)
    assert found.command.startswith("zbroker bench " + words[0])
    assert found.seed == (9 if "--seed" in words else 1)
    assert set(found.file_systems) == {"data"}
    assert all(row.value >= 0 for row in found.rows)
    assert any(row.value > 0 for row in found.rows)
    costs = found.tables[0]
    assert costs.columns[0] == "PROCESS"
    assert {row[0] for row in costs.rows} >= processes | {"worker-0", "router", "coordinator"}
    cpu_us = {row[0]: row[1] for row in costs.rows}
    assert all(isinstance(cpu_us[name], float) and cpu_us[name] > 0 for name in processes)  # type: ignore[operator]


def test_an_open_loop_shows_delays_by_stage_and_draws_them() -> None:
    found = measured("e2e", "-n", "300", "--rounds", "1", "--rate", "300")
    names = {row.what for row in found.rows}
    assert names >= {"end to end, p50", "due to appended, p50", "producer was late, p50"}
    assert "acknowledge, called back, p99" in names
    at = {row.what: row.value for row in found.rows}
    assert at["end to end, p50"] <= at["end to end, p99"]
    assert [line.name for line in found.plots[0].series] == ["end to end", "due to appended"]


def test_acknowledgements_are_waited_for_and_called_back() -> None:
    found = measured("latency", "-n", "200", "--rounds", "1", "--rate", "400")
    names = [row.what for row in found.rows]
    assert names.count("producer was late, p50") == 2, "of either producer"
    assert {"acknowledge, waited for, p50", "acknowledge, called back, p50"} <= set(names)
    assert len(found.tables) == len(found.plots) == 2


def test_failover_counts_what_was_acknowledged_and_reads_it_back() -> None:
    found = measured("failover", "--kills", "2", "--pauses", "1")
    at = {row.what: row.value for row in found.rows}
    assert at["lost"] == at["duplicated"] == at["reordered"] == 0
    assert at["records acknowledged"] > 100


def test_results_are_kept_where_output_says_and_people_get_tables(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    done = run("produce", "-n", "5000", "--rounds", "1", "--dir", str(tmp_path), "-o", str(kept))
    assert done.returncode == 0, done.stderr
    found = load_results(kept)
    assert found.rows[0].unit == "records/s"
    assert found.command == f"zbroker bench produce -n 5000 --rounds 1 --dir {tmp_path}"
    assert done.stdout.startswith("WHAT\tBEST")
    assert "CPU us/record" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"], "its broker's data are gone"


def test_failover_hits_no_broker_but_its_own() -> None:
    done = run("failover", "-b", "ipc:///nonexistent/run")
    assert done.returncode == 2
    assert "its own" in done.stderr


def test_a_pinned_process_runs_on_its_core_only() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with own_broker(workers=2, pin=True) as target, target.topic("pinned", 2) as (topic, partitions):
        assert target.broker is not None
        for number in range(2):
            pid = target.broker.pid_of(f"worker-{number}")
            tasks = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
            assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {
                frozenset({cores[number % len(cores)]})
            }
        task = Task(
            role="producer", name="producer-0", bootstrap_servers=target.bootstrap_servers, topic=topic,
            partitions=partitions, records=1_000, core=len(cores) + 1,
        )  # fmt: skip
        assert run_tasks([task], target.boards_dir).outcomes[0].cores == [cores[1 % len(cores)]]
