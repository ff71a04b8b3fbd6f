"""A whole broker in a thread of the test, reached by messages: for what a real one does only by bad luck.

It has one topic, "t", judges producers by the core's own rules, appends to lists, and answers as `refuse` and `drops`
say. It follows the protocol, not the code of the workers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from zbroker import ids
from zbroker.core.dedup import Sequences
from zbroker.errors import WrongExpectedOffsetError
from zbroker.record.batch import check_batch
from zbroker.record.columns import Columns
from zbroker.record.layout import BatchHeader
from zbroker.transport.sockets import Context, RouterSocket
from zbroker.wire.codec import decode, encode
from zbroker.wire.copy_messages import InitProducerId, ProduceOptions, ProducerId
from zbroker.wire.layout import FLAG_FIRST, PRODUCED, Api, Header, pack_reply, unpack_header
from zbroker.wire.messages import MetadataReply, PartitionInfo, ProcessInfo, TopicInfo, Welcome

TOPIC_ID = 1
WORKER = ids.worker_number(0)


class ScriptedPartition:
    """One partition's log and what is known of its producers."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []
        self.known = Sequences(expiration_ms=1 << 40, window_ms=1 << 40, window_entries_max=1_000)

    def forget_producers(self) -> None:
        """As after a log whose every batch was deleted."""
        self.known = Sequences(expiration_ms=1 << 40, window_ms=1 << 40, window_entries_max=1_000)


class ScriptedBroker:
    """See the module. All callables run in its thread."""

    def __init__(self, partitions: int = 1) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm"))
        self.address = f"ipc://{self.run_dir}"
        self.partitions = [ScriptedPartition() for _ in range(partitions)]
        self.refuse: Callable[[Header, BatchHeader], int] = lambda header, batch: 0
        """The error that a batch gets that is no repeat."""
        self.drops: Callable[[Header], bool] = lambda header: False
        """Whether an answer to a produce request gets lost."""
        self.init_error = 0
        self.init_count = 0
        self.produced: list[tuple[Header, BatchHeader]] = []
        self.epochs: dict[str, int] = {}
        self.ids_given = 0
        self.errors: list[Exception] = []
        self._context = Context()
        self._socket = RouterSocket(self._context, message_max_bytes=8 << 20)
        self._socket.bind(f"ipc://{self.run_dir}/front.sock")
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> ScriptedBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._socket.close()
        self._context.close()
        shutil.rmtree(self.run_dir)
        assert not self.errors, self.errors

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            message = self._socket.receive()
            if not message:
                self._is_stopping.wait(0.0005)
                continue
            try:
                header = unpack_header(message[1].buffer)
                found = self._answer(header, [bytes(frame.buffer) for frame in message[2:]])
                if found is not None:
                    self._socket.send([message[0].bytes, pack_reply(header, found[0]), found[1]])
            except Exception as error:
                self.errors.append(error)
                raise

    def _answer(self, header: Header, body: Sequence[bytes]) -> tuple[int, bytes] | None:
        if header.api == Api.HELLO:
            welcome = Welcome(
                1, "id", "test", str(self.run_dir), "", ids.own_incarnation(), os.getuid(), False, 8 << 20
            )
            return 0, encode(welcome)
        if header.api == Api.METADATA:
            return 0, encode(self._metadata())
        if header.api == Api.INIT_PRODUCER_ID:
            self.init_count += 1
            return self.init_error, b"not now" if self.init_error else encode(self._producer_id(body[0]))
        assert header.api == Api.PRODUCE, header
        found = self._produce(header, body)
        return None if self.drops(header) else found

    def _metadata(self) -> MetadataReply:
        own = ids.own_incarnation()
        partitions = [
            PartitionInfo(number, WORKER, 1, own, [WORKER], [WORKER], [], "", 0)
            for number in range(len(self.partitions))
        ]
        processes = [ProcessInfo(WORKER, "worker-0", own, "", "", "")]
        return MetadataReply(1, "id", "", processes, [TopicInfo("t", TOPIC_ID, 0, {}, partitions)])

    def _producer_id(self, body: bytes) -> ProducerId:
        name = decode(InitProducerId, body).transactional_id
        if name:
            self.epochs[name] = self.epochs.get(name, -1) + 1
            return ProducerId(50 + list(self.epochs).index(name), self.epochs[name])
        self.ids_given += 1
        return ProducerId(1_000 + self.ids_given, 0)

    def _produce(self, header: Header, body: Sequence[bytes]) -> tuple[int, bytes]:
        partition = self.partitions[header.partition]
        view = memoryview(body[0])
        batch = check_batch(view, size_bytes_max=8 << 20, records_max=10_000)
        self.produced.append((header, batch))
        judged = partition.known.judge(batch) if batch.producer_id >= 0 else None
        if isinstance(judged, tuple):
            return 0, PRODUCED.pack(judged[0], -1, 0)
        error = self.refuse(header, batch) or (0 if judged is None else judged.code)
        if not error and len(body) > 1:
            expected = decode(ProduceOptions, body[1]).expected_offset
            error = WrongExpectedOffsetError.code if expected not in (-1, len(partition.values)) else 0
        if error:
            return error, b"as the test wants"
        offset = len(partition.values)
        partition.values += Columns(view, batch).values()
        if batch.producer_id >= 0:
            partition.known.note(batch, offset, 1)
        return 0, PRODUCED.pack(offset, -1, 0)


def was_alone(header: Header) -> bool:
    """Whether a produce request says that nothing else of its partition was on its way."""
    return bool(header.flags & FLAG_FIRST)
