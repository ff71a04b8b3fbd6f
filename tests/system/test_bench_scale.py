"""Scaling in small: what it counts adds up, partitions are the ceiling, and pages and plots can be made of it."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from tests.system.test_bench import ROOT, measured, run
from zbroker.load.results import load_results, save_results
from zbroker.load.scale import ScalePlan, figures_of, one_run


def test_every_record_is_counted_once_on_each_side_and_every_process_has_its_cost() -> None:
    plan = ScalePlan(workers=[2], partitions=[3], records=12_000)
    run_of_two = one_run(plan, 2, 3)
    assert run_of_two.records("producer") == 12_000
    assert {one.name for one in run_of_two.outcomes} == {"producer-0", "producer-1", "consumer-0", "consumer-1"}
    assert set(run_of_two.broker) == {"worker-0", "worker-1", "router", "coordinator"}
    found = figures_of(run_of_two, plan.size_bytes)
    assert all(found[role] > 0 for role in ("producer", "worker", "consumer"))
    assert found["read_per_s"] > 0
    assert found["cores"] > 0


def test_with_one_partition_a_second_worker_stores_nothing() -> None:
    found = one_run(ScalePlan(workers=[2], partitions=[1], records=8_000), 2, 1)
    written = sorted(found.broker[name].written_bytes for name in ("worker-0", "worker-1"))
    assert written[0] < 8_000 * 100 / 10 < 8_000 * 100 <= written[1]
    assert len(found.of("consumer")) == 1


def test_scale_shows_a_table_a_model_and_its_plots_and_a_page_can_be_made(tmp_path: Path) -> None:
    found = measured(
        "scale", "--workers", "1,2", "--partitions", "1,4", "-n", "8000", "--rounds", "1", "--many", "1,20",
        "--readers", "1,3", "--logs", "1,2",
    )  # fmt: skip
    titles = [table.title for table in found.tables]
    assert titles[0] == "throughput across workers and partitions"
    assert {"what partitions cost", "readers of one log", "what a log's length costs"} <= set(titles)
    table = found.tables[0]
    assert [row[:2] for row in table.rows] == [[1, 1], [1, 4], [2, 1], [2, 4]]
    by_partitions = {row[0]: row for row in found.tables[titles.index("what partitions cost")].rows}
    descriptors = {count: row[1] for count, row in by_partitions.items()}
    assert isinstance(descriptors[20], float)
    assert isinstance(descriptors[1], float)
    assert 19 <= descriptors[20] - descriptors[1] <= 3 * 20
    assert all(any(line.is_limit for line in plot.series) for plot in found.plots), "each has its limit drawn in"
    save_results(found, tmp_path / "scale.json")
    done = run("report", str(tmp_path / "scale.json"), "-o", str(tmp_path / "page.html"), "--plots", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == len(found.plots)
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org/2000/svg)", page), "it loads nothing"
    for plot in found.plots:
        ElementTree.parse(tmp_path / f"scale_{plot.name}.svg")


def test_committed_results_make_a_page(tmp_path: Path) -> None:
    files = sorted(str(path) for path in (ROOT / "bench" / "results").glob("*.json"))
    done = run("report", *files, "-o", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    for name in files:
        assert load_results(Path(name)).machine.commit in page


def test_a_file_that_is_no_results_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    done = run("report", str(tmp_path / "other.json"), "-o", str(tmp_path / "page.html"))
    assert done.returncode == 1
    assert "other.json" in done.stderr
    assert not (tmp_path / "page.html").exists()
