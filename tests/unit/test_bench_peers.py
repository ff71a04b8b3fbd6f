"""The comparison with other brokers: what becomes of figures, and what is said where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

import zbroker
from bench.peers import registry
from bench.peers.document import document, join, lines_in, lines_of, measured_of
from bench.peers.measures import OWN_TOOL, Measured
from bench.peers.system import MissingError
from bench.peers.table import all_systems, rows_of
from zbroker.cli.main import main
from zbroker.load.results import load_results, save_results


def rate(what: str, system: str, way: str, *rates: float) -> Measured:
    return Measured(what, system, way, [{"records_per_s": one, "cpu_us": 1e6 / one} for one in rates])


def test_batch_calls_stand_beside_the_fastest_way_of_a_peer_and_calls_for_each_record_beside_its_first() -> None:
    measured = [
        rate("produce 100 B", "zbroker", "send", 1e6, 2e6),
        rate("produce 100 B", "zbroker", "send_many", 6e6),
        rate("produce 100 B", "kafka", "produce", 0.8e6),
        rate("produce 100 B", "kafka", "produce_batch", 0.5e6),
    ]
    rows = {row.what: row for row in rows_of(measured)}
    each, many = rows["produce 100 B, send"], rows["produce 100 B, send_many"]
    assert (each.value, each.ratio, each.target, each.met) == (2.0, 2.5, ">= 2", "met")
    assert (each.low, each.median, each.high) == (1.0, 1.5, 2.0)
    assert (many.value, many.ratio, many.target, many.met) == (6.0, 7.5, ">= 10", "missed")
    assert many.beside == "kafka, produce, 0.8 M/s"


def test_of_the_other_peers_the_strongest_has_a_row() -> None:
    measured = [
        rate("produce 100 B", "zbroker", "send_many", 6e6),
        rate("produce 100 B", "redis", "pipeline", 0.1e6),
        rate("produce 100 B", "rabbitmq", "send_batch", 0.2e6),
    ]
    assert [row.beside for row in rows_of(measured)] == ["rabbitmq, send_batch, 0.2 M/s"]


def test_the_java_tool_has_targets_of_its_own_and_cpu_time_is_that_of_both_ways() -> None:
    measured = [
        rate("produce 100 B", "zbroker", "send_many", 5e6),
        rate("produce 100 B", "kafka", "produce", 0.5e6),
        rate("consume 100 B", "zbroker", "records", 3e6),
        rate("consume 100 B", "zbroker", "views", 50e6),
        rate("consume 100 B", "kafka", "consume", 0.25e6),
        Measured("consume 100 B", "kafka", OWN_TOOL, [{"records_per_s": 1e6}]),
    ]
    rows = [row for row in rows_of(measured) if row.target]
    found = {(row.what, row.beside.split(",")[0]): (row.ratio, row.met) for row in rows}
    assert found[("consume 100 B, records", "kafka")] == (12.0, "missed")
    assert found[("consume 100 B, records", "kafka's Java tool")] == (3.0, "met")
    assert found[("consume 100 B, views", "kafka's Java tool")] == (50.0, "met")
    assert found[("CPU of a record, all processes, batch path", "kafka")] == (round(0.22 / 6, 3), "met")


def test_all_systems_stand_side_by_side_with_median_and_spread() -> None:
    table = all_systems([rate("produce 100 B", "kafka", "produce", 1e6, 3e6, 2e6)], ["zbroker", "kafka"])
    assert table.columns == ["what", "zbroker", "kafka"]
    assert table.rows == [["produce 100 B, M/s", "", "produce: 2 (1 to 3)"]]


def test_the_rounds_are_read_back_from_the_document(tmp_path: Path) -> None:
    measured = [
        rate("produce 100 B", "zbroker", "send", 1e6, 2e6),
        Measured("failover", "zbroker", "", [{"gap_ms": 20.5, "errors": 0.0}]),
    ]
    lines = lines_of("throughput", measured)
    path = tmp_path / "results.json"
    save_results(document(lines, [], {"kafka": ("none", "install it")}, "command", "about", tmp_path), path)
    assert lines_in(load_results(path)) == lines
    assert measured_of(lines) == measured


def test_a_part_that_is_measured_alone_takes_its_place_and_its_command_is_named_behind_that_of_the_rest(
    tmp_path: Path,
) -> None:
    first = lines_of("start", [rate("start", "zbroker", "", 1.0)]) + lines_of("latency", [rate("a", "kafka", "", 2.0)])
    whole, command = join(None, first, "all")
    assert (whole, command) == (first, "all")
    for value in 3.0, 4.0:
        known = document(whole, [], {}, command, "about", tmp_path)
        again = lines_of("latency", [rate("a", "kafka", "", value)])
        whole, command = join(known, again, "latency alone")
        assert whole == [*first[: len(first) // 2], *again]
        assert command == "all; latency alone"
    assert join(document(whole, [], {}, command, "about", tmp_path), first, "all again") == (first, "all again")


def test_a_peer_whose_client_is_not_installed_is_missing_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(registry.SYSTEMS, "kafka", "no_such_client_of_kafka:Kafka")
    with pytest.raises(MissingError) as caught:
        registry.system("kafka")
    assert (caught.value.what, caught.value.command) == (
        "the Python package no_such_client_of_kafka was not found",
        "pip install -e '.[peers]'",
    )


def test_compare_outside_a_checkout_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zbroker, "__file__", str(tmp_path / "zbroker" / "__init__.py"))
    assert main(["bench", "compare"]) == 1
    assert "runs from a checkout" in capsys.readouterr().err
