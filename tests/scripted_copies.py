"""Several real worker processes that copy each other, under a router and coordinator that the test plays itself.

So a test decides who leads, when a grant comes, what the coordinator answers to an ISR change, and when it says
nothing. `Copies` keeps one partition's facts as the metadata log would, and grants them to the processes.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.conditions import wait_until_stopped
from tests.scripted_worker import DEADLINE_S, RETURN_ADDRESS, Answer, batch_of
from zbroker import ids
from zbroker.config.paths import make_directories, paths_for
from zbroker.config.schema import ServerConfig
from zbroker.errors import InvalidUpdateVersionError, NotLeaderForPartitionError
from zbroker.record.batch import batches_in, check_batch
from zbroker.record.layout import BatchHeader
from zbroker.shm.board import PartitionView
from zbroker.shm.board_reader import BoardReader, find_boards
from zbroker.storage.layout import LOG, parse_segment_name
from zbroker.transport.sockets import Context, RouterSocket
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import PartitionState, PartitionStateRequest, PartitionStates
from zbroker.wire.inner_messages import (
    AlterIsr,
    CopyPlace,
    CopySuspect,
    Grant,
    Granted,
    GrantResult,
    IsrAltered,
    PartitionGrant,
    Register,
    Registered,
)
from zbroker.wire.layout import FLAG_FIRST, PEER, REPLY, Api, Header, pack_reply, pack_request, unpack_header
from zbroker.wire.messages import DeleteRecords, Done, ProcessHello, ProcessWelcome

TOPIC_ID = 1
PROGRAM = """
import sys, msgspec
from zbroker.config.schema import ServerConfig
from zbroker.workers.partition import main
sys.exit(main(msgspec.json.decode(sys.argv[1], type=ServerConfig), int(sys.argv[2])))
"""


class Copies:
    """`count` workers, each with a copy of one partition. A context manager. Copy ids are 1, 2, ... in their order."""

    def __init__(
        self,
        count: int = 2,
        *,
        config: dict[str, Any] | None = None,
        topic: dict[str, str] | None = None,
        program: str = PROGRAM,
    ) -> None:
        self._program = program
        self.topic = topic or {}
        self.directory = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
        tree = {"broker": {"data_dir": f"{self.directory}/data", "run_dir": f"{self.directory}/run"}, **(config or {})}
        self.config = msgspec.convert(tree, ServerConfig)
        self.paths = paths_for(self.config)
        os.umask(0o077)
        make_directories(self.paths)
        self.numbers = [ids.worker_number(index) for index in range(count)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.registered: dict[int, Register] = {}
        self.suspects: list[CopySuspect] = []
        self.isr_asked: list[AlterIsr] = []
        self.answers_isr = True
        self.answers_suspect = True
        self.leader = self.numbers[0]
        self.epoch = 0
        self.isr = [index + 1 for index in range(count)]
        self.partition_epoch = 0
        self.predecessor = -1
        self.predecessor_board = ""
        self.wrong_directory_of: set[int] = set()
        self._routing: dict[int, bytes] = {}
        self._answers: dict[int, Answer] = {}
        self._correlation = 0
        self._router_incarnation = ids.own_incarnation()
        self._context = Context()
        self._router = RouterSocket(self._context, message_max_bytes=self.config.limits.message_max_bytes)
        self._router.bind(f"ipc://{self.paths.back}")

    def __enter__(self) -> Self:
        try:
            for number in self.numbers:
                self.spawn(number)
            self.pump_until(lambda: len(self.registered) == len(self.numbers))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        self._router.close()
        self._context.close()
        shutil.rmtree(self.directory)

    @property
    def log(self) -> str:
        """What the processes wrote to stderr."""
        return (self.directory / "log.txt").read_text()

    # --- processes ---------------------------------------------------------------------------------------------------

    def spawn(self, number: int) -> None:
        """Start a process; `registered` shows when it is there."""
        self.registered.pop(number, None)
        self._routing.pop(number, None)
        index = self.numbers.index(number)
        settings = msgspec.json.encode(self.config).decode()
        with (self.directory / "log.txt").open("ab") as log:
            command = [sys.executable, "-c", self._program, settings, str(index)]
            self.processes[number] = subprocess.Popen(command, stderr=log)

    def start(self, number: int) -> None:
        """Start a process and wait until it has registered."""
        self.spawn(number)
        self.pump_until(lambda: number in self.registered)

    def kill(self, number: int) -> None:
        """SIGKILL, and wait for the end."""
        self.processes[number].kill()
        self.processes[number].wait()
        del self.registered[number]

    def stop(self, number: int) -> int:
        """SIGTERM; the exit code."""
        self.processes[number].send_signal(signal.SIGTERM)
        return self.processes[number].wait(DEADLINE_S)

    def signal(self, number: int, signal_number: int) -> None:
        """Send a signal; after SIGSTOP the process stands still."""
        self.processes[number].send_signal(signal_number)
        if signal_number == signal.SIGSTOP:
            wait_until_stopped(self.processes[number].pid)

    # --- the router --------------------------------------------------------------------------------------------------

    def pump_until(self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
        """Play router and coordinator until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing came within {timeout_s} s; log:\n{self.log}"
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
            return
        if header.api == Api.PROCESS_HELLO:
            self._routing[decode(ProcessHello, body[0]).number] = routing_id
            self._send([routing_id, pack_reply(header), encode(ProcessWelcome(self._router_incarnation))])
        elif header.api == Api.REGISTER:
            register = decode(Register, body[0])
            self.registered[register.number] = register
            self._send([routing_id, pack_reply(header), encode(Registered("test", ids.own_incarnation()))])
        elif header.api == Api.ALTER_ISR:
            self._alter_isr(routing_id, header, decode(AlterIsr, body[0]))
        elif header.api == Api.COPY_SUSPECT:
            self.suspects.append(decode(CopySuspect, body[0]))
            if self.answers_suspect:
                suspect = self.suspects[-1].copy_id
                if suspect in self.isr and len(self.isr) > 1:
                    self.isr = [copy_id for copy_id in self.isr if copy_id != suspect]
                    self.partition_epoch += 1
                self._send([routing_id, pack_reply(header), encode(Done())])

    def _alter_isr(self, routing_id: bytes, header: Header, asked: AlterIsr) -> None:
        self.isr_asked.append(asked)
        if not self.answers_isr:
            return
        if asked.partition_epoch != self.partition_epoch or asked.leader_epoch != self.epoch:
            self._send([routing_id, pack_reply(header, InvalidUpdateVersionError.code), b"another version"])
            return
        self.isr = list(asked.isr)
        self.partition_epoch += 1
        self._send([routing_id, pack_reply(header), encode(IsrAltered(self.partition_epoch, self.isr, []))])

    def _send(self, frames: list[bytes]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self._router.send(frames):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def ask(self, number: int, api: Api, *body: bytes, **header: Any) -> int:
        """Send a request to a process as the router would; returns its correlation."""
        self._correlation += 1
        peer = PEER.pack(os.getuid(), 0, os.getpid())
        header.setdefault("timeout_ms", 20_000)
        raw = pack_request(api, self._correlation, number, **header)
        self._send([self._routing[number], RETURN_ADDRESS, peer, raw, *body])
        return self._correlation

    def answer(self, correlation: int, timeout_s: float = DEADLINE_S) -> Answer:
        """Wait for the reply to a request."""
        self.pump_until(lambda: correlation in self._answers, timeout_s)
        return self._answers.pop(correlation)

    def has_answer(self, correlation: int) -> bool:
        """Whether a reply has come. Those of one process come in order: an answer to a later request ends the doubt."""
        return correlation in self._answers

    # --- the coordinator ---------------------------------------------------------------------------------------------

    def copy_of(self, number: int) -> int:
        """The copy id that a process has."""
        return self.numbers.index(number) + 1

    def copy_directory(self, number: int) -> Path:
        """Where a process's copy lies."""
        return self.paths.copies_dirs[0] / str(self.copy_of(number)) / ids.partition_directory_name(TOPIC_ID, 0)

    def ask_grant(self, number: int, *, is_unclean: bool = False) -> int:
        """Send a process what holds now."""
        places = tuple(
            CopyPlace(
                self.copy_of(one),
                one,
                "/nowhere" if one in self.wrong_directory_of else str(self.copy_directory(one)),
            )
            for one in self.numbers
        )
        registered = self.registered.get(self.leader)
        grant = PartitionGrant(
            topic_id=TOPIC_ID,
            partition=0,
            topic="copied",
            copy_id=self.copy_of(number),
            directory=str(self.copy_directory(number)),
            leader_epoch=self.epoch,
            coordinator_cell=0,
            config=self.topic,
            leader=self.leader,
            leader_incarnation=0 if registered is None else registered.incarnation,
            copies=places,
            isr=tuple(self.isr),
            partition_epoch=self.partition_epoch,
            predecessor=self.predecessor,
            predecessor_board=self.predecessor_board,
            is_unclean=is_unclean,
        )
        return self.ask(number, Api.GRANT, encode(Grant([grant])))

    def grant(self, number: int, **options: Any) -> GrantResult:
        """Grant, and wait for the result."""
        return self.answer(self.ask_grant(number, **options)).as_(Granted).results[0]

    def elect(self, leader: int, *, isr: Sequence[int] | None = None, **options: Any) -> GrantResult:
        """A new epoch with this leader: granted to it, then to all others that are up."""
        if self.epoch:
            self.predecessor = self.copy_of(self.leader)
            self.predecessor_board = str(self.board_path(self.leader))
        self.leader = leader
        self.epoch += 1
        self.partition_epoch += 1
        if isr is not None:
            self.isr = list(isr)
        result = self.grant(leader, **options)
        assert result.error == 0, result
        for number in self.numbers:
            if number != leader and number in self.registered:
                assert self.grant(number).error == 0
        return result

    def give_news(self) -> None:
        """Tell the leader the present ISR."""
        assert self.grant(self.leader).error == 0

    # --- what clients ask, and what can be seen ----------------------------------------------------------------------

    def ask_produce(self, values: Sequence[bytes], *, acks: int = -1, number: int | None = None) -> int:
        to = self.leader if number is None else number
        return self.ask(to, Api.PRODUCE, batch_of(values), topic_id=TOPIC_ID, partition=0, acks=acks, flags=FLAG_FIRST)

    def produce(self, values: Sequence[bytes], *, acks: int = -1, number: int | None = None) -> Answer:
        return self.answer(self.ask_produce(values, acks=acks, number=number))

    def delete_before(self, offset: int) -> None:
        """DELETE_RECORDS at the leader."""
        body = encode(DeleteRecords(offset))
        self.answer(self.ask(self.leader, Api.DELETE_RECORDS, body, topic_id=TOPIC_ID, partition=0)).checked()

    def board_path(self, number: int) -> Path:
        name = ids.process_name(number)
        pid = self.processes[number].pid
        found = [path for _, one, path in find_boards(self.paths.boards_dir, name) if ids.pid_of(one) == pid]
        return found[0]

    def view(self, number: int) -> PartitionView | None:
        """The partition's cell on the board of a process."""
        board = BoardReader.open(self.board_path(number))
        try:
            cell = board.partition_cell(TOPIC_ID, 0)
            return None if cell is None else cell.view()
        finally:
            board.close()

    def log_end(self, number: int) -> int:
        view = self.view(number)
        return -1 if view is None else view.log_end

    def high_watermark(self, number: int) -> int:
        view = self.view(number)
        return -1 if view is None else view.high_watermark

    def state(self) -> PartitionState:
        """PARTITION_STATE of the leader."""
        body = encode(PartitionStateRequest([(TOPIC_ID, 0)]))
        answer = self.answer(self.ask(self.leader, Api.PARTITION_STATE, body))
        found = answer.as_(PartitionStates).partitions[0]
        assert found.error in (0, NotLeaderForPartitionError.code)
        return found

    def wait_in_sync(self, count: int, timeout_s: float = DEADLINE_S) -> None:
        """Until the ISR has so many copies, and all of them have everything."""
        self.pump_until(lambda: len(self.isr) == count, timeout_s)
        self.wait_equal([number for number in self.numbers if self.copy_of(number) in self.isr], timeout_s)

    def wait_equal(self, numbers: Sequence[int] | None = None, timeout_s: float = DEADLINE_S) -> None:
        """Until these have the same log end and high watermark."""
        whose = self.numbers if numbers is None else numbers

        def are_equal() -> bool:
            views = [self.view(number) for number in whose]
            ends = {None if view is None else (view.log_end, view.high_watermark) for view in views}
            return (
                len(ends) == 1
                and None not in ends
                and {view.log_end == view.high_watermark for view in views if view} == {True}
            )

        self.pump_until(are_equal, timeout_s)

    def batches(self, number: int) -> list[tuple[BatchHeader, bytes]]:
        """Every batch in the files of a copy, each checked."""
        return batches_of(self.copy_directory(number))


def batches_of(directory: Path) -> list[tuple[BatchHeader, bytes]]:
    """Every batch of a copy's segment files, in their order, each checked."""
    found = []
    names = [(parsed[0], path) for path in directory.iterdir() if (parsed := parse_segment_name(path.name))]
    for _, path in sorted(entry for entry in names if entry[1].suffix == LOG):
        data = path.read_bytes()
        for position, header in batches_in(data):
            batch = data[position : position + header.size_bytes]
            check_batch(batch, size_bytes_max=16 << 20, records_max=1 << 20)
            found.append((header, batch))
    return found
