"""`zbroker config`: show, explain, check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zbroker.cli.main import main
from zbroker.client.settings import client_settings
from zbroker.config.load import settings
from zbroker.config.presets import PRESETS
from zbroker.config.reference import preset_toml


def test_show_gives_every_setting_with_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SETTING\tVALUE"
    assert {line.partition("\t")[0] for line in lines[1:]} == set(settings())


def test_show_names_the_origin_of_each_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text('[workers]\ncount = 3\n[topics]\nretention_ms = "1d"\n')
    monkeypatch.setenv("ZBROKER__BROKER__NUM_PARTITIONS", "7")
    assert main(["config", "show", "--changed", "--origin", "-c", str(file), "-C", "logging.level=debug"]) == 0
    rows = dict(line.split("\t", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert rows == {
        "workers.count": f"3\t{file}",
        "topics.retention_ms": f"86400000\t{file}",
        "broker.num_partitions": "7\tenvironment ZBROKER__BROKER__NUM_PARTITIONS",
        "logging.level": "debug\t-C logging.level=debug",
    }


def test_show_can_be_asked_for_single_settings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "workers.pin", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"setting": "workers.pin", "value": "false", "origin": "default"}]


def test_explain_says_meaning_type_bounds_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "limits.message_max_bytes", "logging.level"]) == 0
    shown = capsys.readouterr().out
    assert "limits.message_max_bytes = 1048576" in shown
    assert "largest batch of any topic" in shown
    assert "int 1024..16777216" in shown
    assert "kill -HUP" in shown


def test_explain_without_a_name_explains_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(found) == (set(settings()) - {"client.producer", "client.consumer"}) | set(client_settings())
    assert found["logging.level"]["reload"] is True


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("linger_ms", {"client.producer.linger_ms"}),
        ("client.consumer.group_id", {"client.consumer.group_id"}),
        ("retention.ms", {"topics.retention_ms"}),
        ("acks", {"client.producer.acks"}),
        ("count", {"workers.count", "replicas.count"}),
        ("replicas", {name for name in settings() if name.startswith("replicas.")}),
    ],
)
def test_explain_takes_a_setting_of_a_client_a_section_and_the_last_part_of_a_name(
    asked: str, shown: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "explain", "--json", asked]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == shown


def test_explain_names_the_nearest_last_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "linger"]) == 2
    assert "did you mean 'linger_ms'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "explain"])
def test_an_unknown_setting_is_refused_with_the_nearest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", command, "workers.cuont"]) == 2
    assert "did you mean 'workers.count'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_the_check(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"{name}.toml"
    file.write_text(preset_toml(name))
    assert main(["config", "check", str(file)]) == 0
    assert "all right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[workers]\ncuont = 1\n", "did you mean 'workers.count'?"),
        ("[worker]\ncount = 1\n", "did you mean 'workers'?"),
        ("[workers]\ncount = 0\n", "workers.count"),
        ("not toml", "not TOML"),
        ('[broker]\nrun_dir = "/' + "x" * 100 + '"\n', "--run-dir"),
        ("[client.producer]\nlinger = 5\n", "did you mean 'linger_ms'?"),
        ('[client.consumer]\nmax_poll_records = "many"\n', "max_poll_records"),
        ('[client.consumer]\nmax_poll_records = "many"\n', "zbroker config explain max_poll_records"),
        ("[client.producer]\nxyz = 5\n", "zbroker config explain client lists them"),
        ('[client.producer]\nacks = "most"\n', "acks"),
        ("[broker]\nreplication_factor = 4\n[workers]\ncount = 2\n[replicas]\ncount = 1\n", "2 workers and 1 replicas"),
    ],
)
def test_check_names_what_is_wrong_in_one_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text(text)
    assert main(["config", "check", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_check_tells_of_defaults_with_which_no_topic_can_be_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zbroker.toml"
    file.write_text("[topics]\nmin_insync_replicas = 2\n")
    assert main(["config", "check", str(file)]) == 0
    assert "topics.min_insync_replicas 2 is above broker.replication_factor 1" in capsys.readouterr().err


def test_check_of_an_absent_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err
