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
ROLES = {"router", "coordinator", "worker"}


def programs() -> dict[str, configparser.SectionProxy]:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read(CONFIGS / "supervisord.conf")
    return {name.partition(":")[2]: parser[name] for name in parser.sections() if name.startswith("program:")}


def test_supervisord_understands_its_file(tmp_path: Path) -> None:
    options = pytest.importorskip("supervisor.options")
    shutil.copy(CONFIGS / "supervisord.conf", tmp_path)
    found = options.ServerOptions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.realize(["-c", str(tmp_path / "supervisord.conf"), "-n"])
    (group,) = found.process_group_configs
    assert group.name == "zbroker"
    names = [one.name for one in group.process_configs]
    assert names == ["router", "coordinator", "worker-0", "worker-1", "worker-2", "worker-3"]


def test_supervisord_stops_workers_then_coordinator_then_router_and_leaves_wrong_settings_alone() -> None:
    found = programs()
    assert set(found) == ROLES
    priorities = [int(found[name]["priority"]) for name in ("router", "coordinator", "worker")]
    assert priorities == sorted(set(priorities)), "supervisord stops the highest number first"
    for program in found.values():
        assert program["exitcodes"] == "0,2"
        assert program["autorestart"] == "unexpected"
        assert int(program["stopwaitsecs"]) * 1000 >= 5_000, "shorter than supervisor.stop_timeout_ms"


def test_every_role_is_started_in_the_foreground_by_its_name() -> None:
    for name, program in programs().items():
        expected = f"zbroker serve --role {name}" + (" --id %(process_num)d" if name == "worker" else "")
        assert program["command"].startswith(f"{expected} -c ")
    commands = {path.name: re.findall(r"^ExecStart=(.*)$", path.read_text(), re.MULTILINE) for path in UNITS}
    assert commands["zbroker.service"] == ["/usr/bin/env zbroker serve -c /etc/zbroker/zbroker.toml"]
    for role in ("router", "coordinator"):
        (command,) = commands[f"zbroker-{role}.service"]
        assert f"serve --role {role} -c" in command
    assert "serve --role worker --id %i -c" in commands["zbroker-worker@.service"][0]


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
