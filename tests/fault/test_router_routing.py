"""The router between clients and processes that the test plays: what it forwards, answers, refuses and keeps."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conditions import wait_until
from tests.router_process import PlayedProcess, RouterProcess, Talker, echoing
from zbroker import ids
from zbroker.errors import (
    CoordinatorNotAvailableError,
    InvalidRequestError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    ThrottlingQuotaExceededError,
    UnsupportedVersionError,
)
from zbroker.wire.codec import encode
from zbroker.wire.layout import PEER, Api, pack_reply, pack_request, unpack_header
from zbroker.wire.messages import Hello, ProcessHello

WORKER = ids.worker_number(0)


@pytest.fixture
def router() -> Iterator[RouterProcess]:
    with RouterProcess() as router:
        yield router


def test_a_client_is_welcomed_with_directories_limits_and_shared_memory(router: RouterProcess) -> None:
    with Talker(router.front) as client:
        welcome = client.hello()
        assert welcome.protocol == 1
        assert welcome.run_dir == str(router.paths.run_dir)
        assert welcome.boards_dir == str(router.paths.boards_dir)
        assert welcome.owner_uid == os.getuid()
        assert welcome.shared_memory
        assert welcome.message_max_bytes == router.config.limits.message_max_bytes
        assert ids.pid_of(welcome.router_incarnation) == router.process.pid
        assert welcome.cluster_id == ""
        router.paths.metadata_dir.joinpath("cluster-id").write_text("abc\n")
        assert client.hello().cluster_id == "abc"


def test_protocol_versions_that_do_not_meet_are_refused(router: RouterProcess) -> None:
    with Talker(router.front) as client, pytest.raises(UnsupportedVersionError, match="2 to 9"):
        client.request(Api.HELLO, ids.ROUTER, encode(Hello("x", 2, 9, "y")))


def test_a_request_reaches_its_process_with_the_kernels_word_on_the_sender(router: RouterProcess) -> None:
    with PlayedProcess(router, WORKER) as worker, Talker(router.front) as client:
        header = pack_request(Api.PRODUCE, 77, WORKER, topic_id=3, partition=4, leader_epoch=5, acks=-1, timeout_ms=6)
        client.send([header, b"batch", b"", b"more"])
        address, peer, seen, body = worker.take()
        assert PEER.unpack(peer) == (os.getuid(), os.getgid(), os.getpid())
        assert body == [b"batch", b"", b"more"]
        assert (seen.topic_id, seen.partition, seen.leader_epoch, seen.acks, seen.timeout_ms) == (3, 4, 5, -1, 6)
        worker.answer(address, seen, b"done", b"")
        frames = client.receive()
        assert unpack_header(frames[0]).correlation == 77
        assert frames[1:] == [b"done", b""]


def test_processes_ask_each_other_through_the_router(router: RouterProcess) -> None:
    with PlayedProcess(router, WORKER) as worker, PlayedProcess(router, ids.COORDINATOR) as coordinator:
        worker.send([b"", pack_request(Api.REGISTER, 5, ids.COORDINATOR), b"me"])
        address, peer, header, body = coordinator.take()
        assert PEER.unpack(peer)[2] == os.getpid()
        assert body == [b"me"]
        coordinator.answer(address, header, b"welcome")
        frames = worker.receive()
        assert unpack_header(frames[0]).correlation == 5
        assert frames[1:] == [b"welcome"]


def test_absent_processes_are_named_by_the_error(router: RouterProcess) -> None:
    with Talker(router.front) as client:
        with pytest.raises(CoordinatorNotAvailableError):
            client.request(Api.METADATA, ids.COORDINATOR)
        with pytest.raises(LeaderNotAvailableError, match="worker-3"):
            client.request(Api.PRODUCE, ids.worker_number(3))
        for nobody in (2, 15, 1 << 31):
            with pytest.raises(InvalidRequestError, match="names no process"):
                client.request(Api.PRODUCE, nobody)


def test_a_process_that_has_gone_is_absent_at_once(router: RouterProcess) -> None:
    worker = PlayedProcess(router, WORKER)
    with Talker(router.front) as client:
        worker.close()

        def is_absent() -> bool:
            with pytest.raises((LeaderNotAvailableError, AssertionError)) as caught:
                client.request(Api.PRODUCE, WORKER, timeout_s=0.2)
            return caught.type is LeaderNotAvailableError

        wait_until(is_absent)


def test_inner_requests_unknown_requests_and_replies_of_clients_go_nowhere(router: RouterProcess) -> None:
    with PlayedProcess(router, WORKER) as worker, Talker(router.front) as client:
        for api in (Api.GRANT, Api.REVOKE, Api.PROCESS_HELLO, Api.REGISTER):
            with pytest.raises(InvalidRequestError, match="not for clients"):
                client.request(api, WORKER)
        with pytest.raises(InvalidRequestError, match="does not answer"):
            client.request(Api.METADATA, ids.ROUTER)
        with pytest.raises(InvalidRequestError):
            client.request(Api.HELLO, ids.ROUTER, b"\xc1 no msgpack")
        client.send([pack_reply(unpack_header(pack_request(Api.PRODUCE, 1, WORKER))), b"a reply"])
        client.send([pack_request(Api.PRODUCE, 2, WORKER), b"a request"])
        assert worker.take()[3] == [b"a request"]


def test_another_version_is_answered_in_its_own_header(router: RouterProcess) -> None:
    with Talker(router.front) as client:
        header = bytearray(pack_request(Api.FETCH, 4711, WORKER))
        header[2] = 9
        client.send([bytes(header) + b"fields of the future", b"body"])
        frames = client.receive()
        magic, version, kind, _, error, correlation = struct.unpack_from("<2sBBHhQ", frames[0])
        assert (magic, version, kind, correlation) == (b"zB", 9, 1, 4711)
        assert error == UnsupportedVersionError.code
        assert len(frames[0]) == 40
        assert client.hello().protocol == 1


def test_a_hello_must_come_from_the_process_it_names(router: RouterProcess) -> None:
    with Talker(router.back) as stranger:
        for number, incarnation in ((WORKER, ids.incarnation_of(os.getppid())), (2, ids.own_incarnation()), (-1, 0)):
            header = pack_request(Api.PROCESS_HELLO, 1, ids.ROUTER)
            stranger.send([b"", header, encode(ProcessHello(number, incarnation))])
            assert unpack_header(stranger.receive()[0]).error == InvalidRequestError.code
        for number, incarnation in ((WORKER, -1), (WORKER, ids.own_incarnation() + (1 << 63)), (1 << 40, 1)):
            stranger.send(
                [b"", pack_request(Api.PROCESS_HELLO, 1, ids.ROUTER), encode(ProcessHello(number, incarnation))]
            )
    with Talker(router.front) as client:
        client.hello()
        with pytest.raises(LeaderNotAvailableError):
            client.request(Api.PRODUCE, WORKER)


def test_a_message_of_too_many_frames_is_thrown_away_and_the_next_one_is_served(router: RouterProcess) -> None:
    with PlayedProcess(router, WORKER) as worker, Talker(router.front) as client, Talker(router.front) as other:
        other.hello()
        client.send([pack_request(Api.PRODUCE, 1, WORKER), *[b"x"] * 15])
        assert len(worker.take()[3]) == 15
        for frame_count in (17, 1_500, 20_000):
            client.send([pack_request(Api.PRODUCE, 2, WORKER), *[b"x"] * frame_count])
        other.hello()
        client.send([pack_request(Api.PRODUCE, 3, WORKER), b"after"])
        assert worker.take()[2].correlation == 3


def test_many_large_frames_are_refused_as_one_message_too_large(router: RouterProcess) -> None:
    frame = bytes(router.config.limits.message_max_bytes // 2)
    with PlayedProcess(router, WORKER) as worker, Talker(router.front) as client:
        client.send([pack_request(Api.PRODUCE, 1, WORKER), frame, frame])
        assert len(worker.take()[3]) == 2
        client.send([pack_request(Api.PRODUCE, 2, WORKER), frame, frame, frame])
        assert unpack_header(client.receive()[0]).error == MessageSizeTooLargeError.code


def test_a_large_answer_of_a_process_gets_through(router: RouterProcess) -> None:
    with (
        PlayedProcess(router, ids.COORDINATOR) as coordinator,
        Talker(router.front, message_max_bytes=64 << 20) as client,
    ):
        client.send([pack_request(Api.METADATA, 1, ids.COORDINATOR), b""])
        address, _, header, _ = coordinator.take()
        coordinator.answer(address, header, bytes(20 << 20))
        assert len(client.receive(timeout_s=20)[1]) == 20 << 20


def test_t32_an_oversize_frame_costs_its_sender_the_connection_and_nobody_else(router: RouterProcess) -> None:
    """T32: the frame is not read; others go on; the sender's socket comes back by itself and asks again."""
    with Talker(router.front) as other, Talker(router.front, message_max_bytes=64 << 20) as client:
        other.hello()
        client.hello()
        before = router.resident_bytes()
        client.send([pack_request(Api.PRODUCE, 1, WORKER), bytes(router.config.limits.message_max_bytes + (65 << 10))])
        for _ in range(50):
            other.hello()
        wait_until(lambda: client.try_hello(0.5))
        assert router.resident_bytes() - before < 16 << 20


def test_t33_two_sockets_of_one_identity_never_get_each_others_replies(router: RouterProcess) -> None:
    """T33: the second gets no answer at all, which its deadline turns into an error; the first is served on."""
    program = """
import sys, zmq
from zbroker.wire.layout import pack_request, Api
context = zmq.Context()
socket = context.socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 0)
socket.setsockopt(zmq.IDENTITY, b"the same")
socket.connect(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    socket.send_multipart([pack_request(Api.PRODUCE, number, 16), b"x"])
print("sent", flush=True)
sys.stdin.readline()
while socket.poll(1500):
    print(int.from_bytes(socket.recv_multipart()[0][8:16], "little"), flush=True)
context.destroy(0)
"""

    def start(first: int) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", program, router.front, str(first)]
        return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with PlayedProcess(router, WORKER) as worker, start(100) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "sent\n"
        asked = [worker.take() for _ in range(20)]
        with start(900) as thief:
            assert thief.stdout is not None
            assert thief.stdout.readline() == "sent\n"
            with pytest.raises(AssertionError, match="a message"):
                worker.take(timeout_s=0.3)
            for address, _, header, _ in asked:
                worker.answer(address, header, b"for the owner")
            owner_got, _ = owner.communicate("go\n", timeout=20)
            assert [int(line) for line in owner_got.split()] == list(range(100, 120))
            thief.stdin.close() if thief.stdin is not None else None
            # The name is free now; what the thief asks again is answered to the thief.
            thief_got = thief.stdout.read()
        assert not set(map(int, thief_got.split())) & set(range(100, 120))


def test_t43_other_users_are_refused_and_the_log_says_so_once(router: RouterProcess) -> None:
    """T43: even where somebody has opened the directory's mode, the kernel's word on the uid decides."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    program = """
import os, sys
from tests.router_process import Talker
from zbroker.errors import ClusterAuthorizationFailedError
from zbroker.wire.layout import Api
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Talker(sys.argv[1]).hello(timeout_s=0.5)
except AssertionError:
    print("locked out by the directory")
sys.stdin.readline()
client = Talker(sys.argv[1])
for _ in range(5):
    for ask in (client.hello, lambda: client.request(Api.METADATA, 0), lambda: client.request(Api.PRODUCE, 16)):
        try:
            ask()
        except ClusterAuthorizationFailedError:
            print("refused")
os._exit(0)
"""
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", program, router.front],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    with child, PlayedProcess(router, WORKER) as worker:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "locked out by the directory\n"
        os.chmod(router.directory, 0o755)
        os.chmod(router.paths.run_dir, 0o755)
        os.chmod(router.paths.front, 0o777)
        output, _ = child.communicate("go\n", timeout=30)
        assert output.splitlines() == ["refused"] * 15
        assert "may not use the broker" in router.log
        assert router.log.count("refused a message") == 1
        with pytest.raises(AssertionError):
            worker.take(timeout_s=0.2)


def test_t34_a_second_router_in_the_same_directory_is_told_to_wait(router: RouterProcess) -> None:
    """T34: exit code 75, and the first one's sockets are untouched; after a kill -9 a new one takes over."""
    with PlayedProcess(router, WORKER), Talker(router.front) as client:
        client.hello()
        second = RouterProcess(directory=router.directory)
        assert second.process.wait(20) == 75
        assert "lock-router" in router.log
        client.hello()
    os.kill(router.process.pid, signal.SIGKILL)
    router.process.wait()
    assert router.paths.front.exists()
    with RouterProcess(directory=router.directory) as third, Talker(third.front) as client:
        client.hello()


def test_clients_and_processes_find_a_restarted_router_by_themselves(router: RouterProcess) -> None:
    with Talker(router.front) as client:
        first = client.hello().router_incarnation
        router.process.kill()
        router.process.wait()
        with RouterProcess(directory=router.directory):
            wait_until(lambda: client.try_hello(0.5))
            assert client.hello().router_incarnation != first


def test_more_connections_than_allowed_are_told_so_and_the_others_served() -> None:
    with RouterProcess({"limits": {"connections_per_user_max": 20}}) as router:
        clients = [Talker(router.front) for _ in range(20)]
        try:
            for client in clients:
                client.hello()
            extra = [Talker(router.front) for _ in range(5)]
            clients += extra

            wait_until(lambda: is_refused_now(extra[-1]))
            with pytest.raises(CoordinatorNotAvailableError):
                clients[0].request(Api.METADATA, ids.COORDINATOR)
            for client in extra[:-1]:
                client.close()
            for client in clients[10:20]:
                client.close()
            wait_until(lambda: not is_refused_now(extra[-1]))
        finally:
            for client in clients:
                client.close()


def is_refused_now(client: Talker) -> bool:
    try:
        client.hello()
    except ThrottlingQuotaExceededError:
        return True
    return False


def test_a_process_that_does_not_read_gets_all_its_messages_later_and_its_askers_are_slowed_down(
    router: RouterProcess,
) -> None:
    with PlayedProcess(router, WORKER) as worker, Talker(router.front) as client:
        answers: list[int] = []
        sent = 0
        while not answers:
            client.send([pack_request(Api.PRODUCE, sent, WORKER), bytes(100_000)])
            sent += 1
            while client.socket.has_input():
                header = unpack_header((client.socket.receive() or [b""])[0])
                assert header.error == ThrottlingQuotaExceededError.code
                answers.append(header.correlation)
            assert sent < 20_000
        with Talker(router.front) as other:
            other.hello()
        assert router.resident_bytes() < 256 << 20
        with echoing(worker):
            seen = set(answers)
            while len(seen) < sent:
                header = unpack_header(client.receive()[0])
                assert header.error in (0, ThrottlingQuotaExceededError.code)
                assert header.correlation not in seen
                seen.add(header.correlation)
        assert seen == set(range(sent))
