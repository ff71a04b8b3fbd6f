"""A real supervisord runs the shipped configuration: produce, kill -9 a worker, consume, shut down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.unit.test_configs_supervision import with_replicas
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.errors import BrokerError
from zbroker.shm.board_reader import BoardReader

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "supervisord.conf"
BIN = Path(sys.executable).parent
WORKERS = 2
REPLICAS = 1


@pytest.fixture
def directory() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.fixture
def supervisord(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    if not (BIN / "supervisord").exists():
        pytest.skip(f"no supervisord beside {sys.executable}: pip install 'zbroker[dev]'")
    text = with_replicas(SHIPPED.read_text()).replace("numprocs=2", f"numprocs={REPLICAS}")
    text = text.replace("numprocs=4", f"numprocs={WORKERS}")
    (directory / "supervisord.conf").write_text(text)
    (directory / "zbroker.toml").write_text(
        f'[broker]\ndata_dir = "{directory}/data"\nrun_dir = "{directory}/run"\n[workers]\ncount = {WORKERS}\n'
        f"[replicas]\ncount = {REPLICAS}\n"
    )
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with (directory / "log.txt").open("wb") as log:
        command = [str(BIN / "supervisord"), "-c", str(directory / "supervisord.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)
        yield process
        if process.poll() is None:
            process.terminate()
        process.wait(30)


def answers(bootstrap_servers: str) -> bool:
    try:
        with AdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=500) as admin:
            return len(admin.describe_processes()) == WORKERS + REPLICAS
    except BrokerError:
        return False


def runs_again(boards: Path, name: str, dead_pid: int) -> bool:
    board = BoardReader.find(boards, name)
    if board is None:
        return False
    pid = board.pid
    board.close()
    return pid != dead_pid


def test_the_shipped_configuration_runs_survives_a_kill_and_stops(
    supervisord: subprocess.Popen[bytes], directory: Path
) -> None:
    servers = f"ipc://{directory}/run"
    wait_until(lambda: answers(servers), what="all processes registered", timeout_s=40)
    with AdminClient(bootstrap_servers=servers) as admin:
        admin.create_topics([NewTopic("jobs", WORKERS, 2)])
        leader = admin.describe_topics(["jobs"])["jobs"].partitions[0]
    assert leader.leader_pid is not None
    assert leader.leader_name is not None
    with Producer(bootstrap_servers=servers) as producer:
        before = [producer.send("jobs", b"%d" % n, partition=n % 2).result(20) for n in range(20)]
        os.kill(leader.leader_pid, signal.SIGKILL)
        after = [producer.send("jobs", b"%d" % n, partition=n % 2).result(30) for n in range(20, 40)]
    assert len({(m.partition, m.offset) for m in before + after}) == 40
    with Consumer(
        "jobs", bootstrap_servers=servers, auto_offset_reset="earliest", consumer_timeout_ms=5_000
    ) as consumer:
        values = [record.value for record, _ in zip(consumer, range(40), strict=False)]
    assert sorted(values, key=lambda value: int(value or b"-1")) == [b"%d" % n for n in range(40)]
    dead = (leader.leader_name, leader.leader_pid)
    wait_until(lambda: runs_again(directory / "run" / "boards", *dead), what="supervisord brings the worker back")
    supervisord.terminate()
    assert supervisord.wait(40) == 0
    left = [path.name for path in (directory / "run").rglob("*") if not path.is_dir()]
    assert left == [], "nothing is left in the run directory"
