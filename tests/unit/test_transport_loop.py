"""The event loop: sockets, descriptors, timers and signals, each in its turn."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.clock import ManualClock
from zbroker.transport.loop import MESSAGES_A_TURN, Loop
from zbroker.transport.sockets import Context, DealerSocket, RouterSocket


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_every_message_of_a_socket_is_taken_though_its_descriptor_tells_only_once(loop: Loop, tmp_path: Path) -> None:
    context = Context()
    router = RouterSocket(context, message_max_bytes=1 << 20)
    router.bind(f"ipc://{tmp_path}/a")
    dealer = DealerSocket(context, f"ipc://{tmp_path}/a", message_max_bytes=1 << 20)
    taken: list[bytes] = []
    loop.add_socket(router, lambda frames: taken.append(frames[1].bytes))
    sent = 10 * MESSAGES_A_TURN
    for number in range(sent):

        def is_sent(number: int = number) -> bool:
            return dealer.send([str(number).encode()]) or bool(loop.run_once(1) and False)

        wait_until(is_sent)
    wait_until(lambda: loop.run_once(10) == 0 and len(taken) == sent)
    assert taken == [str(number).encode() for number in range(sent)]
    loop.remove_socket(router)
    router.close()
    dealer.close()
    context.close()


def test_a_reader_is_called_and_one_removed_meanwhile_is_not(loop: Loop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    called: list[int] = []

    def call(own: int, other: int) -> None:
        called.append(own)
        loop.remove_reader(pipes[other][0])

    for own, other in ((0, 1), (1, 0)):
        loop.add_reader(pipes[own][0], lambda own=own, other=other: call(own, other))  # type: ignore[misc]  # bound now
        os.write(pipes[own][1], b"x")
    assert loop.run_once(1000) == 1
    assert len(called) == 1
    for fd in (fd for pipe in pipes for fd in pipe):
        os.close(fd)


def test_timers_fire_in_order_once_and_not_when_cancelled() -> None:
    clock = ManualClock()
    loop = Loop(clock)
    fired: list[str] = []
    loop.call_after(2, lambda: fired.append("second"))
    loop.call_after(1, lambda: fired.append("first"))
    loop.call_after(1, lambda: fired.append("never")).cancel()
    loop.run_once(0)
    assert fired == []
    clock.advance(2)
    loop.run_once(0)
    loop.run_once(0)
    assert fired == ["first", "second"]
    loop.close()


def test_a_timer_that_sets_itself_again_at_once_does_not_keep_the_loop() -> None:
    loop = Loop(ManualClock())
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        loop.call_after(0, again)

    loop.call_after(0, again)
    loop.run_once(0)
    assert len(calls) == 1
    loop.close()


def test_a_signal_is_handled_between_callbacks_and_its_handler_given_back(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    seen: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("signal"))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert seen == []
    wait_until(lambda: loop.run_once(10) and seen)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_hook_before_a_sleep_can_keep_the_loop_awake(loop: Loop) -> None:
    order: list[str] = []

    def before() -> bool:
        order.append("before")
        return False

    loop.before_sleep = before
    loop.after_sleep = lambda: order.append("after")
    loop.run_once(60_000)
    assert order == ["before", "after"]
