"""The measurements of copies run from begin to end; what they measure is for a quiet machine to say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "bench.failover": ("2 kills of the leader", "1 pauses of the leader", "lost", "duplicated", "reordered"),
    "bench.durability": (
        "send_many, two copies in sync, tmpfs",
        "send_many, two copies in sync, disk",
        "records for one fdatasync",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_table_can_be_made(name: str) -> None:
    command = [sys.executable, "-m", name, "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for row in ROWS[name]:
        assert f"\n{row}" in done.stdout, row
