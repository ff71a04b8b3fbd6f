"""A lane goes to whoever holds its token, once, in time, and with the right uid."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.clock import NS_PER_MS
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    ClusterAuthorizationFailedError,
    InvalidRequestError,
    LaneRefusedError,
    RequestTimedOutError,
    TooManyOpenFilesError,
)
from zbroker.shm import handover
from zbroker.shm.doorbell import Doorbell
from zbroker.shm.handover import LaneListener, OpenedLane, open_lane
from zbroker.shm.lane import Lane

TOKEN = b"0123456789abcdef"


class Exchange:
    """A worker's side in this thread, and clients in threads of their own."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "lane-worker-0.sock"
        self.bell = Doorbell()
        self.client_bell = Doorbell()
        self.listener = LaneListener(self.path, self.bell.write_fd, 77)
        self.opened: list[OpenedLane] = []

    def offer(self, number: int = 1, *, uid: int | None = None, now_ns: int = 0) -> bytes:
        lane = Lane.create(number, 77, 4096, 4096)
        return self.listener.offer(lane, os.getuid() if uid is None else uid, now_ns)

    def open(self, token: bytes, *, worker_uid: int | None = None) -> tuple[Lane, int] | BrokerError:
        results: list[tuple[Lane, int] | BrokerError] = []

        def client() -> None:
            try:
                results.append(open_lane(self.path, token, self.client_bell.write_fd, worker_uid=worker_uid))
            except BrokerError as error:
                results.append(error)

        thread = threading.Thread(target=client)
        thread.start()

        def answered() -> bool:
            self.opened += self.listener.accept(0)
            return bool(results)

        wait_until(answered, what="an answer to the client")
        thread.join()
        return results[0]

    def close(self) -> None:
        for opened in self.opened:
            opened.lane.close()
            os.close(opened.client_bell_fd)
        self.listener.close()
        self.bell.close()
        self.client_bell.close()


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[Exchange]:
    before = len(os.listdir("/proc/self/fd"))
    made = Exchange(tmp_path)
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
    assert list(tmp_path.iterdir()) == []


def test_token_is_exchanged_for_lane_and_both_doorbells(exchange: Exchange) -> None:
    answer = exchange.open(exchange.offer(9))
    assert isinstance(answer, tuple)
    lane, bell_fd = answer
    (opened,) = exchange.opened
    assert (lane.number, opened.lane.number, opened.client_pid, opened.client_uid) == (9, 9, os.getpid(), os.getuid())
    assert opened.lane.fd == -1, "the worker needs the descriptor no more"
    os.write(bell_fd, (9).to_bytes(4, "little"))
    os.write(opened.client_bell_fd, (8).to_bytes(4, "little"))
    assert (exchange.bell.drain(), exchange.client_bell.drain()) == ({9}, {8})
    lane.requests.try_write([b"hello"])
    frames = opened.lane.requests.take()
    assert frames is not None
    assert bytes(frames[0]) == b"hello"
    assert not os.get_inheritable(bell_fd)
    os.close(bell_fd)
    lane.close()


def test_a_token_works_once(exchange: Exchange) -> None:
    token = exchange.offer()
    first = exchange.open(token)
    assert isinstance(first, tuple)
    assert isinstance(exchange.open(token), LaneRefusedError)
    first[0].close()
    os.close(first[1])


def test_a_guessed_token_is_refused(exchange: Exchange) -> None:
    exchange.offer()
    assert isinstance(exchange.open(TOKEN), LaneRefusedError)


def test_another_users_token_is_refused_and_stays_good_for_its_user(exchange: Exchange) -> None:
    token = exchange.offer(uid=os.getuid() + 1)
    assert isinstance(exchange.open(token), ClusterAuthorizationFailedError)
    assert token in exchange.listener._offers


def test_a_client_does_not_speak_to_a_worker_of_another_user(exchange: Exchange) -> None:
    answer = exchange.open(exchange.offer(), worker_uid=os.getuid() + 1)
    assert isinstance(answer, ClusterAuthorizationFailedError)
    wait_until(lambda: (exchange.listener.accept(0), not exchange.listener._pending)[1], what="the connection's end")


def test_an_offer_that_nobody_takes_expires_with_its_memory(exchange: Exchange) -> None:
    before = len(os.listdir("/proc/self/fd"))
    token = exchange.offer(now_ns=0)
    assert exchange.listener.expire(handover.OFFER_TIMEOUT_MS * NS_PER_MS - 1) == 0
    assert exchange.listener.expire(handover.OFFER_TIMEOUT_MS * NS_PER_MS) == 1
    assert len(os.listdir("/proc/self/fd")) == before
    assert isinstance(exchange.open(token), LaneRefusedError)


def test_offers_are_bounded(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "OFFERS_MAX", 3)
    for _ in range(3):
        exchange.offer()
    with pytest.raises(LaneRefusedError, match="3 lanes"):
        exchange.offer()


@pytest.mark.parametrize("packet", [b"", b"short", b"XXXX" + bytes(20), b"zBLn" + bytes(20), bytes(4096)])
def test_a_packet_that_is_no_request_gets_an_error_and_costs_nothing(exchange: Exchange, packet: bytes) -> None:
    exchange.offer()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hostile:
        hostile.connect(str(exchange.path))
        handover._send(hostile, packet, [exchange.client_bell.write_fd] if packet[:1] == b"z" else [])
        wait_until(lambda: (exchange.listener.accept(0), not exchange.listener._pending)[1], what="an answer")
    assert exchange.opened == []


def test_a_client_that_says_nothing_is_dropped_after_its_time(exchange: Exchange) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(exchange.path))
        wait_until(lambda: (exchange.listener.accept(0), exchange.listener._pending)[1], what="the connection")
        exchange.listener.expire(handover.EXCHANGE_TIMEOUT_MS * NS_PER_MS)
        assert not exchange.listener._pending
        assert silent.recv(1) == b""


def test_half_open_exchanges_are_bounded(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "PENDING_MAX", 2)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(4)]
    for client in clients:
        client.connect(str(exchange.path))
    exchange.listener.accept(0)
    assert len(exchange.listener._pending) == 2
    for client in clients:
        client.close()


def test_without_a_worker_the_client_hears_that_nobody_answers(tmp_path: Path) -> None:
    bell = Doorbell()
    with pytest.raises(BrokerNotAvailableError):
        open_lane(tmp_path / "absent.sock", TOKEN, bell.write_fd)
    bell.close()


def test_a_worker_that_hangs_is_a_timeout_and_not_a_hang(exchange: Exchange) -> None:
    with pytest.raises(RequestTimedOutError):
        open_lane(exchange.path, exchange.offer(), exchange.client_bell.write_fd, timeout_ms=20)
    assert [exchange.listener.accept(0), exchange.listener.accept(0)] == [[], []], "nobody is there to take the lane"


@contextmanager
def played_worker(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """One client is served like this, by a thread, and hung up on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


def take_request(connection: socket.socket) -> None:
    for received in handover._receive(connection, 64)[1]:
        os.close(received)


def test_memory_that_is_not_sealed_is_not_taken_from_anybody(tmp_path: Path) -> None:
    """T42: a false worker cannot hand out memory that it could shrink under the client."""
    path, bell = tmp_path / "false.sock", Doorbell()
    fd = os.memfd_create("false", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 12288)

    def serve(connection: socket.socket) -> None:
        take_request(connection)
        handover._send(connection, handover._REPLY.pack(b"zBLr", 1, 0, 1, 0, 77), [fd, bell.write_fd])

    with played_worker(path, serve), pytest.raises(InvalidRequestError, match="not sealed"):
        open_lane(path, TOKEN, bell.write_fd)
    os.close(fd)
    bell.close()


@pytest.mark.parametrize("reads", [True, False])
def test_a_worker_that_ends_during_the_exchange_is_not_one_that_refuses(tmp_path: Path, reads: bool) -> None:
    """Its end closes the connection, with or without the request in it; with transport='shm' only a refusal is said."""
    path, bell = tmp_path / "dying.sock", Doorbell()

    def end(connection: socket.socket) -> None:
        select.select([connection], [], [], 10)
        if reads:
            take_request(connection)

    with played_worker(path, end), pytest.raises(BrokerNotAvailableError):
        open_lane(path, TOKEN, bell.write_fd)
    bell.close()


FULL = """
import os, resource, select, sys
from pathlib import Path
from zbroker.shm.doorbell import Doorbell
from zbroker.shm.handover import LaneListener
bell = Doorbell()
listener = LaneListener(Path(sys.argv[1]), bell.write_fd, 77)
poll = select.poll()
poll.register(0, select.POLLIN)
poll.register(listener.fileno(), select.POLLIN)
first_free = os.dup(0)
os.close(first_free)
resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, first_free))
print("ready", flush=True)
while not any(fd == 0 for fd, _ in poll.poll()):
    assert listener.accept(0) == []
"""


def test_who_is_turned_away_hears_that_there_is_no_lane(tmp_path: Path) -> None:
    """By a worker that has no descriptor left: whether it hangs up before the request has come or after it."""
    path, bell = tmp_path / "full.sock", Doorbell()
    with subprocess.Popen(
        [sys.executable, "-c", FULL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdin is not None
        try:
            assert worker.stdout.readline() == b"ready\n"
            said = set()
            for _ in range(20):
                with pytest.raises(BrokerError) as caught:
                    open_lane(path, TOKEN, bell.write_fd)
                said.add(type(caught.value))
            # The first finds no room. Of the others some may find room for the connection, and none for its descriptor.
            assert LaneRefusedError in said
            assert said <= {LaneRefusedError, TooManyOpenFilesError}
            worker.stdin.close()
            assert worker.wait(timeout=10) == 0
        finally:
            worker.kill()
    bell.close()


def test_without_descriptors_clients_are_turned_away_and_the_listener_comes_to_rest(tmp_path: Path) -> None:
    code = """
import os, resource, socket, sys
from pathlib import Path
from zbroker.shm.doorbell import Doorbell
from zbroker.shm.handover import LaneListener
bell = Doorbell()
listener = LaneListener(Path(sys.argv[1]), bell.write_fd, 77)
clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(5)]
for client in clients:
    client.connect(sys.argv[1])
used = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
assert listener.accept(0) == []
assert listener._epoll.poll(0) == [], "the listener is still readable"
for client in clients:
    assert client.recv(100)[:4] == b"zBLr", "not turned away"
    assert client.recv(100) == b""
listener.close()
bell.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "lane.sock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
