"""The router asked to end: what it still delivers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import termios
from array import array

from tests.conditions import wait_until, wait_until_stopped
from tests.router_process import PlayedProcess, RouterProcess, Talker
from zbroker import ids
from zbroker.wire.layout import Api, pack_request, unpack_header

WORKER = ids.worker_number(0)


def unread_by_the_other_side() -> int:
    """Bytes that this process has written to its sockets and that nobody has read."""
    sizes = array("i")
    for name in os.listdir("/proc/self/fd"):
        size = array("i", [0])
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                fcntl.ioctl(int(name), termios.TIOCOUTQ, size)
        sizes += size
    return sum(sizes)


def test_what_is_under_way_at_a_stop_is_delivered() -> None:
    with RouterProcess() as router, PlayedProcess(router, WORKER) as worker, Talker(router.front) as client:
        count = 50
        for number in range(count):
            client.send([pack_request(Api.PRODUCE, number, WORKER), bytes(1_000)])
        asked = [worker.take() for _ in range(count)]
        router.process.send_signal(signal.SIGSTOP)
        wait_until_stopped(router.process.pid)
        for address, _, header, body in asked:
            worker.answer(address, header, *body)
        wait_until(lambda: unread_by_the_other_side() >= count * 1_000, what="answers in the kernel")
        router.process.send_signal(signal.SIGTERM)
        router.process.send_signal(signal.SIGCONT)
        answers = [unpack_header(client.receive()[0]).correlation for _ in range(count)]
        assert answers == list(range(count))
        assert router.process.wait(20) == 0
        assert not router.paths.front.exists()
        assert not router.paths.back.exists()
        assert not list(router.paths.boards_dir.iterdir())
