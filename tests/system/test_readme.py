"""The quick start of the README, followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Quick start\n")[2].partition("\n## ")[0]
TO_START, TO_TYPE, IN_PYTHON = re.findall(r"```(?:python)?\n(.*?)```", SECTION, re.DOTALL)
DOCTOR_FOUND_SOMETHING = 4  # about the host that tests this


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a user with a home of its own, where a bare `zbroker serve` runs."""
    home = {name: value for name, value in os.environ.items() if not name.startswith(("ZBROKER", "XDG"))}
    home |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (line,) = [line for line in TO_START.splitlines() if line.startswith("zbroker")]
    command, said = re.split(r" +# prints: ", line)
    with subprocess.Popen(command.split(), env=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as broker:
        assert broker.stdout is not None
        ready = broker.stdout.readline().decode().split()
        try:
            assert ready[:2] == said.split()[:2]
            yield home
        finally:
            broker.send_signal(signal.SIGINT)
            assert broker.wait(20) == 0
            shutil.rmtree(ready[-1].removeprefix("ipc://"), ignore_errors=True)


def test_every_line_of_the_quick_start_does_what_it_says(environment: dict[str, str]) -> None:
    for line in TO_TYPE.splitlines():
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in ((0, DOCTOR_FOUND_SOMETHING) if "doctor" in line else (0,)), f"{line}\n{done.stderr}"
        assert done.stdout or done.stderr, line
    command = [sys.executable, "-W", "error", "-c", IN_PYTHON]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 10_002
