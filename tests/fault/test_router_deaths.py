"""The router and processes that end while they are asked: every asker is told, once, and not before what came first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import IO, Self

import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.router_process import PlayedProcess, RouterProcess, Talker
from zbroker import ids
from zbroker.errors import (
    BrokerNotAvailableError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    ThrottlingQuotaExceededError,
    error_for,
)
from zbroker.wire.layout import Api, pack_request, unpack_header

WORKER = ids.worker_number(0)
ENDED = NotLeaderForPartitionError.code
PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tests.router_process import PlayedProcess
process = PlayedProcess(SimpleNamespace(back=sys.argv[1]), int(sys.argv[2]))
print("known", flush=True)
for line in sys.stdin:
    taken, answered = map(int, line.split())
    asked = [process.take() for _ in range(taken)]
    print("taken", flush=True)
    if answered:
        sys.stdin.readline()
    for address, _, header, body in asked[:answered]:
        process.answer(address, header, *body)
"""


class MortalProcess:
    """A process of the broker that can be killed: it takes and answers as many requests as it is told."""

    def __init__(self, router: RouterProcess, number: int) -> None:
        arguments = [sys.executable, "-c", PROGRAM, router.back, str(number)]
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._says("known")

    def _says(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def _tell(self, line: str) -> None:
        to: IO[str] | None = self.process.stdin
        assert to is not None
        to.write(f"{line}\n")
        to.flush()

    def take(self, count: int, *, answered: int = 0) -> None:
        """Take requests; with `answered` the first of them wait for `answer`."""
        self._tell(f"{count} {answered}")
        self._says("taken")

    def answer(self) -> None:
        self._tell("now")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        wait_until_stopped(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def router() -> Iterator[RouterProcess]:
    with RouterProcess() as router:
        yield router


def answers(client: Talker, count: int) -> dict[int, int]:
    """Correlation -> error of the next answers, each of them to another request."""
    found: dict[int, int] = {}
    for _ in range(count):
        header = unpack_header(client.receive()[0])
        assert header.correlation not in found
        found[header.correlation] = header.error
    return found


def has_nothing_more(client: Talker) -> bool:
    """Whether no answer was on its way before that to a hello, which the router gives in order."""
    wanted = pack_request(Api.METADATA, 1 << 40, ids.ROUTER)
    client.send([wanted, b""])
    return unpack_header(client.receive()[0]).correlation == 1 << 40


@pytest.mark.parametrize("is_stopped", [True, False])
def test_what_a_process_was_asked_when_it_was_killed_is_answered_by_the_router(
    router: RouterProcess, is_stopped: bool
) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        if is_stopped:
            worker.stop()
        for number in range(20):
            client.send([pack_request(Api.PRODUCE, number, WORKER, acks=1), b"x"])
        if is_stopped:
            assert has_nothing_more(client)  # and so everything before it is forwarded
        else:
            worker.take(20)
        worker.kill()
        assert answers(client, 20) == dict.fromkeys(range(20), ENDED)
        with pytest.raises(LeaderNotAvailableError):
            client.request(Api.PRODUCE, WORKER)
        assert has_nothing_more(client)


def test_what_it_had_answered_before_it_was_killed_comes_and_the_rest_is_told_once(router: RouterProcess) -> None:
    """The router finds answers and death at once: it stood still when both happened."""
    count, answered = 400, 300
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        for number in range(count):
            client.send([pack_request(Api.PRODUCE, number, WORKER, acks=1), b"x"])
        worker.take(count, answered=answered)
        router.process.send_signal(signal.SIGSTOP)
        wait_until_stopped(router.process.pid)
        worker.answer()
        worker.take(0)  # it has given all of its answers to its socket
        worker.kill()
        router.process.send_signal(signal.SIGCONT)
        found = answers(client, count)
        assert has_nothing_more(client)
    # How many of the answers had left the dead one's own memory is not known: a first part of them.
    done = [number for number in range(count) if found[number] == 0]
    assert done == list(range(len(done)))
    assert 0 < len(done) <= answered
    assert {found[number] for number in range(len(done), count)} == {ENDED}


def test_a_produce_without_an_answer_gets_none(router: RouterProcess) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        for number, acks in enumerate((0, 1, 0, -1)):
            client.send([pack_request(Api.PRODUCE, number, WORKER, acks=acks), b"x"])
        worker.take(4)
        worker.kill()
        assert answers(client, 2) == {1: ENDED, 3: ENDED}
        assert has_nothing_more(client)


def test_a_process_that_asked_the_dead_is_told_too(router: RouterProcess) -> None:
    with MortalProcess(router, ids.COORDINATOR) as coordinator, PlayedProcess(router, WORKER) as worker:
        worker.send([b"", pack_request(Api.REGISTER, 5, ids.COORDINATOR), b"me"])
        coordinator.take(1)
        coordinator.kill()
        frames = worker.receive()
        header = unpack_header(frames[0])
        assert header.correlation == 5
        # Not the number after which a client repeats what must not be done twice.
        assert header.error == BrokerNotAvailableError.code
        assert "it may have done it or not" in frames[1].decode()


def test_a_lane_that_the_dead_was_asked_for_can_be_asked_for_again_at_once(router: RouterProcess) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        client.send([pack_request(Api.OPEN_LANE, 1, WORKER), b"x"])
        worker.take(1)
        worker.kill()
        assert answers(client, 1) == {1: LeaderNotAvailableError.code}


def test_its_successor_answers_for_itself(router: RouterProcess) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        client.send([pack_request(Api.FETCH, 1, WORKER), b"x"])
        worker.take(1)
        with MortalProcess(router, WORKER) as successor:
            client.send([pack_request(Api.FETCH, 2, WORKER), b"y"])
            successor.take(1, answered=1)
            worker.kill()
            assert answers(client, 1) == {1: ENDED}
            successor.answer()
            assert answers(client, 1) == {2: 0}
            client.send([pack_request(Api.FETCH, 3, WORKER), b"z"])
            successor.take(1)
        assert answers(client, 1) == {3: ENDED}


def test_an_asker_that_is_gone_takes_nothing_from_the_others(router: RouterProcess) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        with Talker(router.front) as leaver:
            leaver.send([pack_request(Api.FETCH, 1, WORKER), b"x"])
            worker.take(1)
        client.send([pack_request(Api.FETCH, 1, WORKER), b"x"])
        worker.take(1)
        worker.kill()
        assert answers(client, 1) == {1: ENDED}
        assert has_nothing_more(client)


def test_what_piled_up_before_a_process_that_hangs_is_told_once_when_it_is_killed(router: RouterProcess) -> None:
    with MortalProcess(router, WORKER) as worker, Talker(router.front) as client:
        worker.stop()
        refused: dict[int, int] = {}
        sent = 0
        while not refused:
            client.send([pack_request(Api.PRODUCE, sent, WORKER, acks=1), bytes(100_000)])
            sent += 1
            while client.socket.has_input():
                header = unpack_header((client.socket.receive() or [b""])[0])
                refused[header.correlation] = header.error
        assert set(refused.values()) == {ThrottlingQuotaExceededError.code}
        worker.kill()
        found = answers(client, sent - len(refused))
        assert has_nothing_more(client)
        assert found.keys() | refused.keys() == set(range(sent))
        # What had waited in the router surely did not arrive, which is another answer.
        kinds = Counter(type(error_for(error, "")) for error in found.values())
        assert kinds.keys() <= {NotLeaderForPartitionError, LeaderNotAvailableError, ThrottlingQuotaExceededError}
        assert kinds[NotLeaderForPartitionError] > 0
        assert kinds[LeaderNotAvailableError] > 0


def test_processes_that_have_ended_leave_no_descriptors(router: RouterProcess) -> None:
    with Talker(router.front) as client:
        client.hello()
        with MortalProcess(router, WORKER):
            pass
        wait_until(lambda: is_absent(client))
        before = router.file_count()
        for _ in range(5):
            with MortalProcess(router, WORKER) as worker:
                client.send([pack_request(Api.FETCH, 1 << 41, WORKER), b"x"])
                worker.take(1)
            assert answers(client, 1) == {1 << 41: ENDED}
        wait_until(lambda: router.file_count() <= before, what="the descriptors of the dead to be closed")


def is_absent(client: Talker) -> bool:
    with pytest.raises(LeaderNotAvailableError):
        client.request(Api.PRODUCE, WORKER)
    return True


def test_a_process_that_says_hello_by_a_second_connection_is_asked_there_and_what_the_first_was_asked_is_answered(
    router: RouterProcess,
) -> None:
    with Talker(router.front) as client, PlayedProcess(router, WORKER) as first:
        for number in range(20):
            client.send([pack_request(Api.PRODUCE, number, WORKER, acks=1), b"x"])
        asked = [first.take() for _ in range(20)]
        with PlayedProcess(router, WORKER, connection_number=1) as second:
            for address, _, header, body in asked[:10]:
                first.answer(address, header, *body)  # on its way when the connection breaks, and not lost
            assert answers(client, 10) == dict.fromkeys(range(10), 0)
            client.send([pack_request(Api.PRODUCE, 20, WORKER, acks=1), b"x"])
            assert second.take()[2].correlation == 20
            first.close()
            assert answers(client, 10) == dict.fromkeys(range(10, 20), ENDED)
            assert has_nothing_more(client)


def test_a_late_hello_by_a_connection_that_a_process_has_lost_counts_no_more(router: RouterProcess) -> None:
    with PlayedProcess(router, WORKER) as first, PlayedProcess(router, WORKER, connection_number=1) as second:
        first.say_hello()
        first.send([b"", pack_request(Api.METADATA, 7, 1 << 30), b""])
        # What asks whether anybody is there still is empty; a hello before the request would be answered before it.
        said = next(frames for frames in iter(first.receive, None) if frames[0])
        assert unpack_header(said[0]).correlation == 7
        with Talker(router.front) as client:
            client.send([pack_request(Api.PRODUCE, 1, WORKER, acks=1), b"x"])
            assert second.take()[2].correlation == 1
