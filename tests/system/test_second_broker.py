"""T34: a second broker on the same data directory, with a run directory of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zbroker.client.producer import Producer
from zbroker.testing import Broker
from zbroker.testing.broker import BrokerFailedError


def test_t34_a_second_broker_on_the_same_data_is_refused_and_the_first_goes_on() -> None:
    with Broker() as first, Producer(bootstrap_servers=first.bootstrap_servers) as producer:
        assert producer.send("t34", b"before").result(20).offset == 0
        pids = {name: first.pid_of(name) for name in first.process_names()}
        second = Broker(config={"broker": {"data_dir": str(first.paths.data_dir)}})
        named = rf"ended at its start \(75\)[^$]*{first.paths.data_lock} is held by process {pids['coordinator']}\b"
        try:
            with pytest.raises(BrokerFailedError, match=named):
                second.start()
            assert second.log.count("\n") == 1, "nothing is started, and one line says why"
        finally:
            second.close()
        assert {name: first.pid_of(name) for name in first.process_names()} == pids
        assert producer.send("t34", b"after").result(20).offset == 1


def test_t34_the_command_ends_with_75_and_names_directory_and_holder() -> None:
    with Broker() as first:
        for run_dir in (first.directory / "other", first.paths.run_dir):
            command = [sys.executable, "-m", "zbroker", "serve", "--data-dir", str(first.paths.data_dir)]
            found = subprocess.run(
                [*command, "--run-dir", str(run_dir)], capture_output=True, text=True, timeout=60, check=False
            )
            assert (found.returncode, found.stdout) == (75, ""), found.stderr
            assert "is held by process" in found.stderr
            assert str(first.directory) in found.stderr
