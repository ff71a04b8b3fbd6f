"""What `zbroker status` and `zbroker doctor` say when partitions have no leader, or copies that are not in sync."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.conditions import wait_until, wait_until_stopped
from zbroker import AdminClient, NewTopic, Producer
from zbroker.cli.main import main
from zbroker.testing import Broker


def output_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capfd.readouterr().out


def troubles_of(capfd: pytest.CaptureFixture[str]) -> str:
    """What status says on stderr; what it prints is the table alone, troubles or not."""
    main(["status", "--interval", "1ms"])
    found = capfd.readouterr()
    assert len({line.count("\t") for line in found.out.splitlines()}) == 1, found.out
    return found.err


def rule(text: str, name: str) -> tuple[str, str]:
    """(level, message) of a rule in the doctor's answer."""
    (found,) = [one for one in json.loads(text) if one["rule"] == name]
    return found["level"], found["message"]


def test_a_partition_without_a_leader_is_counted_by_status_and_named_by_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Broker(workers=1) as broker:
        monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("pay", 2)])
        wait_until(lambda: "partitions:" not in troubles_of(capfd))
        assert rule(output_of(capfd, "doctor", "--json"), "leaders")[0] == "PASS"
        os.kill(broker.supervisor_pid, signal.SIGSTOP)
        try:
            wait_until_stopped(broker.supervisor_pid)
            os.kill(broker.pid_of("worker-0"), signal.SIGKILL)
            wait_until(lambda: "2 without a leader" in troubles_of(capfd))
            text = output_of(capfd, "doctor", "--json")
            assert rule(text, "leaders") == ("FAIL", "2 partitions have no leader: pay:0, pay:1")
        finally:
            os.kill(broker.supervisor_pid, signal.SIGCONT)
        wait_until(lambda: "without a leader" not in troubles_of(capfd))


def test_a_copy_that_falls_behind_is_counted_by_status_and_named_by_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = {"coordinator": {"hang_timeout_ms": 600_000}, "replicas": {"lag_max_ms": 200}}
    with Broker(workers=1, replicas=1, config=config) as broker:
        monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        with (
            AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin,
            Producer(bootstrap_servers=broker.bootstrap_servers, acks=1, enable_idempotence=False) as producer,
        ):
            admin.create_topics([NewTopic("pay", 1, 2)])
            wait_until(lambda: len(admin.describe_topics(["pay"])["pay"].partitions[0].isr) == 2)
            pid = broker.signal("replica-0", signal.SIGSTOP)
            try:
                producer.send_many("pay", [b"x"] * 10).result(30)
                wait_until(lambda: "1 with copies out of sync" in troubles_of(capfd))
                text = output_of(capfd, "doctor", "--json")
                assert rule(text, "copies") == ("WARN", "1 partition has copies that are not in sync: pay:0")
            finally:
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: "out of sync" not in troubles_of(capfd))


def test_a_damaged_copy_is_found_by_the_doctor_without_a_broker(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copies" / "0000000a-0-1"
    copy.mkdir(parents=True)
    (copy / "suspect").touch()
    text = output_of(capfd, "doctor", "--json", "--data-dir", str(tmp_path), "--run-dir", str(tmp_path / "run"))
    assert rule(text, "damage")[0] == "FAIL"


def test_the_copies_of_a_broker_that_died_are_looked_at_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with Broker() as broker:
        copy = broker.paths.data_dir / "copies" / "0000000a-0-1"
        copy.mkdir(parents=True)
        (copy / "suspect").touch()
        broker.kill_all()
        monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        text = output_of(capfd, "doctor", "--json")
        assert rule(text, "damage")[0] == "FAIL"
        assert str(broker.paths.data_dir) in rule(text, "disk room")[1]
