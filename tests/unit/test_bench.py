"""The published figures: held to the schema, every row that is due, where and how it was measured, and the README."""

from __future__ import annotations

import re
import sys
from importlib.util import cache_from_source
from pathlib import Path

import msgspec
import pytest

import zbroker
from bench import soak
from bench.harness import RESULTS, compile_package, row
from bench.readme import DOCUMENTS, README, drawn, written
from bench.soak import rows_of
from tests.bench_rows import ROWS
from zbroker.load.results import BadResultsError, Spread, load_results, results, save_results
from zbroker.load.soak import State

COMMITTED = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_keep_to_the_schema_and_say_how_and_where(path: Path) -> None:
    saved = load_results(path)
    assert saved.command.startswith(("python -m bench", "zbroker bench"))
    assert saved.about
    assert saved.machine.commit
    assert saved.machine.cores > 0
    assert saved.rows or saved.tables
    for one in saved.rows:
        assert bool(one.target) == bool(one.met), one
        if one.median is not None:
            assert one.low is not None
            assert one.high is not None
            assert one.low <= one.median <= one.high


def test_the_published_table_has_every_row_that_is_due() -> None:
    saved = load_results(RESULTS / "main_path.json")
    words = saved.command.split()
    assert words[:3] == ["python", "-m", "bench"]
    assert not {"--small", "--only"} & set(words), "the whole run, with records enough"
    for due in ROWS:
        assert any(one.what.startswith(due) for one in saved.rows), due
    assert all(one.value > 0 for one in saved.rows)


def test_the_documents_show_the_published_tables() -> None:
    readme = README.read_text()
    for name in ("main_path", "peers", "failover", "durability", "soak"):
        assert f"<!-- figures of {name} -->" in readme
    for document in DOCUMENTS:
        text = document.read_text()
        assert written(text) == text, "run python -m bench.readme"


def test_the_plots_are_those_of_the_published_results() -> None:
    pictures = dict(drawn())
    assert len(pictures) == len(list(drawn())) >= 2, "each has a name of its own"
    for path, picture in pictures.items():
        assert path.read_text() == picture, "run python -m bench.readme"
    assert {path.name for path in RESULTS.glob("*.svg")} == {path.name for path in pictures}
    shown = [name for document in DOCUMENTS for name in re.findall(r"results/(\w+\.svg)", document.read_text())]
    assert len(set(shown)) >= 2
    assert set(shown) <= {path.name for path in pictures}


def test_a_row_says_whether_its_target_is_met_by_the_ratio_where_there_is_one() -> None:
    assert row("a", 3.0, "M/s", target=">= 2.5 M/s").met == "met"
    assert row("a", 3.0, "s", target="< 3 s").met == "missed"
    assert row("a", 3.0, "us", "beside", 0.7, "<= 0.65").met == "missed"
    assert row("a", 3.0, "us").met == ""


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    spread = Spread(best=3.0, median=2.0, low=1.0, high=3.0, rounds=3)
    found = results("zbroker bench x", [row("a", 3.0, "M/s", spread=spread)], about="b", seed=7)
    save_results(found, tmp_path / "x.json")
    again = load_results(tmp_path / "x.json")
    assert again == found
    assert (again.seed, again.rows[0].median, again.rows[0].rounds) == (7, 2.0, 3)
    assert again.machine.commit


@pytest.mark.parametrize(
    ("field", "value"), [("rows", [{"what": "a"}]), ("command", 3), ("surplus", 1), ("schema", 99), ("machine", None)]
)
def test_results_that_do_not_keep_to_the_schema_are_refused(tmp_path: Path, field: str, value: object) -> None:
    document = msgspec.to_builtins(results("zbroker bench x", [], about="b"))
    (tmp_path / "x.json").write_bytes(msgspec.json.encode({**document, field: value}))
    with pytest.raises(BadResultsError, match=r"x\.json"):
        load_results(tmp_path / "x.json")


def test_all_of_the_package_is_compiled_before_a_start_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    compile_package()
    package = Path(zbroker.__file__).parent
    missing = [path for path in package.rglob("*.py") if not Path(cache_from_source(str(path))).exists()]
    linked = [path / "__init__.py" for path in (package / "shm", package / "workers")]
    assert not missing
    assert all(Path(cache_from_source(str(path))).exists() for path in linked)


def test_the_states_of_soaks_are_added_up_by_profile() -> None:
    first = State("kills", 20, 27, 20, faults={"kill worker": 600}, acknowledged=7, waits_ms=[5.0])
    second = State("kills", 8, 9, 8, faults={"kill router": 399}, acknowledged=3, lost=2, failures=["seed 1: lost"])
    second.waits_ms = [*[20.0] * 98, 30_000.0, 30_000.0]
    cuts = State("power", 6, 301, 6, counts={"power cuts with acks=fsync": 290, "power cuts with acks=all": 60})
    bugs = State("bugs", 1, 2, 1, passed=10)
    found = {one.what: (one.value, one.met) for one in rows_of([first, cuts, second, bugs])}
    assert found["kills: faults in random processes"] == (999, "missed")
    assert found["kills: records acknowledged"] == (10, "")
    assert found["kills: lost"] == (2, "missed")
    assert found["kills: duplicated"] == (0, "met")
    assert found["kills: the same, p99"] == (30_000, "")
    assert found["kills: rounds with any finding"] == (1, "missed")
    assert found["power: rounds"] == (6, "")
    assert found["power: power cuts with acks=fsync"] == (290, "missed")
    assert found["power: rounds that broke a promise"] == (0, "met")
    assert found["power: power cuts with acks=all"] == (60, "")
    assert found["bugs: put in on purpose and found"] == (10, "missed")


def test_a_state_of_a_soak_takes_the_place_of_an_earlier_one_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "KEPT", tmp_path)
    first = soak.keep(State("power", 6, 101, 2))
    assert soak.keep(State("power", 6, 151, 3)) == first == tmp_path / "power-1.json"
    other = soak.keep(State("power", 6, 300, 1))
    assert sorted(tmp_path.iterdir()) == sorted([first, other])
