"""Consumer groups in the coordinator's process: requests, deaths and time as events; replies, slots and the log.

What to do is decided by `core/groups.py`; here it is done. Members' processes are watched by pidfd, so that what a dead
one had is read by another within milliseconds. Only a process that the kernel names as the sender, on the same host, of
the same uid and in the same pid namespace, is believed to be local; all others commit by message.

What members have stored is appended to the log of offsets twice a second, and synced in a thread of its own: a commit
survives every process at once, and a power cut after that time.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core import effects as do
from zbroker.core import group_events as ev
from zbroker.core.cluster_events import Event
from zbroker.core.groups import Groups
from zbroker.core.image import Image
from zbroker.errors import BrokerError, InvalidRequestError
from zbroker.shm.board import HeaderWriter
from zbroker.storage.files import Files
from zbroker.storage.flush import FlushJob
from zbroker.wire.codec import decode, encode
from zbroker.wire.group_messages import (
    AlterGroupOffsets,
    DeleteGroups,
    DescribeGroups,
    GroupAssign,
    GroupHeartbeat,
    GroupLeave,
    ListGroups,
    OffsetCommit,
    OffsetFetch,
    RemoveGroupMembers,
)
from zbroker.wire.layout import PEER, Api, pack_reply
from zbroker.wire.messages import Message
from zbroker.workers.coordinator_requests import Request
from zbroker.workers.disk_thread import DiskThread, IoClock
from zbroker.workers.group_watch import GroupWatch
from zbroker.workers.link import RouterLink
from zbroker.workers.liveness import Liveness
from zbroker.workers.offset_log import OffsetLog
from zbroker.workers.runtime import Role
from zbroker.workers.slot_files import SlotFiles

DISK_THREAD_END_S: Final = 10.0
MEMBER: Final = -1  # no process number: Liveness gives it back unread

_BODIES: Final[dict[int, type[Message]]] = {
    Api.GROUP_LEAVE: GroupLeave,
    Api.GROUP_ASSIGN: GroupAssign,
    Api.OFFSET_COMMIT: OffsetCommit,
    Api.OFFSET_FETCH: OffsetFetch,
    Api.LIST_GROUPS: ListGroups,
    Api.DESCRIBE_GROUPS: DescribeGroups,
    Api.DELETE_GROUPS: DeleteGroups,
    Api.ALTER_GROUP_OFFSETS: AlterGroupOffsets,
    Api.REMOVE_GROUP_MEMBERS: RemoveGroupMembers,
}


def is_for_groups(api: int) -> bool:
    """Whether `GroupsPart` answers requests of this kind."""
    return api == Api.GROUP_HEARTBEAT or api in _BODIES


class GroupsPart:
    """See the module."""

    def __init__(self, role: Role, files: Files, image: Image, board: HeaderWriter, link: Callable[[], RouterLink]):
        """Reads the log of offsets and attaches the members' files. Raises CopyDamagedError, StorageError."""
        self._role = role
        self._link = link
        self._log = logging.getLogger(__name__)
        self._offset_log = OffsetLog.open(role.paths.offsets_dir, files, role.clock)
        role.at_close(self._offset_log.close)
        self._disk = DiskThread(role.loop, IoClock(role.clock, board.io_begin, board.io_end), "offsets")
        role.at_close(lambda: self._end_disk_thread())
        self._slots = SlotFiles(role.paths.groups_dir, role.incarnation)
        role.at_close(self._slots.close_all)
        self._offsets = self._offset_log.replay()
        self._groups = Groups(role.config, image, self._slots, self._offsets)
        self._stand_still = GroupWatch(role, self._groups, self._slots)
        self._liveness = Liveness(role.loop, lambda _, incarnation: self._process_died(incarnation))
        role.at_close(self._liveness.close)
        self._events: deque[Event] = deque()
        self._is_busy = False
        self._sync_ns = 0

    def start(self) -> None:
        """Go on with the members of the coordinator of before."""
        found = self._slots.found()
        if found:
            self._log.info("members of groups are still here", extra={"members": len(found)})
        self._take(ev.GroupsStarted(found, self._role.clock.wall_ms()))

    def on_request(self, request: Request, peer: bytes, body: bytes) -> None:
        """Take a request of those that `is_for_groups` names. Raises InvalidRequestError for a body that is none."""
        api = request.header.api
        if api == Api.GROUP_HEARTBEAT:
            heartbeat = decode(GroupHeartbeat, body)
            self._take(ev.HeartbeatCame(request, heartbeat, _proven(heartbeat.incarnation, peer)))
            return
        if api not in _BODIES:
            raise InvalidRequestError(f"groups do not answer api {api}")
        self._take(ev.GroupAsked(request, decode(_BODIES[api], body), self._role.clock.wall_ms()))

    @property
    def has_groups(self) -> bool:
        """Whether there is a group, whose members' times have to be looked at often."""
        return bool(self._groups.groups)

    def topics_changed(self) -> None:
        """There are other topics, or more partitions."""
        self._take(ev.TopicsChanged())

    def tick(self) -> None:
        """Time went on."""
        self._take(ev.GroupsTicked(self._role.clock.wall_ms()))
        self._stand_still.tick()
        now_ns = self._role.clock.now_ns()
        if now_ns < self._sync_ns:
            return
        self._sync_ns = now_ns + self._role.config.groups.commit_interval_ms * NS_PER_MS
        job = None if self._disk.pending_count else self._offset_log.begin_flush()
        if job is not None:
            self._disk.submit(job.run, lambda _, error: self._synced(job, error))
        elif not self._disk.pending_count:
            self._tidy()

    def _synced(self, job: FlushJob, error: BaseException | None) -> None:
        if error is not None:
            raise error
        self._offset_log.finish_flush(job)

    def _tidy(self) -> None:
        self._offset_log.unlink_deleted()
        try:
            if self._offset_log.compact_if_due(self._offsets):
                self._log.info("log of offsets written anew", extra={"offsets": self._offsets.count()})
        except BrokerError as error:
            if self._role.once.allows("offsets", self._role.clock.now_ns()):
                self._log.warning("the log of offsets stays as long as it is", extra={"error": error})

    def _end_disk_thread(self) -> None:
        self._disk.close(timeout_s=DISK_THREAD_END_S)

    def _process_died(self, incarnation: int) -> None:
        self._take(ev.MemberProcessDied(incarnation))

    def _take(self, event: Event) -> None:
        """Have the groups take an event, and every event that follows from doing what they want."""
        self._events.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._events:
                for effect in self._groups.handle(self._events.popleft(), self._role.clock.now_ns()):
                    _DO[type(effect)](self, effect)
        finally:
            self._is_busy = False

    def _append(self, effect: ev.AppendOffsets) -> None:
        try:
            self._offset_log.append(effect.entries, durable=effect.durable)
        except BrokerError as error:
            if self._role.once.allows("commit", self._role.clock.now_ns()):
                self._log.error("the log of offsets cannot be written", extra={"error": error})
            self._events.appendleft(ev.OffsetsAppendFailed(error))
        else:
            self._events.appendleft(ev.OffsetsAppended())

    def _reply(self, effect: do.Reply) -> None:
        assert isinstance(effect.request, Request)
        body = effect.text.encode() if effect.error else encode(effect.body)
        self._link().send([effect.request.return_address, pack_reply(effect.request.header, effect.error), body])

    def _watch(self, effect: ev.WatchMemberProcess) -> None:
        if not self._liveness.watch(MEMBER, effect.incarnation):
            self._events.append(ev.MemberProcessDied(effect.incarnation))

    def _warn(self, effect: do.Warn) -> None:
        self._log.warning(effect.text, extra=effect.fields)


def _proven(incarnation: int, peer: bytes) -> int:
    """The incarnation, where the kernel says that it sent the message and that it can map this user's files; else 0."""
    uid, _, pid = PEER.unpack(peer)
    if uid != os.getuid() or pid != ids.pid_of(incarnation) or not ids.is_alive(incarnation):
        return 0
    return incarnation


_DO: Final[dict[type[do.Effect], Callable[[GroupsPart, Any], None]]] = {
    ev.AppendOffsets: GroupsPart._append,
    do.Reply: GroupsPart._reply,
    ev.WatchMemberProcess: GroupsPart._watch,
    do.Warn: GroupsPart._warn,
}
