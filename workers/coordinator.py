"""The coordinator: keeps the metadata log, watches processes, grants partitions, answers for the broker as a whole.

What to do is decided by `core/cluster.py`; this process makes events of what happens, and does the effects in the order
given. It is on the path of no produce and no fetch: while it is away, both go on. When the disk is full, requests that
need the log are refused and the rest goes on; when nobody can know what the log holds, the process ends, and its
successor reads it.
"""

from __future__ import annotations

import base64
import logging
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from zbroker import ids
from zbroker.config.load import worker_count
from zbroker.config.schema import ServerConfig
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import Site
from zbroker.core.entries import MEMORY_DISK, Adopted, PartitionsAdded, TopicCreated, TopicDeleted
from zbroker.core.image import Image
from zbroker.errors import BrokerError, RequestTimedOutError
from zbroker.shm.board import board_path
from zbroker.shm.board_reader import find_boards
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.layout import WANTED_MAX, Counter
from zbroker.shm.lockfile import LockFile
from zbroker.shm.reaper import remove_board
from zbroker.storage.files import Files
from zbroker.wire.codec import decode, encode
from zbroker.wire.inner_messages import (
    Announce,
    Grant,
    Granted,
    GrantResult,
    Reconfigure,
    Revoke,
)
from zbroker.wire.layout import Api, pack_reply, unpack_header
from zbroker.workers import copy_folders
from zbroker.workers.beats import Beats
from zbroker.workers.coordinator_requests import Request, event_of
from zbroker.workers.groups import GroupsPart, is_for_groups
from zbroker.workers.link import RouterLink
from zbroker.workers.liveness import Liveness
from zbroker.workers.metadata_log import MetadataLog, MetadataLogFailed
from zbroker.workers.partition_counts import PartitionCounts
from zbroker.workers.runtime import Reload, Role, exit_code_of
from zbroker.workers.ticks import Ticks

ANNOUNCE_TIMEOUT_MS: Final = 200
GRANT_TIMEOUT_MS: Final = 5_000
CONTROL_TIMEOUT_MS: Final = 2_000
RETRY_MS: Final = 50
SYNC_DELAY_MS: Final = 5
SNAPSHOT_ENTRIES_MIN: Final = 10_000
OLD_COORDINATOR_BOARD_MS: Final = 2_000
CLUSTER_ID_BYTES: Final = 16
CELLS_MIN: Final = 16_384


class Coordinator:
    """See the module."""

    def __init__(self, role: Role, files: Files) -> None:
        config, paths = role.config, role.paths
        self._role = role
        self._files = files
        lock = LockFile.take(paths.data_lock)
        role.at_close(lambda: lock.release(unlink=False))
        self._log = MetadataLog.open(paths.metadata_dir, files)
        role.at_close(self._log.close)
        if self._log.cut_bytes:
            role.log.warning("the metadata log had a torn tail", extra={"cut_bytes": self._log.cut_bytes})
        image = Image.replayed(self._log.entries)
        self._log.entries = []
        cells = max(CELLS_MIN, 2 * image.partition_count())
        self._board = CoordinatorBoardWriter.create(paths.boards_dir, role.incarnation, cells=cells)
        role.at_close(lambda: self._board.close(unlink=True))
        role.use_board(self._board)
        site = Site(
            data_dir=str(paths.data_dir),
            memory_dir=str(paths.memory_dir),
            further_data_dirs=[str(path) for path in paths.further_data_dirs],
            board=str(board_path(paths.boards_dir, ids.COORDINATOR, role.incarnation)),
            incarnation=role.incarnation,
            partitions_max=cells,
            processes_max=WANTED_MAX,
            boards_dir=str(paths.boards_dir),
        )
        self._cluster = Cluster(config, site, worker_count(config), self._board.claim, image)
        self._counts = PartitionCounts(self._board, self._cluster)
        self._check_copies()
        self._events: deque[ev.Event] = deque()
        self._is_busy = False
        self._ticks = Ticks(role.loop, self._tick, self._is_calm)
        self._liveness = Liveness(role.loop, self._process_died)
        role.at_close(self._liveness.close)
        timeout_ms = config.coordinator.hang_timeout_ms
        self._beats = Beats(role.loop, role.clock, paths.boards_dir, self._liveness, timeout_ms, self._process_stuck)
        role.at_close(self._beats.close)
        self._snapshot_at = SNAPSHOT_ENTRIES_MIN
        self._is_ready = False
        self._is_sync_due = False
        self._has_new_topics = False
        self._groups = GroupsPart(role, files, image, self._board, lambda: self._link)
        self._link = RouterLink(
            role.loop,
            role.clock,
            f"ipc://{paths.back}",
            number=ids.COORDINATOR,
            incarnation=role.incarnation,
            message_max_bytes=config.limits.message_max_bytes,
            on_request=self._on_request,
            on_welcome=self._welcomed,
        )
        role.at_close(self._link.close)

    def _roots(self) -> list[Path]:
        state = self._cluster.state
        disks = dict.fromkeys([*state.site.disks, *state.image.disk_loads, MEMORY_DISK])
        return [Path(state.site.root_of(disk)) for disk in disks]

    def _check_copies(self) -> None:
        image, memory = self._cluster.image, self._role.paths.memory_dir
        roots = self._roots()
        kept = [root for root in roots if root != memory]
        copy_folders.check_known(kept, image.next_copy_id, self._role.paths.metadata_dir)
        removed = copy_folders.sweep(kept, image.copy_ids(), image.next_copy_id, self._files)
        # What lies in memory without a topic is worth nothing, whoever made it.
        removed += copy_folders.sweep([memory], image.copy_ids(), 1 << 63, self._files)
        for folder in removed:
            self._role.log.info("removed a deleted topic's copy", extra={"directory": folder})

    def run(self) -> None:
        """Serve until told to stop."""
        role = self._role
        boards = find_boards(role.paths.boards_dir)
        self._board.supersede_older(role.paths.boards_dir)
        cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(CLUSTER_ID_BYTES)).decode().rstrip("=")
        found = [(ids.process_number(name), incarnation) for name, incarnation, _ in boards]
        self._take(ev.Started(cluster_id, self._files.boot_id(), found))
        self._log.write_cluster_id(self._cluster.image.cluster_id)
        self._groups.start()
        role.set_running()
        self._beats.start()
        role.loop.call_after(OLD_COORDINATOR_BOARD_MS, self._remove_older_boards)
        role.run()
        self._log.sync()

    def _remove_older_boards(self) -> None:
        """Readers of the dead coordinators' boards have seen by now that there is a newer one."""
        for _, incarnation, _ in find_boards(self._role.paths.boards_dir, ids.process_name(ids.COORDINATOR)):
            remove_board(self._role.paths.boards_dir, ids.COORDINATOR, incarnation)

    def _take(self, event: ev.Event) -> None:
        """Have the cluster take an event, and every event that follows from doing what it wants."""
        if type(event) is not ev.Ticked:
            self._ticks.busy()
        self._events.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._events:
                for effect in self._cluster.handle(self._events.popleft(), self._role.clock.now_ns()):
                    _DO[type(effect)](self, effect)
        finally:
            self._is_busy = False
        if self._has_new_topics:
            self._has_new_topics = False
            self._groups.topics_changed()

    def _sync_log(self, _: do.SyncLog) -> None:
        """The sync waits until the grants of the same election have left, and more elections may share it."""
        if not self._is_sync_due:
            self._is_sync_due = True
            self._role.loop.call_after(SYNC_DELAY_MS, self._sync)

    def _sync(self) -> None:
        self._is_sync_due = False
        self._log.sync()
        self._take(ev.LogSynced())

    def _warn(self, effect: do.Warn) -> None:
        self._role.log.warning(effect.text, extra=effect.fields)

    def _is_calm(self) -> bool:
        """Whether every partition is led and nobody is in a group, so that no time is near at which to do something."""
        return not self._groups.has_groups and self._cluster.state.are_all_led()

    def _tick(self) -> None:
        self._log.sync()
        self._take(ev.Ticked())
        self._groups.tick()
        self._counts.tick()
        if self._log.entry_count > self._snapshot_at:
            snapshot = self._cluster.image.snapshot()
            self._snapshot_at = max(SNAPSHOT_ENTRIES_MIN, 2 * len(snapshot))
            if self._log.entry_count > self._snapshot_at:
                self._write_snapshot(snapshot)

    def _write_snapshot(self, snapshot: list[Any]) -> None:
        try:
            self._log.replace(snapshot)
        except BrokerError as error:
            self._snapshot_at = 2 * self._log.entry_count
            self._role.log.warning("the metadata log stays as long as it is", extra={"error": error})
        else:
            self._role.log.info("metadata log written anew", extra={"entries": len(snapshot)})

    def _on_request(self, frames: list[bytes]) -> None:
        header, body = unpack_header(frames[2]), frames[3] if len(frames) > 3 else b""
        self._board.count(Counter.REQUESTS)
        request = Request(frames[0], header)
        self._ticks.busy()
        try:
            if is_for_groups(header.api):
                self._groups.on_request(request, frames[1], body)
                return
            event = event_of(request, body)
        except BrokerError as error:
            self._reply(do.Reply(request, None, error.code, error.wire_text))
            return
        if isinstance(event, ev.ProcessRegistered):
            name = ids.process_name(event.register.number)
            self._role.log.info("registers", extra={"peer": name, "holding": len(event.register.holding)})
        self._take(event)

    def _append(self, effect: do.AppendEntries) -> None:
        for entry in effect.entries:
            self._has_new_topics |= isinstance(entry, TopicCreated | PartitionsAdded | TopicDeleted)
            if isinstance(entry, Adopted):
                name = ids.process_name(entry.owner)
                self._role.log.warning("adopts", extra={"peer": name, "copies": len(entry.copy_ids)})
        try:
            self._log.append(effect.entries, durable=effect.durable)
        except BrokerError as error:
            if self._role.once.allows("append", self._role.clock.now_ns()):
                self._role.log.error("the metadata log cannot be written", extra={"error": error})
            self._events.appendleft(ev.AppendFailed(error))
        else:
            self._events.appendleft(ev.EntriesAppended())

    def _send_announce(self, effect: do.SendAnnounce) -> None:
        body = Announce(self._role.incarnation)
        self._link.call(effect.number, Api.ANNOUNCE, body, lambda *_: None, timeout_ms=ANNOUNCE_TIMEOUT_MS)

    def _send_grant(self, effect: do.SendGrant) -> None:
        number, incarnation, grants = effect.number, effect.incarnation, effect.grants
        self._board.count(Counter.ELECTIONS, sum(grant.leader == number for grant in grants))

        def answered(error: BrokerError | None, body: bytes) -> None:
            if error is not None:
                self._take_late(error, ev.GrantAnswered(number, incarnation, grants, None))
                return
            results: list[GrantResult] = []
            try:
                results = decode(Granted, body).results
            except BrokerError as unreadable:
                self._role.log.error("an answer that cannot be read", extra={"error": unreadable})
            for result in results:
                if result.error:
                    where = {"topic_id": result.topic_id, "partition": result.partition, "error": result.message}
                    self._role.log.error("a partition cannot be opened", extra=where)
            self._take(ev.GrantAnswered(number, incarnation, grants, results))

        self._link.call(number, Api.GRANT, Grant(grants, incarnation), answered, timeout_ms=GRANT_TIMEOUT_MS)

    def _take_late(self, error: BrokerError, event: ev.Event) -> None:
        """Report what a process did not do. A router that does not know it says so at once: then a little later."""
        delay_ms = 0 if isinstance(error, RequestTimedOutError) else RETRY_MS
        self._role.loop.call_after(delay_ms, lambda: self._take(event))

    def _send_revoke(self, effect: do.SendRevoke) -> None:
        def answered(error: BrokerError | None, _: bytes) -> None:
            number, incarnation, revocations = effect.number, effect.incarnation, effect.revocations
            if error is None:
                self._take(ev.RevokeAnswered(number, incarnation, revocations, True))
            else:
                self._take_late(error, ev.RevokeAnswered(number, incarnation, revocations, False))

        self._link.call(effect.number, Api.REVOKE, Revoke(effect.revocations), answered, timeout_ms=CONTROL_TIMEOUT_MS)

    def _send_reconfigure(self, effect: do.SendReconfigure) -> None:
        def answered(error: BrokerError | None, _: bytes) -> None:
            number, incarnation, topic_id = effect.number, effect.incarnation, effect.topic_id
            if error is None:
                self._take(ev.ReconfigureAnswered(number, incarnation, topic_id, True))
            else:
                self._take_late(error, ev.ReconfigureAnswered(number, incarnation, topic_id, False))

        body = Reconfigure(effect.topic_id, effect.config)
        self._link.call(effect.number, Api.RECONFIGURE, body, answered, timeout_ms=CONTROL_TIMEOUT_MS)

    def _reply(self, effect: do.Reply) -> None:
        assert isinstance(effect.request, Request)
        if effect.error:
            self._board.count(Counter.ERRORS)
        body = effect.text.encode() if effect.error else encode(effect.body)
        self._link.send([effect.request.return_address, pack_reply(effect.request.header, effect.error), body])

    def _publish_leader(self, effect: do.PublishLeader) -> None:
        slot = self._board.claim(effect.topic_id, effect.partition)
        self._board.set_leader(slot, effect.leader_epoch, effect.number, effect.incarnation)

    def _forget_partition(self, effect: do.ForgetPartition) -> None:
        self._board.claim(effect.topic_id, effect.partition)
        self._board.free(effect.topic_id, effect.partition)

    def _delete_copy(self, effect: do.DeleteCopy) -> None:
        for root in self._roots():
            copy_folders.remove(root, effect.copy_id, self._files)

    def _remove_board(self, effect: do.RemoveBoard) -> None:
        remove_board(self._role.paths.boards_dir, effect.number, effect.incarnation)

    def _publish_wanted(self, effect: do.PublishWanted) -> None:
        self._board.set_wanted(effect.numbers)

    def _publish_ready(self, _: do.PublishReady) -> None:
        self._is_ready = True
        self._show_ready()

    def _welcomed(self) -> None:
        self._take(ev.Connected())
        self._show_ready()

    def _show_ready(self) -> None:
        """Ready is what a client can see: with partitions led, and a router that knows where the coordinator is."""
        if self._is_ready and self._link.is_welcome:
            self._board.set_ready()
            self._role.log.info("ready")

    def _watch_process(self, effect: do.WatchProcess) -> None:
        if not self._liveness.watch(effect.number, effect.incarnation):
            self._events.append(ev.ProcessDied(effect.number, effect.incarnation))

    def _process_died(self, number: int, incarnation: int) -> None:
        self._board.count(Counter.DEATHS_SEEN)
        self._counts.look_again()
        # A process that ends in order takes its board with it.
        is_in_order = not board_path(self._role.paths.boards_dir, number, incarnation).exists()
        level, how = (logging.INFO, " in order") if is_in_order else (logging.WARNING, "")
        self._role.log.log(level, "a process has ended%s", how, extra={"peer": ids.process_name(number)})
        self._take(ev.ProcessDied(number, incarnation))

    def _process_stuck(self, number: int, incarnation: int) -> None:
        self._take(ev.ProcessStuck(number, incarnation))

    def _fence_process(self, effect: do.FenceProcess) -> None:
        self._liveness.kill(effect.incarnation)


_DO: Final[dict[type[do.Effect], Callable[[Coordinator, Any], None]]] = {
    do.AppendEntries: Coordinator._append,
    do.SyncLog: Coordinator._sync_log,
    do.Warn: Coordinator._warn,
    do.WatchProcess: Coordinator._watch_process,
    do.FenceProcess: Coordinator._fence_process,
    do.SendAnnounce: Coordinator._send_announce,
    do.SendGrant: Coordinator._send_grant,
    do.SendRevoke: Coordinator._send_revoke,
    do.SendReconfigure: Coordinator._send_reconfigure,
    do.Reply: Coordinator._reply,
    do.PublishLeader: Coordinator._publish_leader,
    do.ForgetPartition: Coordinator._forget_partition,
    do.DeleteCopy: Coordinator._delete_copy,
    do.RemoveBoard: Coordinator._remove_board,
    do.PublishWanted: Coordinator._publish_wanted,
    do.PublishReady: Coordinator._publish_ready,
}


def main(config: ServerConfig, *, reload: Reload | None = None) -> int:
    """Run the coordinator until SIGTERM. Returns the exit code."""

    def run() -> None:
        with Role.start(config, ids.COORDINATOR, reload=reload) as role:
            Coordinator(role, Files()).run()

    return exit_code_of(run)


__all__ = ["Coordinator", "MetadataLogFailed", "main"]
