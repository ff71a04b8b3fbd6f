"""The router under floods: connections, hostile bytes, readers that stop, messages without an end.

ZBROKER_FLOOD is the number of connections, raw or hostile.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.router_process import PlayedProcess, RouterProcess, Talker, echoing, raw_connect
from zbroker import ids
from zbroker.errors import BrokerError, ThrottlingQuotaExceededError
from zbroker.wire.layout import Api, pack_request, unpack_header

WORKER = ids.worker_number(0)
FLOOD = int(os.environ.get("ZBROKER_FLOOD", "20000"))
ROUTER_FILES = 4096
MIB = 1 << 20

# ZMTP 3.1, NULL: what every DEALER sends first.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    value = int(os.environ.get("ZBROKER_SEED", random.randrange(1 << 32)))
    request.node.add_report_section("setup", "seed", str(value))
    return value


class Pings:
    """Clients that ask without a pause, and how long they waited."""

    def __init__(self, router: RouterProcess, client_count: int) -> None:
        self.waits_s: list[float] = []
        self._stop = threading.Event()
        self._talkers = [Talker(router.front) for _ in range(client_count)]
        for talker in self._talkers:
            talker.hello()
        self._threads = [threading.Thread(target=self._ask, args=(talker,)) for talker in self._talkers]
        for thread in self._threads:
            thread.start()

    def _ask(self, talker: Talker) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                talker.request(Api.PRODUCE, WORKER, b"ping", timeout_s=1)
            except (AssertionError, BrokerError):
                self.waits_s.append(float("inf"))
            else:
                self.waits_s.append(time.monotonic() - started)
            self._stop.wait(0.005)

    def stop(self) -> list[float]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for talker in self._talkers:
            talker.close()
        return self.waits_s


@pytest.fixture
def busy_router() -> Iterator[tuple[RouterProcess, Pings]]:
    """A router with few descriptors, and five clients whose requests are answered all the while."""
    with RouterProcess(files_max=ROUTER_FILES) as router, PlayedProcess(router, WORKER) as worker, echoing(worker):
        pings = Pings(router, 5)
        try:
            yield router, pings
        finally:
            pings.stop()


@pytest.fixture
def files_kept() -> Iterator[int]:
    """How many connections this process may keep open; raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(hard, 1 << 16) - 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_t30_a_flood_of_connections_ends_neither_the_router_nor_its_clients(
    busy_router: tuple[RouterProcess, Pings], files_kept: int
) -> None:
    """T30: raw connections that are kept open, far more than the router has descriptors."""
    if files_kept < 2 * ROUTER_FILES:
        pytest.skip(f"a flood needs more than the {files_kept} descriptors that this process may have")
    router, pings = busy_router
    before = router.file_count()
    kept: deque[socket.socket] = deque()
    refused = most = 0
    for number in range(FLOOD):
        if len(kept) == files_kept:
            kept.popleft().close()
        if number % 200 == 0:
            most = max(most, router.file_count())
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(router.paths.front))
            kept.append(connection)
        except OSError:
            refused += 1
            connection.close()
            time.sleep(0.001)
    for connection in kept:
        connection.close()
    wait_until(lambda: router.file_count() <= before + 8, what="the flood's descriptors to be given back")
    wait_until(router.paths.front.exists, what="the router to listen again")
    with Talker(router.front) as fresh:
        wait_until(lambda: is_welcomed(fresh), what="the router to count again")
    waits = pings.stop()
    assert router.process.poll() is None, router.log
    assert refused > 0, "the flood was too small to be one"
    assert ROUTER_FILES / 4 < most < ROUTER_FILES
    assert "no new connections" in router.log
    assert "accepting connections again" in router.log
    assert sum(wait <= 1 for wait in waits) >= 0.95 * len(waits), sorted(waits)[-10:]


def test_bytes_written_by_hand_are_understood_when_they_are_right() -> None:
    """What the hostile ones are made from reaches the router's own code, not only libzmq's."""
    with RouterProcess() as router, raw_connect(router.paths.front) as connection:
        shake_hands(connection)
        connection.sendall(READY + b"\x00\x28" + pack_request(Api.METADATA, 4711, ids.COORDINATOR))
        received = b""
        while b"coordinator is not connected" not in received:
            received += connection.recv(1000)
            assert received
        assert (4711).to_bytes(8, "little") in received


def shake_hands(connection: socket.socket) -> None:
    """Exchange greetings. What follows a greeting in the same packet is left lying by libzmq until more comes."""
    connection.settimeout(10)
    connection.sendall(GREETING)
    received = 0
    while received < len(GREETING):
        received += len(connection.recv(len(GREETING) - received)) or len(GREETING)


def hostile_bytes(chance: random.Random) -> tuple[bool, bytes]:
    """What somebody may send who knows the protocol, or does not; True: after a greeting."""
    kind = chance.randrange(6)
    if kind == 0:
        return False, chance.randbytes(chance.randrange(1, 300))
    if kind == 1:  # a greeting with wrong bytes, or half of one
        greeting = bytearray(GREETING)
        for _ in range(chance.randrange(1, 4)):
            greeting[chance.randrange(len(greeting))] = chance.randrange(256)
        return False, bytes(greeting[: chance.randrange(1, 65)])
    if kind == 2:  # a mutated READY
        ready = bytearray(READY)
        ready[chance.randrange(len(ready))] = chance.randrange(256)
        return True, bytes(ready) + chance.randbytes(20)
    if kind == 3:  # a frame that says it is huge
        length = chance.choice([1 << 21, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
        return True, READY + b"\x02" + length.to_bytes(8, "big") + b"x" * 100
    if kind == 4:  # half a frame
        return True, READY + b"\x00\xff" + b"x" * chance.randrange(254)
    header = bytearray(pack_request(chance.choice([1, 2, 3, 99]), 1, chance.choice([0, 1, WORKER, 1 << 30])))
    for _ in range(chance.randrange(4)):
        header[chance.randrange(40)] = chance.randrange(256)
    body = chance.randbytes(chance.randrange(100))
    return True, READY + b"\x01" + bytes([len(header)]) + bytes(header) + b"\x00" + bytes([len(body)]) + body


def throw_hostile_bytes(router: RouterProcess, chance: random.Random, count: int) -> None:
    """So many connections, each with bytes that no client would send."""
    for _ in range(count):
        with raw_connect(router.paths.front) as connection:
            greets, sent = hostile_bytes(chance)
            try:
                if greets:
                    shake_hands(connection)
                connection.settimeout(1)
                connection.sendall(sent)
                if chance.random() < 0.1:
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(64)
            except OSError:
                pass  # it hung up first, as it may


def test_t31_hostile_bytes_leave_nothing_behind(busy_router: tuple[RouterProcess, Pings], seed: int) -> None:
    """T31: alive, memory and descriptors as before, other clients served."""
    router, pings = busy_router
    chance = random.Random(seed)
    before_files = router.file_count()
    throw_hostile_bytes(router, chance, FLOOD // 2)
    wait_until(lambda: router.file_count() <= before_files + 8)
    # The first half says how much the router may have to keep at once, which the allocator does not give back.
    before_bytes = router.resident_bytes()
    throw_hostile_bytes(router, chance, FLOOD // 2)
    wait_until(lambda: router.file_count() <= before_files + 8)
    assert router.resident_bytes() - before_bytes <= 8 * MIB
    with Talker(router.front) as fresh:
        fresh.hello()
    waits = pings.stop()
    assert router.process.poll() is None, router.log
    assert sum(wait <= 1 for wait in waits) >= 0.95 * len(waits), sorted(waits)[-10:]


def test_half_open_connections_are_closed_after_a_second(busy_router: tuple[RouterProcess, Pings]) -> None:
    router, _ = busy_router
    before = router.file_count()
    started = time.monotonic()
    connections = [raw_connect(router.paths.front) for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.sendall(GREETING[: number % 64])
    closed = 0
    try:
        for connection in connections:
            connection.settimeout(10)
            while connection.recv(256):
                pass
            closed += 1
    finally:
        for connection in connections:
            connection.close()
    assert closed == 50
    assert time.monotonic() - started > 0.5, "a slow greeting is given its second"
    wait_until(lambda: router.file_count() <= before, what="their descriptors to be given back")


def is_welcomed(client: Talker) -> bool:
    try:
        client.hello()
    except ThrottlingQuotaExceededError:
        return False
    return True


def is_answered(client: Talker) -> bool:
    try:
        client.request(Api.PRODUCE, WORKER, b"x")
    except ThrottlingQuotaExceededError:
        return False
    return True


def test_t29_readers_that_stop_lose_nothing_without_being_told() -> None:
    """T29: every reply is delivered in order once they read again; what found no room was refused or times out."""
    clients_count, each = 200, 100
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker:
        clients = [Talker(router.front) for _ in range(clients_count)]
        with echoing(worker):
            for number in range(each):
                for client in clients:
                    client.send([pack_request(Api.PRODUCE, number, WORKER), bytes(2_000)])
            with Talker(router.front) as reader:
                reader.hello()
                for _ in range(20):
                    wait_until(lambda: is_answered(reader), what="room for a request")
            for client in clients:
                seen = [unpack_header(client.receive()[0]) for _ in range(each)]
                done = [header.correlation for header in seen if not header.error]
                refused = {header.correlation for header in seen if header.error == ThrottlingQuotaExceededError.code}
                assert done == sorted(set(range(each)) - refused)
                client.close()
        assert router.resident_bytes() < 256 * MIB


def test_a_reader_that_never_reads_costs_the_router_a_bounded_amount() -> None:
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, echoing(worker):
        with Talker(router.front) as client, Talker(router.front) as other:
            for number in range(3_000):
                if not client.socket.send([pack_request(Api.FETCH, number, WORKER), bytes(100_000)]):
                    select.select([], [], [], 0.001)
                if number % 100 == 0:
                    other.hello()
                    assert router.resident_bytes() < 256 * MIB
        wait_until(lambda: router.resident_bytes() < 96 * MIB, what="memory to be given back")


def test_a_message_whose_frames_never_end_is_stopped() -> None:
    """libzmq keeps an unfinished message out of sight and out of every bound; the guard replaces the socket."""
    bounds = (96 * MIB, 64 * MIB, 128 * MIB, 48 * MIB)
    with RouterProcess(resident_bounds=bounds) as router, Talker(router.front) as client:
        client.hello()
        frame = b"\x03" + (MIB).to_bytes(8, "big") + bytes(MIB)
        sent_mib = 0
        with raw_connect(router.paths.front) as hostile:
            shake_hands(hostile)
            hostile.sendall(READY)
            try:
                while sent_mib < 2_000:
                    hostile.sendall(frame)
                    sent_mib += 1
                    assert router.resident_bytes() < 400 * MIB, router.log
            except OSError:
                pass
        assert sent_mib < 2_000, "nobody stopped it"
        assert "closing all clients' connections" in router.log
        wait_until(lambda: client.try_hello(0.5), what="the other client to be served again")
        wait_until(lambda: router.resident_bytes() < 96 * MIB, what="memory to be given back")
        assert router.process.poll() is None


def test_t35_a_router_that_was_stopped_while_clients_came_and_went_is_soon_small_again() -> None:
    """T35: 500 clients connect again and again, and send, while the router does nothing for five seconds."""
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, echoing(worker):
        with Talker(router.front) as first:
            first.hello()
        os.kill(router.process.pid, signal.SIGSTOP)
        stalled = [Talker(router.front) for _ in range(500)]
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for index, talker in enumerate(stalled):
                for number in range(5):
                    talker.socket.send([pack_request(Api.PRODUCE, number, WORKER), bytes(8_000)])
                if index % 10 == 0:
                    talker.close()
                    stalled[index] = Talker(router.front)
        os.kill(router.process.pid, signal.SIGCONT)
        most = 0
        for talker in stalled:
            most = max(most, router.resident_bytes())
            wait_until(lambda talker=talker: talker.try_hello(2), what="an answer")  # type: ignore[misc]  # bound now
            talker.close()
        assert most <= 256 * MIB
        wait_until(lambda: router.resident_bytes() <= 64 * MIB, timeout_s=10, what="memory to be given back")


def test_t37_a_storm_of_reconnects_is_served() -> None:
    """T37: 200 clients connect ten times each, all at once, and each is answered."""

    def storm(router: RouterProcess) -> int:
        answered = 0
        for _ in range(10):
            with Talker(router.front) as client:
                client.hello(timeout_s=20)
                client.request(Api.PRODUCE, WORKER, b"x", timeout_s=20)
                answered += 1
        return answered

    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, echoing(worker):
        before = router.file_count()
        with ThreadPoolExecutor(200) as pool:
            assert list(pool.map(storm, [router] * 200)) == [10] * 200
        wait_until(lambda: router.file_count() <= before)
        assert router.process.poll() is None


def test_t36_sockets_threads_and_memory_of_clients_are_given_back() -> None:
    """T36: opening and closing leaves nothing in the client, even with messages nobody takes; a close is quick."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with RouterProcess() as router:
        with Talker(router.front) as client:
            client.hello()
        before = (threads(), files())
        for number in range(100):
            with Talker(router.front) as client:
                if number % 2:
                    client.hello()
                client.socket.send([pack_request(Api.PRODUCE, 1, WORKER), bytes(100_000)])
            with Talker("ipc:///dev/shm/zbt-nobody.sock") as client:
                assert not client.socket.send([b"nobody takes this"])
        wait_until(lambda: (threads(), files()) <= before, what="threads and descriptors to be given back")


def test_the_socket_files_are_private_to_the_user() -> None:
    with RouterProcess() as router:
        for path in (router.paths.front, router.paths.back):
            assert path.stat().st_mode & 0o077 == 0
        assert Path(router.paths.run_dir).stat().st_mode & 0o777 == 0o700
