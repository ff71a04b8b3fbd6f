"""Every claim in small: it is measured, judged by its rule, and shown. What holds whatever the speed must hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.test_bench import measured, run
from zbroker.load.claims.all_claims import CLAIMS, found_of
from zbroker.load.claims.claim import Claim, Scope

COUNTED = {"zero-loss", "partitions", "tail"}  # counts, not speeds: they hold on any machine


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_claim_is_measured_and_judged(name: str, tmp_path: Path) -> None:
    claim = CLAIMS[name](Scope.small(tmp_path, seed=5))
    assert claim.measured
    assert claim.rule
    assert claim.figures
    assert claim.verdict in ("holds", "does not hold")
    if name in COUNTED:
        assert claim.verdict == "holds", claim.measured
    assert list(tmp_path.iterdir()) == [], "its files are gone"


def test_the_command_shows_claim_rule_measurement_and_verdict(tmp_path: Path) -> None:
    found = measured("claims", "--small", "--only", "tail", "--disk", str(tmp_path), "--seed", "3")
    assert found.seed == 3
    assert set(found.file_systems) == {"memory", "disk"}
    (row,) = found.tables[0].rows
    assert row[0] == "tail reads never touch the disk"
    assert row[-1] == "holds"
    assert all(one.what.startswith("tail reads") for one in found.rows)


def test_claims_kill_no_processes_but_their_own() -> None:
    done = run("claims", "-b", "ipc:///nonexistent/run")
    assert done.returncode == 2
    assert "of its own" in done.stderr


def test_each_claim_is_a_row_with_its_verdict() -> None:
    claims = [
        Claim(name=name, said="s", rule="r", measured="m", verdict="holds", figures=[]) for name in ("one", "two")
    ]
    table = found_of(claims).tables[0]
    assert [row[0] for row in table.rows] == ["one", "two"]
    assert table.columns[-1] == "VERDICT"


def test_a_disk_is_measured_by_itself_and_left_as_it_was(tmp_path: Path) -> None:
    found = measured("disk", str(tmp_path), "--file-mib", "4", "--seconds", "0.05", "--rounds", "2")
    figures = {one.what: (one.value, one.unit) for one in found.rows}
    assert {unit for _, unit in figures.values()} == {"MB/s", "us", "ms"}
    assert all(value > 0 for value, _ in figures.values())
    assert set(found.file_systems) == {"disk"}
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_says_so(tmp_path: Path) -> None:
    done = run("disk", str(tmp_path), "--file-mib", str(1 << 30))
    assert done.returncode == 1
    assert "--file-mib" in done.stderr
    assert list(tmp_path.iterdir()) == []
