"""The router is a reactor: one thread serves every connection, and a client's connection stays."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.router_process import PlayedProcess, RouterProcess, Talker, echoing
from zbroker import ids
from zbroker.wire.layout import Api

WORKER = ids.worker_number(0)


def threads(router: RouterProcess) -> list[str]:
    tasks = Path(f"/proc/{router.process.pid}/task")
    return [(tasks / name / "comm").read_text().strip() for name in os.listdir(tasks)]


def cpu_ticks(router: RouterProcess) -> dict[str, int]:
    """CPU time of each of the router's threads."""
    tasks = Path(f"/proc/{router.process.pid}/task")
    found = {}
    for name in os.listdir(tasks):
        fields = (tasks / name / "stat").read_text().rpartition(")")[2].split()
        found[name] = int(fields[11]) + int(fields[12])
    return found


def test_a_hundred_connections_are_served_by_as_many_threads_as_one() -> None:
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, echoing(worker), ExitStack() as stack:
        first = stack.enter_context(Talker(router.front))
        first.hello()
        before, files = sorted(threads(router)), router.file_count()
        clients = [stack.enter_context(Talker(router.front)) for _ in range(100)]
        for client in clients:
            client.hello()
        assert router.file_count() >= files + 100, "each has a connection"
        for client in clients:
            assert client.request(Api.PRODUCE, WORKER, b"x")[1] == b"x"
        assert sorted(threads(router)) == before


@pytest.mark.parametrize("count", [1, 8])
def test_the_router_has_as_many_threads_for_connections_as_the_settings_say(count: int) -> None:
    with RouterProcess({"network": {"io_threads": count}}) as router, Talker(router.front) as client:
        client.hello()
        assert sum("IO" in name for name in threads(router)) == count, threads(router)


def test_reading_and_deciding_are_done_by_different_threads() -> None:
    """The I/O thread takes the bytes off the sockets, the main thread decides where they go."""
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, echoing(worker):
        with Talker(router.front) as client:
            for _ in range(300):
                client.request(Api.PRODUCE, WORKER, bytes(500_000))
        used = cpu_ticks(router)
        assert used[str(router.process.pid)] > 0
        assert sum(ticks > 0 for ticks in used.values()) >= 2, used


def test_a_client_keeps_its_one_connection() -> None:
    with (
        RouterProcess() as router,
        PlayedProcess(router, WORKER) as worker,
        echoing(worker),
        Talker(router.front) as client,
    ):
        client.hello()
        connections = router.sockets()
        for _ in range(500):
            client.request(Api.PRODUCE, WORKER, b"x")
        assert router.sockets() == connections
        with Talker(router.front) as other:
            other.hello()
            assert router.sockets() > connections
