"""T48, its running half: a broker listens on Unix sockets in its own directory, and nowhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.consuming import broker_with_tcp
from zbroker.client.producer import Producer
from zbroker.testing import Broker

LISTEN = "0A"  # the state of a listening tcp socket in /proc/net/tcp


def sockets_of(broker: Broker) -> set[str]:
    """The inodes of every socket that a process of the broker holds."""
    found = set()
    for pid in (broker.supervisor_pid, *(broker.pid_of(name) for name in broker.process_names())):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{name}")
            except FileNotFoundError:
                continue
            if match := re.fullmatch(r"socket:\[(\d+)\]", link):
                found.add(match[1])
    return found


def listens_by_net(broker: Broker) -> list[str]:
    """Local addresses (hexadecimal, as the kernel shows them) on which the broker listens by tcp or has udp."""
    mine = sockets_of(broker)
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[9] in mine and (not table.startswith("tcp") or fields[3] == LISTEN):
                found.append(fields[1])
    return found


def unix_paths(broker: Broker) -> set[str]:
    """The paths that the broker's Unix sockets are bound to; abstract names begin with @."""
    mine = sockets_of(broker)
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {fields[7] for fields in rows if fields[6] in mine and len(fields) > 7}


def test_t48_a_running_broker_listens_on_unix_sockets_of_its_own_directory_only() -> None:
    with Broker(workers=2) as broker, Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("orders", b"x").result(20)
        assert listens_by_net(broker) == []
        bound = unix_paths(broker)
        assert len(bound) >= 4, bound
        assert all(Path(path).parent == broker.paths.run_dir for path in bound), bound


def test_t48_tcp_is_opened_on_the_loopback_address_that_was_asked_for() -> None:
    """The counter-example, and the one exception."""
    broker, address = broker_with_tcp(workers=1)
    with broker:
        port = int(address.rpartition(":")[2])
        assert listens_by_net(broker) == [f"0100007F:{port:04X}"]
