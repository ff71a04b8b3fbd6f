"""A router of its own for tests: the real role in a child process, and raw sockets that play clients and processes."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.conditions import wait_until
from zbroker import ids
from zbroker.config.paths import Paths, paths_for
from zbroker.config.schema import ServerConfig
from zbroker.errors import BrokerError, error_for
from zbroker.transport.sockets import Context, DealerSocket
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api, Header, pack_reply, pack_request, unpack_header
from zbroker.wire.messages import Hello, ProcessHello, ProcessWelcome, Welcome

PROGRAM = """
import resource, sys, msgspec
from zbroker.config.schema import ServerConfig
from zbroker.workers import guard, router
files_max = int(sys.argv[2])
if files_max:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
if len(sys.argv) > 3:
    guard.Bounds.__new__.__defaults__ = tuple(int(text) for text in sys.argv[3].split(","))
sys.exit(router.main(msgspec.json.decode(sys.argv[1], type=ServerConfig)))
"""


def wait_readable(fd: int, timeout_ms: int) -> bool:
    """Wait for input, on a descriptor of any number."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


class RouterProcess:
    """The router role with a directory of its own."""

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        files_max: int = 0,
        resident_bounds: Sequence[int] = (),
        directory: Path | None = None,
    ) -> None:
        """`resident_bounds`: the guard's stop, resume, reset and trim bytes, in place of its own."""
        self._owns_directory = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
        tree: dict[str, Any] = {section: dict(values) for section, values in (config or {}).items()}
        tree["broker"] = {"data_dir": str(self.directory / "data"), "run_dir": str(self.directory / "run")}
        self.config = msgspec.convert(tree, ServerConfig)
        self.paths: Paths = paths_for(self.config)
        self.log_path = self.directory / "log.txt"
        arguments = [msgspec.json.encode(self.config).decode(), str(files_max)]
        if resident_bounds:
            arguments.append(",".join(map(str, resident_bounds)))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def front(self) -> str:
        return f"ipc://{self.paths.front}"

    @property
    def back(self) -> str:
        return f"ipc://{self.paths.back}"

    def wait_until_listening(self) -> Self:
        wait_until(
            lambda: self.process.poll() is not None or ("listening" in self.log and self.paths.back.exists()),
            what="the router to listen",
        )
        assert self.process.poll() is None, self.log
        return self

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def file_count(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def sockets(self) -> set[str]:
        """Its sockets, by their numbers in the kernel."""
        files = Path(f"/proc/{self.process.pid}/fd")
        links = []
        for name in os.listdir(files):
            with contextlib.suppress(FileNotFoundError):  # it looks into a file now and then, and closes it
                links.append(os.readlink(files / name))
        return {link[8:-1] for link in links if link.startswith("socket:")}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self) -> Self:
        return self.wait_until_listening()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)


class Talker:
    """A DEALER with a context of its own, and requests with a deadline."""

    def __init__(self, endpoint: str, *, message_max_bytes: int = 1 << 20) -> None:
        self._context = Context()
        self.socket = DealerSocket(self._context, endpoint, message_max_bytes=message_max_bytes)
        self._correlation = 0

    def send(self, frames: Sequence[Any], *, timeout_s: float = 10) -> None:
        wait_until(lambda: self.socket.send(frames), what="room in the socket", timeout_s=timeout_s)

    def receive(self, *, timeout_s: float = 10) -> list[bytes]:
        found: list[bytes] = []

        def take() -> bool:
            message = self.socket.receive() if self.socket.has_input() else None
            if message is None:
                wait_readable(self.socket.fileno(), 10)
                return False
            found.extend(message)
            return True

        wait_until(take, what="a message", timeout_s=timeout_s)
        return found

    def request(self, api: int, target: int, body: bytes = b"", *, timeout_s: float = 10, **fields: int) -> list[bytes]:
        """Ask, and give the reply's frames; older replies are skipped. Raises the reply's error."""
        self._correlation += 1
        self.send([pack_request(api, self._correlation, target, **fields), body], timeout_s=timeout_s)
        while True:
            frames = self.receive(timeout_s=timeout_s)
            header = unpack_header(frames[0])
            if header.correlation == self._correlation:
                if header.error:
                    raise error_for(header.error, frames[1].decode())
                return frames

    def hello(self, *, timeout_s: float = 10) -> Welcome:
        body = encode(Hello("a test", 1, 1, "tests"))
        return decode(Welcome, self.request(Api.HELLO, ids.ROUTER, body, timeout_s=timeout_s)[1])

    def try_hello(self, timeout_s: float) -> bool:
        """Whether a hello is answered in time, with a welcome or an error."""
        try:
            self.hello(timeout_s=timeout_s)
        except BrokerError:
            return True
        except AssertionError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PlayedProcess(Talker):
    """A process of the broker as the router sees it, played by the test."""

    def __init__(self, router: RouterProcess, number: int, *, connection_number: int = 0) -> None:
        """`connection_number`: how many it has had before this one."""
        super().__init__(router.back, message_max_bytes=64 << 20)
        self.number = number
        self._connection_number = connection_number
        self.say_hello()
        frames = self.receive()
        assert unpack_header(frames[0]).error == 0, frames
        self.welcome = decode(ProcessWelcome, frames[1])

    def say_hello(self) -> None:
        hello = encode(ProcessHello(self.number, ids.own_incarnation()))
        self.send([b"", pack_request(Api.PROCESS_HELLO, self._connection_number, ids.ROUTER), hello])

    def take(self, *, timeout_s: float = 10) -> tuple[bytes, bytes, Header, list[bytes]]:
        """The next request: return address, peer, header, body."""
        frames = self.receive(timeout_s=timeout_s)
        return frames[0], frames[1], unpack_header(frames[2]), frames[3:]

    def answer(self, return_address: bytes, header: Header, *body: bytes, error: int = 0) -> None:
        self.send([return_address, pack_reply(header, error), *body])

    def echo(self, stop: threading.Event) -> None:
        """Answer requests with their own bodies until told to stop. For a thread that has this socket to itself."""
        while not stop.is_set():
            frames = self.socket.receive() if self.socket.has_input() else None
            if frames is None:
                wait_readable(self.socket.fileno(), 10)
            else:
                self.answer(frames[0], unpack_header(frames[2]), *frames[3:])


@contextlib.contextmanager
def echoing(process: PlayedProcess) -> Iterator[None]:
    """The process answers every request while the block runs."""
    stop = threading.Event()
    thread = threading.Thread(target=process.echo, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def raw_connect(path: Path, *, timeout_s: float = 5) -> socket.socket:
    """A bare stream connection to an ipc endpoint."""
    deadline = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
            continue
        return connection
