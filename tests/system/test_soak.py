"""`zbroker soak`: rounds with seeds of their own, a report in a file, an end in order, and going on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from tests.conditions import wait_until

SOAK = [sys.executable, "-m", "zbroker", "soak", "kills", "--json", "--duration", "3s"]


def report_of(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(state.read_bytes()))
    except FileNotFoundError:
        return {}


def test_a_soak_ends_in_order_on_ctrl_c_and_the_next_goes_on_where_it_was(tmp_path: Path) -> None:
    state = tmp_path / "soak.json"
    command = [*SOAK, "--seed", "7", "--state", str(state)]
    histories = tmp_path / "histories"
    histories.mkdir()
    with subprocess.Popen(
        [*command, "--rounds", "50"],
        env={**os.environ, "TMPDIR": str(histories)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        wait_until(lambda: report_of(state).get("rounds_done", 0) >= 1 or first.poll() is not None, timeout_s=100)
        processes = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGINT)
        output, notes = first.communicate(timeout=100)
    assert first.returncode == 130, notes
    shown = json.loads(output)
    done = shown["rounds_done"]
    assert 1 <= done < 50
    assert shown["is_sound"], shown
    assert shown["acknowledged"] > 0
    assert {**report_of(state), "is_sound": True} == shown
    assert "seed 7" in notes
    wait_until(lambda: not any(one.is_running() for one in processes))
    assert list(histories.iterdir()) == []

    again = subprocess.run([*command, "--rounds", str(done + 1)], capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    assert f"seed {7 + done}" in again.stderr
    found = json.loads(again.stdout)
    assert found["rounds_done"] == done + 1
    assert found["acknowledged"] > shown["acknowledged"]
    assert len(found["waits_ms"]) <= sum(found["faults"].values())


def test_the_profiles_are_listed_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    listed = subprocess.run([sys.executable, "-m", "zbroker", "soak"], capture_output=True, text=True, check=True)
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert {"kills", "pauses", "moves", "mixed", "points", "network", "clock", "power"} <= names
    assert {"simulation", "storage", "search"} <= names
    wrong = subprocess.run([sys.executable, "-m", "zbroker", "soak", "kill"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "kills" in wrong.stderr


def test_a_place_that_cannot_hold_the_state_is_named_before_the_first_round(tmp_path: Path) -> None:
    command = [*SOAK, "--rounds", "1", "--state", str(tmp_path / "absent" / "soak.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "--state" in done.stderr
    assert "round 1" not in done.stderr
