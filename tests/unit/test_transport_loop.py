"""The event loop: timers, descriptors, sockets and signals, one callback at a time."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.transport.loop import MESSAGES_A_TURN, Loop
from zbroker.transport.sockets import Context, DealerSocket, RouterSocket


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def sockets() -> Iterator[tuple[RouterSocket, DealerSocket]]:
    directory = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
    context = Context()
    router = RouterSocket(context, message_max_bytes=1 << 20)
    router.bind(f"ipc://{directory}/s")
    dealer = DealerSocket(context, f"ipc://{directory}/s", message_max_bytes=1 << 20)
    yield router, dealer
    dealer.close()
    router.close()
    context.close()
    shutil.rmtree(directory)


def test_timers_fire_in_the_order_of_their_times_and_a_cancelled_one_does_not(loop: Loop) -> None:
    fired: list[str] = []
    loop.call_after(4, lambda: fired.append("late"))
    loop.call_after(1, lambda: fired.append("early"))
    loop.call_after(2, lambda: fired.append("never")).cancel()
    wait_until(lambda: loop.run_once(5) >= 0 and len(fired) == 2)
    assert fired == ["early", "late"]


def test_what_is_called_every_so_often_is_called_again(loop: Loop) -> None:
    calls: list[int] = []
    loop.call_every(1, lambda: calls.append(1))
    wait_until(lambda: loop.run_once(5) >= 0 and len(calls) >= 3)


def test_a_readable_descriptor_calls_until_it_is_removed(loop: Loop, pipe: tuple[int, int]) -> None:
    calls: list[bytes] = []
    loop.add_reader(pipe[0], lambda: calls.append(os.read(pipe[0], 1)))
    os.write(pipe[1], b"ab")
    wait_until(lambda: loop.run_once(5) >= 0 and calls == [b"a", b"b"])
    loop.remove_reader(pipe[0])
    os.write(pipe[1], b"c")
    assert loop.run_once(1) == 0


def test_a_socket_with_very_much_to_read_lets_a_timer_through(
    loop: Loop, sockets: tuple[RouterSocket, DealerSocket]
) -> None:
    router, dealer = sockets
    taken: list[int] = []
    at_timer: list[int] = []
    wait_until(lambda: dealer.send([b"first"]), what="the connection")
    for _ in range(MESSAGES_A_TURN + 20):
        wait_until(lambda: dealer.send([b"x"]) or router.has_input(), what="room")
    loop.add_socket(router, lambda frames: taken.append(len(frames)))
    loop.call_after(0, lambda: at_timer.append(len(taken)))
    wait_until(lambda: loop.run_once(5) >= 0 and bool(at_timer))
    assert at_timer[0] <= 2 * MESSAGES_A_TURN
    assert set(taken) <= {2}
    loop.remove_socket(router)


def test_a_message_that_came_before_the_socket_was_added_is_seen(
    loop: Loop, sockets: tuple[RouterSocket, DealerSocket]
) -> None:
    router, dealer = sockets
    wait_until(lambda: dealer.send([b"header", b"body"]), what="the connection")
    wait_until(router.has_input, what="the message")
    taken: list[bytes] = []
    loop.add_socket(router, lambda frames: taken.append(frames[2].bytes))
    wait_until(lambda: loop.run_once(5) >= 0 and taken == [b"body"])
    loop.remove_socket(router)


def test_a_signal_is_handled_between_callbacks_and_given_back_at_the_end() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    calls: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append("signal"))

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        calls.append("callback")

    loop.call_after(0, interrupted)
    wait_until(lambda: loop.run_once(5) >= 0 and len(calls) == 2)
    assert calls == ["callback", "signal"]
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_hook_before_sleep_keeps_the_loop_awake(loop: Loop, pipe: tuple[int, int]) -> None:
    looks: list[int] = []

    def there_is_work() -> bool:
        looks.append(1)
        return False

    loop.before_sleep = there_is_work
    assert loop.run_once(60_000) == 0, "it would sleep a minute"
    assert looks
