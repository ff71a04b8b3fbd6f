"""A real worker process under a router and coordinator that the test plays itself, and a client of its lanes.

The script holds the router's back socket: it welcomes the worker, takes its registration, and asks it things. So a test
says in which order everything happens, which the real processes leave to chance.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from zbroker import ids
from zbroker.config.paths import make_directories, paths_for
from zbroker.config.schema import ServerConfig
from zbroker.errors import error_for
from zbroker.record.batch import batches_in, check_batch
from zbroker.record.columns import encode_columns
from zbroker.record.view import RecordBatch
from zbroker.shm import layout
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.shm.doorbell import Bell, Doorbell, Sleeper
from zbroker.shm.handover import open_lane
from zbroker.shm.lane import ring_bytes_for
from zbroker.transport.sockets import Context, RouterSocket
from zbroker.wire.codec import decode, encode
from zbroker.wire.inner_messages import Grant, Granted, PartitionGrant, Register, Registered
from zbroker.wire.layout import (
    FLAG_FIRST,
    PEER,
    PRODUCED,
    REPLY,
    WAITED,
    Api,
    Header,
    pack_reply,
    pack_request,
    unpack_header,
)
from zbroker.wire.messages import (
    FetchPartition,
    FetchRequest,
    LaneOffer,
    Message,
    OpenLane,
    ProcessHello,
    ProcessWelcome,
)

M = TypeVar("M", bound=Message)
WORKER = ids.worker_number(0)
RETURN_ADDRESS = b"fclient"
DEADLINE_S = 20.0

PROGRAM = """
import sys, msgspec
from zbroker.config.schema import ServerConfig
from zbroker.workers.partition import main
sys.exit(main(msgspec.json.decode(sys.argv[1], type=ServerConfig), int(sys.argv[2])))
"""


def batch_of(values: Sequence[bytes], timestamp_ms: int | None = None) -> bytes:
    """A complete batch of these values. Their time is now: retention would take what is older."""
    if timestamp_ms is None:
        timestamp_ms = time.time_ns() // 1_000_000
    return bytes(encode_columns(list(values), timestamp_ms=timestamp_ms))


class Answer:
    """A reply: its header and what came after."""

    def __init__(self, header: Header, body: list[bytes]) -> None:
        self.header = header
        self.body = body

    @property
    def error(self) -> int:
        return self.header.error

    def as_(self, kind: type[M]) -> M:
        """The body, decoded; raises the error in its place."""
        return decode(kind, self.checked()[0])

    def checked(self) -> list[bytes]:
        if self.error:
            raise error_for(self.error, self.body[0].decode())
        return self.body

    def produced(self) -> tuple[int, int, int]:
        """(base offset, append time, log start)."""
        base_offset, append_time_ms, log_start = PRODUCED.unpack(self.checked()[0])
        return base_offset, append_time_ms, log_start


def fetch_body(
    offset: int, *, max_wait_ms: int = 0, min_bytes: int = 1, max_bytes: int = 1 << 20, **where: int
) -> bytes:
    """A FETCH of one partition."""
    one = FetchPartition(where.get("topic_id", 1), where.get("partition", 0), offset, max_bytes)
    return encode(FetchRequest(max_wait_ms, min_bytes, max_bytes, [one]))


def values_of(answer: Answer) -> list[bytes]:
    """The values of a fetch's batches, each batch checked."""
    body = answer.checked()[1]
    found: list[bytes] = []
    for position, header in batches_in(body):
        view = memoryview(body)[position : position + header.size_bytes]
        assert check_batch(view, size_bytes_max=1 << 20, records_max=10_000)
        found += [bytes(value) for value in RecordBatch("topic-1", 0, view).values()]
    return found


class ScriptedWorker:
    """A worker process and the script's end of its connection. A context manager: `with` starts it."""

    def __init__(
        self, config: dict[str, Any] | None = None, *, directory: Path | None = None, program: str = PROGRAM
    ) -> None:
        """`program` is what the process runs, for tests that put faults into it."""
        self._program = program
        self.router_incarnation = ids.own_incarnation()
        self.hello_count = 0
        self.register_error = 0
        self.are_elections_durable = False
        self._is_temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
        tree = {"broker": {"data_dir": f"{self.directory}/data", "run_dir": f"{self.directory}/run"}, **(config or {})}
        self.config = msgspec.convert(tree, ServerConfig)
        self.paths = paths_for(self.config)
        os.umask(0o077)
        make_directories(self.paths)
        self.process: subprocess.Popen[bytes] | None = None
        self.registered: Register | None = None
        self._routing_id = b""
        self._correlation = 0
        self._answers: dict[int, Answer] = {}
        self._context = Context()
        self.open_router()

    def open_router(self) -> None:
        self._router = RouterSocket(self._context, message_max_bytes=self.config.limits.message_max_bytes)
        self.paths.back.unlink(missing_ok=True)
        self._router.bind(f"ipc://{self.paths.back}")

    def close_router(self) -> None:
        self._router.close()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What the process wrote to stderr."""
        return (self.directory / "log.txt").read_text()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._router.close()
        self._context.close()
        if self._is_temporary:
            shutil.rmtree(self.directory)

    def start(self, *, limits: str = "") -> None:
        """Start the process and answer its registration. `limits`: shell words before the program, such as ulimit."""
        settings = msgspec.json.encode(self.config).decode()
        command = [sys.executable, "-c", self._program, settings, "0"]
        if limits:
            command = ["/bin/sh", "-c", f'{limits}; exec "$@"', "sh", *command]
        with (self.directory / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        self.registered = None
        self.pump_until(lambda: self.registered is not None)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def board(self) -> BoardReader:
        """The board of the process that runs now."""
        found = [
            path
            for _, incarnation, path in find_boards(self.paths.boards_dir, "worker-0")
            if incarnation & 0x3FFFFF == self.pid
        ]
        return BoardReader.open(found[0])

    def pump_until(self, condition: Any, timeout_s: float = DEADLINE_S) -> None:
        """Play the router until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing came within {timeout_s} s; log:\n{self.log}"
            assert self.process is None or self.process.poll() is None, f"the worker ended:\n{self.log}"
            message = self._router.receive()
            if message is None:
                select.select([self._router.fileno()], [], [], 0.005)
                continue
            self._take([frame.bytes for frame in message])

    def _take(self, frames: list[bytes]) -> None:
        routing_id, return_address, raw, *body = frames
        header = unpack_header(raw)
        if header.kind == REPLY:
            assert return_address == RETURN_ADDRESS
            self._answers[header.correlation] = Answer(header, body)
        elif header.api == Api.PROCESS_HELLO:
            assert decode(ProcessHello, body[0]).number == WORKER
            self._routing_id = routing_id
            self.hello_count += 1
            self._send([routing_id, pack_reply(header), encode(ProcessWelcome(self.router_incarnation))])
        elif header.api == Api.REGISTER:
            self.registered = decode(Register, body[0])
            if self.register_error:
                self._send([routing_id, pack_reply(header, self.register_error), b"refused by the test"])
            else:
                registered = Registered("test", ids.own_incarnation(), self.are_elections_durable)
                self._send([routing_id, pack_reply(header), encode(registered)])

    def _send(self, frames: list[bytes]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self._router.send(frames):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def ask(self, api: Api, *body: bytes, uid: int | None = None, **header: Any) -> int:
        """Send a request as the router would; returns its correlation."""
        self._correlation += 1
        peer = PEER.pack(os.getuid() if uid is None else uid, 0, os.getpid())
        raw = pack_request(api, self._correlation, WORKER, **header)
        self._send([self._routing_id, RETURN_ADDRESS, peer, raw, *body])
        return self._correlation

    def answer(self, correlation: int, timeout_s: float = DEADLINE_S) -> Answer:
        """Wait for the reply to a request."""
        self.pump_until(lambda: correlation in self._answers, timeout_s)
        return self._answers.pop(correlation)

    def has_answer(self, correlation: int) -> bool:
        """Whether a reply has come. They come in order: an answer to a later request ends the doubt."""
        return correlation in self._answers

    def call(self, api: Api, *body: bytes, uid: int | None = None, **header: Any) -> Answer:
        """Ask and wait."""
        return self.answer(self.ask(api, *body, uid=uid, **header))

    def copy_directory(self, topic_id: int, partition: int) -> Path:
        """Where the copies that `grant` grants lie."""
        return self.paths.copies_dirs[0] / "1" / ids.partition_directory_name(topic_id, partition)

    def grant(
        self, topic_id: int = 1, partition: int = 0, *, epoch: int = 1, config: dict[str, str] | None = None
    ) -> Granted:
        """Let the worker lead a partition."""
        grant = PartitionGrant(
            topic_id=topic_id,
            partition=partition,
            topic=f"topic-{topic_id}",
            copy_id=1,
            directory=str(self.copy_directory(topic_id, partition)),
            leader_epoch=epoch,
            coordinator_cell=0,
            config=config or {},
        )
        return self.call(Api.GRANT, encode(Grant([grant]))).as_(Granted)

    def produce(self, values: Sequence[bytes], *, topic_id: int = 1, partition: int = 0, **header: Any) -> Answer:
        header.setdefault("acks", 1)
        header.setdefault("flags", FLAG_FIRST)
        return self.call(Api.PRODUCE, batch_of(values), topic_id=topic_id, partition=partition, **header)

    def lane(self, *, message_bytes: int = 1 << 20) -> LaneClient:
        """Open a lane."""
        ring_bytes = ring_bytes_for(message_bytes)
        offer = self.call(Api.OPEN_LANE, encode(OpenLane(ring_bytes, ring_bytes))).as_(LaneOffer)
        return LaneClient(offer, self)


class LaneClient:
    """A client's side of a lane, in the test's own process."""

    def __init__(self, offer: LaneOffer, worker: ScriptedWorker) -> None:
        self.doorbell = Doorbell()
        self.lane, self._bell_fd = open_lane(Path(offer.socket), offer.token, self.doorbell.write_fd)
        self._board = BoardReader.open(Path(offer.board))
        self.bell = Bell(self._bell_fd, self.lane.number, self._board.words, layout.H_SLEEP_SEQ)
        self.sleeper = Sleeper(self.lane.words, layout.L_CLIENT_SLEEP_SEQ)
        self._worker = worker
        self._correlation = 0

    def send(self, api: Api, *body: bytes, **header: Any) -> int:
        """Write a request and ring; returns its correlation."""
        self._correlation += 1
        raw = pack_request(api, self._correlation, WORKER, **header)
        deadline = time.monotonic() + DEADLINE_S
        while not self.lane.requests.try_write((raw, *body)):
            assert time.monotonic() < deadline, "the worker does not read its lane"
            time.sleep(0)
        self.bell.ring_if_asleep()
        return self._correlation

    def receive(self, timeout_s: float = DEADLINE_S) -> Answer | None:
        """The next reply, sleeping for it as a client does; None when none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.try_receive()
            if found is not None:
                return found
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self.sleeper.prepare()
            if not self.lane.replies.readable():
                select.select([self.doorbell], [], [], min(0.1, left_s))
            self.sleeper.awake()
            self.doorbell.drain()

    def try_receive(self) -> Answer | None:
        frames = self.lane.replies.take()
        if frames is None:
            return None
        return Answer(unpack_header(frames[0]), [bytes(frame) for frame in frames[1:]])

    def call(self, api: Api, *body: bytes, **header: Any) -> Answer:
        """Send and wait for exactly this reply."""
        correlation = self.send(api, *body, **header)
        found = self.receive()
        assert found is not None, f"no reply; log:\n{self._worker.log}"
        assert found.header.correlation == correlation
        return found

    def produce(self, values: Sequence[bytes], *, topic_id: int = 1, partition: int = 0, **header: Any) -> Answer:
        header.setdefault("acks", 1)
        header.setdefault("flags", FLAG_FIRST)
        return self.call(Api.PRODUCE, batch_of(values), topic_id=topic_id, partition=partition, **header)

    def wait_for(
        self, offset: int, *, topic_id: int = 1, partition: int = 0, timeout_ms: int = 60_000, flags: int = 0
    ) -> int:
        """Send a WAIT. By itself it ends later than `receive` waits: an answer to it says that something has come."""
        body = WAITED.pack(topic_id, partition, offset)
        return self.send(Api.WAIT, body, timeout_ms=timeout_ms, flags=flags)

    def close(self) -> None:
        self.lane.close()
        self._board.close()
        os.close(self._bell_fd)
        self.doorbell.close()
