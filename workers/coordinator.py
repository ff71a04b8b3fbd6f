"""The coordinator: keeps the metadata log, watches processes, grants partitions, answers for the broker as a whole.

What to do is decided by core/cluster.py and core/topic_requests.py; this process does it, effect by effect, in the
order given: the metadata log first, then boards, grants and replies. It is on the path of no produce and no fetch:
while it is away, both go on. When its log cannot be written it ends: what it decided must not be acted upon, and its
successor knows only what was written.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from zbroker import ids
from zbroker.config.load import worker_count
from zbroker.config.schema import ServerConfig
from zbroker.core import effects as effect
from zbroker.core.cluster import Cluster
from zbroker.core.entries import ClusterCreated
from zbroker.core.topic_requests import Places, TopicRequests
from zbroker.errors import BrokerError, InvalidRequestError
from zbroker.shm.board_reader import find_boards
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.layout import Counter
from zbroker.shm.lockfile import LockFile
from zbroker.shm.reaper import remove_board
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import Api, Header, pack_reply, unpack_header
from zbroker.wire.messages import (
    AlterConfigs,
    Announce,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    Grant,
    Granted,
    MetadataRequest,
    Reconfigure,
    Register,
    Registered,
    Revoke,
)
from zbroker.workers.link import RouterLink
from zbroker.workers.metadata_log import MetadataLog
from zbroker.workers.runtime import Reload, Role, exit_code_of

TICK_MS: Final = 100
ANNOUNCE_INTERVAL_MS: Final = 200
GRANT_TIMEOUT_MS: Final = 5_000
CONTROL_TIMEOUT_MS: Final = 2_000
REQUEST_TIMEOUT_DEFAULT_MS: Final = 30_000
SNAPSHOT_ENTRIES: Final = 10_000
DEAD_BOARD_MS: Final = 5_000
CLUSTER_ID_BYTES: Final = 16
BOARD_HEADROOM_CELLS: Final = 16_384


class MetadataLogFailed(RuntimeError):  # noqa: N818 - ends the process, and is no error that a caller handles
    """The metadata log could not be written."""


class _Request(NamedTuple):
    return_address: bytes
    header: Header


class Coordinator:
    """See the module."""

    def __init__(self, role: Role) -> None:
        config, paths = role.config, role.paths
        self._role = role
        lock = LockFile.take(paths.data_lock)
        role.at_close(lambda: lock.release(unlink=False))
        self._log = MetadataLog.open(paths.metadata_dir)
        role.at_close(self._log.close)
        self._board = CoordinatorBoardWriter.create(paths.boards_dir, role.incarnation, cells=BOARD_HEADROOM_CELLS)
        role.at_close(lambda: self._board.close(unlink=True))
        role.use_board(self._board)
        self._cluster = Cluster(config, worker_count(config))
        copies_dirs = [str(path) for path in paths.copies_dirs]
        places = Places(copies_dirs, str(paths.memory_dir), str(paths.data_dir), str(self._board.path))
        self._requests = TopicRequests(self._cluster, places)
        self._pidfds: dict[int, tuple[int, int]] = {}  # process number -> (pidfd, incarnation)
        self._unsynced = False
        self._is_ready = False
        self._link = RouterLink(
            role.loop,
            role.clock,
            f"ipc://{paths.back}",
            number=ids.COORDINATOR,
            incarnation=role.incarnation,
            message_max_bytes=config.limits.message_max_bytes,
            on_request=self._on_request,
            on_welcome=self._show_ready,
        )
        role.at_close(self._link.close)
        self._replay()
        role.at_close(self._close_pidfds)

    def _replay(self) -> None:
        if self._log.cut_bytes:
            self._role.log.warning("the metadata log had a torn tail", extra={"cut_bytes": self._log.cut_bytes})
        image = self._cluster.image
        for entry in self._log.entries:
            image.apply(entry)
        self._log.entries = []
        if not image.cluster_id:
            cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(CLUSTER_ID_BYTES)).decode().rstrip("=")
            self._do([self._cluster.record([ClusterCreated(cluster_id)], durable=True)])
        self._log.write_cluster_id(image.cluster_id)
        self._sweep_copies()
        self._board.supersede_older(self._role.paths.boards_dir)
        for partition in image.partitions():
            self._cluster.cells[partition.key] = self._board.claim(*partition.key)
        self._do(self._cluster.start(self._role.clock.now_ns()))

    def _sweep_copies(self) -> None:
        """Remove copies of topics that were deleted while nobody had them open."""
        known = self._cluster.image.copy_ids()
        for root in (*self._role.paths.copies_dirs, self._role.paths.memory_dir):
            for path in root.iterdir() if root.is_dir() else ():
                if path.name.isdigit() and int(path.name) not in known:
                    self._role.log.info("removing a deleted topic's copy", extra={"directory": path})
                    shutil.rmtree(path, ignore_errors=True)

    def _remove_empty_copies(self) -> None:
        """Remove the directories around copies that their workers have deleted."""
        known = self._cluster.image.copy_ids()
        for root in (*self._role.paths.copies_dirs, self._role.paths.memory_dir):
            for name in os.listdir(root) if root.is_dir() else ():
                if name.isdigit() and int(name) not in known:
                    try:
                        (root / name).rmdir()
                    except OSError:
                        pass  # not empty: another worker has not answered yet

    def run(self) -> None:
        """Serve until told to stop."""
        self._role.set_running()
        self._role.loop.call_every(TICK_MS, self._tick)
        self._announce()
        self._role.run()
        self._log.sync()

    def _announce(self) -> None:
        """Ask the processes that were there before this coordinator to register with it."""
        waiting = False
        for name, incarnation, _ in find_boards(self._role.paths.boards_dir):
            number = ids.process_number(name)
            known = self._cluster.processes.get(number)
            if number in (ids.COORDINATOR, ids.ROUTER) or (known is not None and known.incarnation == incarnation):
                continue
            if ids.is_alive(incarnation):
                waiting = True
                body = Announce(self._role.incarnation)
                self._link.call(number, Api.ANNOUNCE, body, lambda *_: None, timeout_ms=ANNOUNCE_INTERVAL_MS)
        if waiting:
            self._role.loop.call_after(ANNOUNCE_INTERVAL_MS, self._announce)

    def _tick(self) -> None:
        now_ns = self._role.clock.now_ns()
        if self._unsynced:
            self._log.sync()
            self._unsynced = False
        self._do(self._cluster.tick(now_ns))
        self._do(self._requests.answer_waiting(now_ns))
        if self._log.entry_count > SNAPSHOT_ENTRIES:
            snapshot = self._cluster.image.snapshot()
            if len(snapshot) < self._log.entry_count // 2:
                self._log.replace(snapshot)
                self._role.log.info("metadata log written anew", extra={"entries": len(snapshot)})

    def _on_request(self, frames: list[bytes]) -> None:
        return_address, body = frames[0], frames[3] if len(frames) > 3 else b""
        header = unpack_header(frames[2])
        self._board.count(Counter.REQUESTS)
        request = _Request(return_address, header)
        try:
            self._do(self._handle(request, body))
        except BrokerError as error:
            self._board.count(Counter.ERRORS)
            self._link.send([return_address, pack_reply(header, error.code), error.message.encode()])
        self._do(self._requests.answer_waiting(self._role.clock.now_ns()))

    def _handle(self, request: _Request, body: bytes) -> list[effect.Effect]:
        now_ns = self._role.clock.now_ns()
        timeout_ms = request.header.timeout_ms or REQUEST_TIMEOUT_DEFAULT_MS
        requests = self._requests
        match request.header.api:
            case Api.METADATA:
                return requests.metadata(request, decode(MetadataRequest, body), now_ns, timeout_ms)
            case Api.CREATE_TOPICS:
                return requests.create_topics(request, decode(CreateTopics, body), now_ns, timeout_ms)
            case Api.DELETE_TOPICS:
                return requests.delete_topics(request, decode(DeleteTopics, body))
            case Api.CREATE_PARTITIONS:
                return requests.create_partitions(request, decode(CreatePartitions, body), now_ns, timeout_ms)
            case Api.ALTER_CONFIGS:
                return requests.alter_configs(request, decode(AlterConfigs, body))
            case Api.DESCRIBE_CONFIGS:
                return requests.describe_configs(request, decode(DescribeConfigs, body).name)
            case Api.DESCRIBE_CLUSTER:
                return requests.describe_cluster(request)
            case Api.REGISTER:
                return self._register(request, decode(Register, body), now_ns)
        raise InvalidRequestError(f"the coordinator does not answer api {request.header.api}")

    def _register(self, request: _Request, register: Register, now_ns: int) -> list[effect.Effect]:
        if not ids.is_alive(register.incarnation):
            return []
        known = self._cluster.processes.get(register.number)
        if known is None or known.incarnation != register.incarnation:
            name = ids.process_name(register.number)
            self._role.log.info("registered", extra={"peer": name, "holding": len(register.holding)})
        answer = effect.Reply(request, Registered(self._cluster.image.cluster_id, self._role.incarnation))
        return [answer, *self._cluster.registered(register, now_ns)]

    def _do(self, effects: list[effect.Effect]) -> None:
        for found in effects:
            _DO[type(found)](self, found)

    def _append(self, found: effect.AppendEntries) -> None:
        try:
            self._log.append(found.entries, durable=found.durable)
        except BrokerError as error:
            raise MetadataLogFailed(str(error)) from error
        self._unsynced = self._unsynced or not found.durable

    def _send_grant(self, found: effect.SendGrant) -> None:
        for grant in found.grants:
            key = (grant.topic_id, grant.partition)
            if key not in self._cluster.cells:
                self._cluster.cells[key] = self._board.claim(*key)
        self._board.count(Counter.ELECTIONS, len(found.grants))
        grants = [self._with_cell(grant) for grant in found.grants]

        def answered(error: BrokerError | None, body: bytes) -> None:
            results = None if error is not None else decode(Granted, body).results
            if error is not None:
                self._role.log.warning("a grant was not answered", extra={"error": error})
            now_ns = self._role.clock.now_ns()
            self._do(self._cluster.grant_answered(found.number, found.incarnation, grants, results, now_ns))
            self._do(self._requests.answer_waiting(now_ns))

        self._link.call(found.number, Api.GRANT, Grant(grants), answered, timeout_ms=GRANT_TIMEOUT_MS)

    def _with_cell(self, grant: Any) -> Any:
        partition = self._cluster.image.partition(grant.topic_id, grant.partition)
        return self._cluster.grant_of(partition) if partition is not None else grant

    def _send_revoke(self, found: effect.SendRevoke) -> None:
        incarnation = self._incarnation_of(found.number)

        def answered(error: BrokerError | None, _: bytes) -> None:
            if error is None:
                self._remove_empty_copies()
            elif incarnation and self._incarnation_of(found.number) == incarnation:
                self._send_revoke(found)

        self._link.call(found.number, Api.REVOKE, Revoke(found.revocations), answered, timeout_ms=CONTROL_TIMEOUT_MS)

    def _send_reconfigure(self, found: effect.SendReconfigure) -> None:
        incarnation = self._incarnation_of(found.number)

        def answered(error: BrokerError | None, _: bytes) -> None:
            if error is not None and incarnation and self._incarnation_of(found.number) == incarnation:
                self._send_reconfigure(found)

        body = Reconfigure(found.topic_id, found.config)
        self._link.call(found.number, Api.RECONFIGURE, body, answered, timeout_ms=CONTROL_TIMEOUT_MS)

    def _incarnation_of(self, number: int) -> int:
        process = self._cluster.processes.get(number)
        return process.incarnation if process is not None and process.alive else 0

    def _reply(self, found: effect.Reply) -> None:
        assert isinstance(found.request, _Request)
        body = found.text.encode() if found.error else encode(found.body)
        self._link.send([found.request.return_address, pack_reply(found.request.header, found.error), body])

    def _publish_leader(self, found: effect.PublishLeader) -> None:
        slot = self._board.claim(found.topic_id, found.partition)
        self._cluster.cells[found.topic_id, found.partition] = slot
        self._board.set_leader(slot, found.leader_epoch, found.number, found.incarnation)

    def _forget_partition(self, found: effect.ForgetPartition) -> None:
        self._cluster.cells.pop((found.topic_id, found.partition), None)
        self._board.claim(found.topic_id, found.partition)
        self._board.free(found.topic_id, found.partition)

    def _delete_files(self, found: effect.DeleteFiles) -> None:
        shutil.rmtree(Path(found.directory).parent, ignore_errors=True)

    def _publish_wanted(self, found: effect.PublishWanted) -> None:
        self._board.set_wanted(found.numbers)

    def _publish_ready(self, _: effect.PublishReady) -> None:
        self._is_ready = True
        self._show_ready()

    def _show_ready(self) -> None:
        """Ready is what a client can see: with partitions led, and a router that knows where the coordinator is."""
        if self._is_ready and self._link.is_welcome:
            self._board.set_ready()
            self._role.log.info("ready")

    def _watch_process(self, found: effect.WatchProcess) -> None:
        self._unwatch(found.number)
        fd = ids.open_pidfd(found.incarnation)
        if fd is None:
            self._role.loop.call_after(0, lambda: self._process_died(found.number, found.incarnation))
            return
        self._pidfds[found.number] = (fd, found.incarnation)
        self._role.loop.add_reader(fd, lambda: self._process_died(found.number, found.incarnation))

    def _process_died(self, number: int, incarnation: int) -> None:
        watched = self._pidfds.get(number)
        if watched is not None and watched[1] == incarnation:
            self._unwatch(number)
        self._board.count(Counter.DEATHS_SEEN)
        self._role.log.warning("a process has ended", extra={"peer": ids.process_name(number)})
        self._do(self._cluster.died(number, incarnation, self._role.clock.now_ns()))
        # Readers of the dead board need it until its successors have published; who has it mapped keeps it anyhow.
        self._role.loop.call_after(DEAD_BOARD_MS, lambda: self._remove_board(number, incarnation))

    def _remove_board(self, number: int, incarnation: int) -> None:
        remove_board(self._role.paths.boards_dir, number, incarnation)

    def _unwatch(self, number: int) -> None:
        watched = self._pidfds.pop(number, None)
        if watched is not None:
            self._role.loop.remove_reader(watched[0])
            os.close(watched[0])

    def _close_pidfds(self) -> None:
        for number in list(self._pidfds):
            self._unwatch(number)


_DO: Final[dict[type[effect.Effect], Callable[[Coordinator, Any], None]]] = {
    effect.AppendEntries: Coordinator._append,
    effect.SendGrant: Coordinator._send_grant,
    effect.SendRevoke: Coordinator._send_revoke,
    effect.SendReconfigure: Coordinator._send_reconfigure,
    effect.Reply: Coordinator._reply,
    effect.PublishLeader: Coordinator._publish_leader,
    effect.ForgetPartition: Coordinator._forget_partition,
    effect.DeleteFiles: Coordinator._delete_files,
    effect.PublishWanted: Coordinator._publish_wanted,
    effect.PublishReady: Coordinator._publish_ready,
    effect.WatchProcess: Coordinator._watch_process,
}


def main(config: ServerConfig, *, reload: Reload | None = None) -> int:
    """Run the coordinator until SIGTERM. Returns the exit code."""

    def run() -> None:
        with Role.start(config, ids.COORDINATOR, reload=reload) as role:
            Coordinator(role).run()

    return exit_code_of(run)
