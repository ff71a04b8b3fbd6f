"""What a chaos run makes of its clients' files, whom it hits, and what a soak remembers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.check.history import Call, Kind
from zbroker.load.chaos_client import ACKNOWLEDGED, ASSIGNED, FINISHED, POLLED, REFUSED, SENT, EventLog, value_of
from zbroker.load.chaos_client import name_of as name_of_value
from zbroker.load.chaos_history import Clients, count
from zbroker.load.faults import Faults, role_of, send_signal
from zbroker.load.soak import PROFILES, Soak, SoakError, State
from zbroker.testing.broker import Broker, BrokerFailedError

ROOT = Path(__file__).resolve().parents[2]


def test_a_client_file_becomes_operations_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    log = EventLog(path)
    log.write(SENT, 1, 100, "t:0", 0, 3)
    log.write(ACKNOWLEDGED, 1, 200, [(10, 2), (12, 1)])
    log.write(SENT, 2, 300, "t:0", 3, 1)
    log.write(REFUSED, 2, 400, "RequestTimedOutError")
    log.write(SENT, 3, 500, "t:1", 0, 1)
    with path.open("ab") as file:
        file.write(b'["a",3,60')
    clients = Clients()
    clients.add(7, path)
    first, second, third = clients.history()
    assert [(sent.value, sent.offset) for sent in first.sends] == [("7-0", 10), ("7-1", 11), ("7-2", 12)]
    assert (first.call, first.kind, first.complete_ns) == (Call.SEND, Kind.OK, 200)
    assert (second.kind, third.kind) == (Kind.INFO, Kind.INFO)
    assert clients.refusals == {"RequestTimedOutError": 1}
    assert clients.finished == set()


def test_a_readers_file_becomes_polls_and_the_drain_alone_is_counted(tmp_path: Path) -> None:
    for process in (0, 5):
        log = EventLog(tmp_path / f"{process}.jsonl")
        log.write(ASSIGNED, 10, ["t:0"])
        log.write(POLLED, 20, 30, {"t:0": [(0, "1-0", 4), (1, "1-1", 4)]}, {"t:0": 2})
        log.write(FINISHED, 40)
    sender = EventLog(tmp_path / "1.jsonl")
    sender.write(SENT, 1, 1, "t:0", 0, 3)
    sender.write(ACKNOWLEDGED, 1, 2, [(0, 3)])
    clients = Clients()
    for process in (0, 1, 5):
        clients.add(process, tmp_path / f"{process}.jsonl")
    summary = count(clients.history(), 0).summary()
    assert (summary.acknowledged, summary.read, summary.lost.total, summary.duplicated) == (3, 2, 1, 0)
    assert clients.finished == {0, 5}


def test_a_value_names_its_sender_and_keeps_its_size() -> None:
    assert name_of_value(value_of(3, 17, 64)) == "3-17"
    assert len(value_of(3, 17, 64)) == 64


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_only_the_process_that_was_meant_is_hit(sleeper: subprocess.Popen[bytes]) -> None:
    incarnation = ids.incarnation_of(sleeper.pid)
    stranger = incarnation + (1 << 22)  # the same pid, started later
    assert not send_signal(stranger, signal.SIGKILL)
    assert sleeper.poll() is None
    assert send_signal(incarnation, signal.SIGKILL)
    assert sleeper.wait(20) == -signal.SIGKILL
    assert not send_signal(incarnation, signal.SIGKILL)


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def test_what_was_paused_is_woken_by_heal(sleeper: subprocess.Popen[bytes]) -> None:
    faults = Faults(random.Random(1), {"pause": 1}, pause_max_s=900.0, roles=frozenset({"worker"}))
    processes = {"worker-0": ids.incarnation_of(sleeper.pid), "router": ids.own_incarnation()}
    fault = faults.strike(processes)
    assert fault is not None
    assert (fault.kind, fault.name) == ("pause", "worker-0")
    wait_until(lambda: state_of(sleeper.pid) == "T")
    assert faults.strike(processes) is None  # it is paused already, and the router is not to be hit
    faults.heal()
    wait_until(lambda: state_of(sleeper.pid) != "T")


def test_the_same_seed_draws_the_same_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zbroker.load.faults.send_signal", lambda incarnation, number: True)
    drawn = []
    for _ in range(2):
        faults = Faults(
            random.Random(5), {"kill": 3, "pause": 1}, pause_max_s=1.0, roles=frozenset({"worker", "router"})
        )
        for _ in range(20):
            faults.strike({"worker-0": 1, "worker-1": 2, "router": 3})
            faults.heal()
        drawn.append([(fault.kind, fault.name, fault.pause_s) for fault in faults.done])
    assert drawn[0] == drawn[1]
    assert {kind for kind, _, _ in drawn[0]} == {"kill", "pause"}
    assert role_of("worker-0") == "worker"
    assert role_of("router") == "router"


def test_a_soak_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    run = Soak(State("kills", 3, 40, rounds_done=1, faults={"kill worker": 9}, acknowledged=100))
    run.save(path)
    again = Soak.load(path, "kills", 1, None)
    assert again.state == run.state
    assert (again.next_seed, again.rounds_done, again.is_done, again.is_sound) == (40, 1, False, True)
    with pytest.raises(SoakError, match="kills"):
        Soak.load(path, "pauses", 1, None)
    path.write_text("{")
    with pytest.raises(SoakError, match="--state"):
        Soak.load(path, "kills", 1, None)


def test_a_soak_notes_a_round_of_tests_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests" / "sim"
    folder.mkdir(parents=True)
    (folder / "test_replication_faults.py").write_text(
        "import os\ndef test_one():\n    assert os.environ['ZBROKER_SEED'] != '251', os.environ['ZBROKER_SIM_SEEDS']\n"
    )
    monkeypatch.setattr("zbroker.load.soak._ROOT", tmp_path)
    run = Soak(State("simulation", 2, 1))
    run.round(lambda what, share: None)
    assert run.is_sound, run.text()
    assert run.next_seed == 1 + PROFILES["simulation"].seeds_a_round
    run.round(lambda what, share: None)
    assert run.is_done
    assert not run.is_sound
    assert "seed 251" in run.text()


def test_every_round_of_the_simulation_plays_histories_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[dict[str, str]] = []

    def note(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        rounds.append(env)
        return subprocess.CompletedProcess(command, 0, "", "")

    with monkeypatch.context() as patch:
        patch.setattr("zbroker.load.soak.subprocess.run", note)
        run = Soak(State("simulation", 2, 7))
        run.round(lambda what, share: None)
        run.round(lambda what, share: None)
    ask = [sys.executable, "-c", "from tests.sim.test_replication_faults import FIRST, SEEDS; print(FIRST, SEEDS)"]
    answers = [subprocess.run(ask, env=env, cwd=ROOT, text=True, capture_output=True).stdout for env in rounds]
    count = PROFILES["simulation"].seeds_a_round
    assert answers == [f"7 {count}\n", f"{7 + count} {count}\n"]


def test_a_profile_of_tests_without_a_checkout_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zbroker.load.soak._ROOT", tmp_path)
    with pytest.raises(SoakError, match="checkout"):
        Soak(State("simulation", 1, 1)).round(lambda what, share: None)


def test_a_round_without_a_broker_counts_as_failed_and_the_next_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Broker) -> Broker:
        raise BrokerFailedError("the broker did not answer")

    monkeypatch.setattr(Broker, "start", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = Soak(State("kills", 2, 40))
    run.round(lambda what, share: None)
    assert (run.rounds_done, run.next_seed, run.is_sound) == (1, 41, False)
    assert "seed 40: BrokerFailedError: the broker did not answer" in run.text()


@pytest.mark.parametrize(("line", "end"), [("finish\n", (0, "True\n")), ("", (1, ""))])
def test_a_client_finishes_when_told_to_and_ends_at_once_when_nobody_is_there_to_tell_it(
    line: str, end: tuple[int, str]
) -> None:
    asks = "from zbroker.load.chaos_client import is_told_to_finish\nwhile not is_told_to_finish(): pass\nprint(True)"
    done = subprocess.run([sys.executable, "-c", asks], input=line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == end
