"""A client's connection against a router that the test plays: welcome, repeats, deadlines, and who may wait where."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.settings import ConnectionSettings
from zbroker.errors import (
    BrokerNotAvailableError,
    ClosedError,
    ConcurrentUseError,
    CoordinatorNotAvailableError,
    LeaderNotAvailableError,
    RequestTimedOutError,
    StorageError,
)
from zbroker.transport.sockets import Context, RouterSocket, UnroutableError
from zbroker.wire.codec import encode
from zbroker.wire.layout import Api, Header, pack_reply, unpack_header
from zbroker.wire.messages import Welcome

Answer = Callable[[Header], "tuple[int, bytes] | None"]  # (error, body), or no answer


class ScriptedRouter:
    """A router in a thread of the test: it answers hellos, and everything else as `answer` says."""

    def __init__(self) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
        self.address = f"ipc://{self.run_dir}"
        self.answer: Answer = lambda header: (0, b"body")
        self.incarnation = ids.own_incarnation()
        self.hello_count = 0
        self.asked: list[Header] = []
        self._context = Context()
        self._socket = RouterSocket(self._context, message_max_bytes=1 << 20)
        self._socket.bind(f"ipc://{self.run_dir}/front.sock")
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            message = self._socket.receive()
            if not message:
                self._is_stopping.wait(0.001)
                continue
            header = unpack_header(message[1].buffer)
            if header.api == Api.HELLO:
                self.hello_count += 1
                welcome = Welcome(1, "id", "test", str(self.run_dir), "", self.incarnation, os.getuid(), False, 1)
                self._send(message[0].bytes, header, 0, encode(welcome))
                continue
            self.asked.append(header)
            found = self.answer(header)
            if found is not None:
                self._send(message[0].bytes, header, *found)

    def _send(self, routing_id: bytes, header: Header, error: int, body: bytes) -> None:
        with contextlib.suppress(UnroutableError):  # the client has gone meanwhile
            self._socket.send([routing_id, pack_reply(header, error), body])

    def close(self) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._socket.close()
        self._context.close()
        shutil.rmtree(self.run_dir)


@pytest.fixture
def router() -> Iterator[ScriptedRouter]:
    found = ScriptedRouter()
    yield found
    found.close()


@pytest.fixture
def connection(router: ScriptedRouter) -> Iterator[Connection]:
    found = Connection(ConnectionSettings(bootstrap_servers=router.address))
    yield found
    found.close()


def failing(code: int, times: int) -> Answer:
    """Answer with an error so many times, and then well."""
    left = [times]

    def answer(_: Header) -> tuple[int, bytes]:
        left[0] -= 1
        return (code, b"why") if left[0] >= 0 else (0, b"body")

    return answer


def test_a_reply_reaches_its_request(connection: Connection) -> None:
    assert [bytes(frame) for frame in connection.request(16, Api.FETCH, [b"x"], timeout_ms=5_000)] == [b"body"]


def test_an_error_that_may_pass_is_asked_again_until_it_has(router: ScriptedRouter, connection: Connection) -> None:
    router.answer = failing(LeaderNotAvailableError.code, 3)
    connection.request(16, Api.FETCH, timeout_ms=10_000)
    assert len(router.asked) == 4
    assert len({header.correlation for header in router.asked}) == 4


def test_an_error_that_will_not_pass_is_raised_at_once_with_its_text(
    router: ScriptedRouter, connection: Connection
) -> None:
    router.answer = failing(36, 1)
    with pytest.raises(Exception, match="why"):
        connection.request(16, Api.FETCH, timeout_ms=10_000)
    assert len(router.asked) == 1


def test_what_must_not_be_done_twice_is_sent_again_only_when_it_was_not_delivered(
    router: ScriptedRouter, connection: Connection
) -> None:
    router.answer = failing(CoordinatorNotAvailableError.code, 2)
    connection.request(ids.COORDINATOR, Api.CREATE_TOPICS, timeout_ms=10_000, repeats=False)
    assert len(router.asked) == 3
    router.answer = failing(StorageError.code, 1)
    with pytest.raises(StorageError):
        connection.request(ids.COORDINATOR, Api.CREATE_TOPICS, timeout_ms=10_000, repeats=False)
    assert len(router.asked) == 4


def test_no_answer_is_a_time_out_and_leaves_nothing_behind(router: ScriptedRouter, connection: Connection) -> None:
    router.answer = lambda header: None
    with pytest.raises(RequestTimedOutError):
        connection.request(16, Api.FETCH, timeout_ms=60, repeats=False)
    assert len(connection._unanswered) == 0


def test_a_callback_is_called_once_and_a_forgotten_one_never(router: ScriptedRouter, connection: Connection) -> None:
    calls: list[int] = []
    router.answer = lambda header: None
    connection.submit(16, Api.FETCH, [], lambda error, _: calls.append(error), timeout_ms=30)
    forgotten = connection.submit(16, Api.FETCH, [], lambda error, _: calls.append(-1), timeout_ms=30)
    connection.forget(forgotten)
    connection.wait_for(lambda: bool(calls), 5_000)
    connection.pump(50)
    assert calls == [RequestTimedOutError.code]


def test_a_callback_that_waits_is_told_so_in_place_of_a_hang(connection: Connection) -> None:
    raised: list[BaseException] = []

    def wait(_: int, __: list[Any]) -> None:
        for call in (lambda: connection.wait_for(lambda: False, 10_000), connection.close):
            try:
                call()
            except ConcurrentUseError as error:
                raised.append(error)

    connection.submit(16, Api.FETCH, [], wait)
    connection.wait_for(lambda: len(raised) == 2, 5_000)
    assert len(raised) == 2


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes that a router may claim to be."""
    found = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    yield found
    for process in found:
        process.kill()
        process.communicate()


def test_no_request_is_given_to_a_router_whose_end_nobody_would_notice(
    router: ScriptedRouter, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    first, second, third = (ids.incarnation_of(process.pid) for process in sleepers)
    router.incarnation = first
    one = Connection(ConnectionSettings(bootstrap_servers=router.address))
    answers: list[int] = []
    try:
        sleepers[1].kill()
        sleepers[1].wait()
        router.incarnation = second
        hellos = router.hello_count
        sleepers[0].kill()
        one.wait_for(lambda: router.hello_count > hellos + 1, 10_000)
        one.submit(16, Api.FETCH, [b"x"], lambda error, _: answers.append(error), timeout_ms=20_000)
        hellos = router.hello_count
        one.wait_for(lambda: router.hello_count > hellos + 2, 10_000)
        assert router.asked == [], "the second has ended, and would have lost it in silence"
        router.incarnation = third
        one.wait_for(lambda: bool(answers), 10_000)
        assert (answers, len(router.asked), one.welcome.router_incarnation) == ([0], 1, third)
        sleepers[2].kill()
        hellos = router.hello_count
        one.wait_for(lambda: router.hello_count > hellos, 10_000)
        assert router.hello_count > hellos, "the third is watched"
    finally:
        one.close()


def test_what_is_called_at_a_process_s_death_is_a_callback_too(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []

    def ended(_: int) -> None:
        for call in (lambda: connection.wait_for(lambda: False, 10_000), connection.close):
            with pytest.raises(ConcurrentUseError) as error:
                call()
            raised.append(error.value)

    monkeypatch.setattr(connection, "process_ended", ended)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        connection._watch.watch(16, ids.incarnation_of(process.pid))

        def kill_asleep() -> None:
            wait_until(lambda: connection._is_asleep)
            process.kill()

        killer = threading.Thread(target=kill_asleep)
        killer.start()
        connection.wait_for(lambda: len(raised) == 2, 10_000)
        killer.join()
    assert len(raised) == 2


def test_threads_share_a_connection(connection: Connection) -> None:
    done: list[int] = []

    def work() -> None:
        for _ in range(50):
            connection.request(16, Api.FETCH, [b"x"], timeout_ms=20_000)
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4


def test_when_the_router_dies_what_it_carried_is_lost_at_once_and_the_next_one_is_found(
    router: ScriptedRouter,
) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as stand_in:
        router.incarnation = ids.incarnation_of(stand_in.pid)
        connection = Connection(ConnectionSettings(bootstrap_servers=router.address))
        try:
            router.answer = lambda header: None
            calls: list[int] = []
            connection.submit(16, Api.PRODUCE, [], lambda error, _: calls.append(error), timeout_ms=60_000)
            connection.pump(0)
            assert not calls
            router.incarnation = ids.own_incarnation()
            stand_in.kill()
            connection.wait_for(lambda: bool(calls), 20_000)
            assert calls == [BrokerNotAvailableError.code]
            wait_until(lambda: connection.pump(20) or connection.welcome.router_incarnation == ids.own_incarnation())
            assert router.hello_count >= 2
        finally:
            connection.close()


def test_a_closed_connection_says_so_and_closes_twice(router: ScriptedRouter) -> None:
    connection = Connection(ConnectionSettings(bootstrap_servers=router.address))
    connection.close()
    connection.close()
    with pytest.raises(ClosedError):
        connection.submit(16, Api.FETCH, [], None)


def test_ctrl_c_in_a_sleep_leaves_the_connection_usable(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def poll(self, _: float) -> list[tuple[int, int]]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(connection, "_poll", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            connection.pump(100)
    assert connection.request(16, Api.FETCH, [b"x"], timeout_ms=5_000)


def test_a_directory_that_cannot_be_entered_is_named(router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(BrokerNotAvailableError, match="Permission denied"):
        Connection(ConnectionSettings(bootstrap_servers="ipc:///run/of-another"))
