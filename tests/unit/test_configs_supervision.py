"""The files for supervisord and systemd say what those programs understand, and what zbroker does."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
UNITS = sorted((CONFIGS / "systemd").iterdir())
ROLES = {"router", "coordinator", "worker", "replica"}
NUMBERED = {"worker", "replica"}


def with_replicas(text: str) -> str:
    """The file for supervisord as its comment says that it looks with replicas."""
    head, begin, rest = text.partition(";[program:replica]")
    block, end, tail = rest.partition("\n\n")
    return head + begin[1:] + block.replace("\n;", "\n") + end + tail.replace(",worker\n", ",worker,replica\n")


def programs() -> dict[str, configparser.SectionProxy]:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(with_replicas((CONFIGS / "supervisord.conf").read_text()))
    return {name.partition(":")[2]: parser[name] for name in parser.sections() if name.startswith("program:")}


@pytest.mark.parametrize("replicas", [0, 2])
def test_supervisord_understands_its_file(replicas: int, tmp_path: Path) -> None:
    options = pytest.importorskip("supervisor.options")
    text = (CONFIGS / "supervisord.conf").read_text()
    (tmp_path / "supervisord.conf").write_text(with_replicas(text) if replicas else text)
    found = options.ServerOptions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.realize(["-c", str(tmp_path / "supervisord.conf"), "-n"])
    (group,) = found.process_group_configs
    assert group.name == "zbroker"
    names = [one.name for one in group.process_configs]
    workers = ["worker-0", "worker-1", "worker-2", "worker-3"]
    assert names == ["router", "coordinator", *workers, *(f"replica-{number}" for number in range(replicas))]


def test_supervisord_stops_workers_then_coordinator_then_router_and_leaves_wrong_settings_alone() -> None:
    found = programs()
    assert set(found) == ROLES
    priorities = [int(found[name]["priority"]) for name in ("router", "coordinator", "worker")]
    assert priorities == sorted(set(priorities)), "supervisord stops the highest number first"
    assert found["replica"]["priority"] == found["worker"]["priority"]
    for program in found.values():
        assert program["exitcodes"] == "0,2"
        assert program["autorestart"] == "unexpected"
        assert int(program["stopwaitsecs"]) * 1000 >= 5_000, "shorter than supervisor.stop_timeout_ms"


def test_every_role_is_started_in_the_foreground_by_its_name() -> None:
    for name, program in programs().items():
        expected = f"zbroker serve --role {name}" + (" --id %(process_num)d" if name in NUMBERED else "")
        assert program["command"].startswith(f"{expected} -c ")
    commands = {path.name: re.findall(r"^ExecStart=(.*)$", path.read_text(), re.MULTILINE) for path in UNITS}
    assert commands["zbroker.service"] == ["/usr/bin/env zbroker serve -c /etc/zbroker/zbroker.toml"]
    for role in ("router", "coordinator"):
        (command,) = commands[f"zbroker-{role}.service"]
        assert f"serve --role {role} -c" in command
    for role in NUMBERED:
        assert f"serve --role {role} --id %i -c" in commands[f"zbroker-{role}@.service"][0]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_understands_its_units(path: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    # A template is verified as one of its instances.
    copied = shutil.copy(path, tmp_path / path.name.replace("@.", "@0."))
    found = subprocess.run([program, "verify", "--man=no", copied], capture_output=True, text=True)
    mine = [line for line in found.stderr.splitlines() if str(tmp_path) in line]
    assert mine == []
