"""The published table of figures: every row that is due, where and how it was measured, and the same in the README."""

from __future__ import annotations

from bench.harness import row
from bench.readme import README, results, written
from tests.bench_rows import ROWS


def test_the_published_table_has_every_row_with_command_machine_and_commit() -> None:
    saved = results("main_path")
    assert saved["command"] == "python -m bench"
    assert {"cpu", "cores", "python", "commit", "time"} <= saved["machine"].keys()
    names = [one["what"] for one in saved["rows"]]
    for due in ROWS:
        assert any(name.startswith(due) for name in names), due
    for one in saved["rows"]:
        assert one["value"] > 0, one
        assert bool(one["target"]) == bool(one["met"]), one


def test_the_readme_shows_the_published_tables() -> None:
    readme = README.read_text()
    for name in ("main_path", "failover", "durability"):
        assert f"<!-- figures of {name} -->" in readme
    assert written(readme) == readme, "run python -m bench.readme"


def test_a_row_says_whether_its_target_is_met_by_the_ratio_where_there_is_one() -> None:
    assert row("a", 3.0, "M/s", target=">= 2.5 M/s")["met"] == "met"
    assert row("a", 3.0, "s", target="< 3 s")["met"] == "missed"
    assert row("a", 3.0, "us", "beside", 0.7, "<= 0.65")["met"] == "missed"
    assert row("a", 3.0, "us")["met"] == ""
