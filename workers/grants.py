"""Opening and closing copies, as the coordinator says: nothing is opened without a grant, recovery included.

Guarantees: a grant is answered when every copy in it is open and published, or has its error; at most one copy is
opened in a turn of the loop, so that opening many does not hold up those that are led already. The same grant again is
the same as once: it waits for an opening that is due. A revocation is answered when the files are closed, and gone if
they were to be deleted. After a failed opening nothing is held, and the grant may come again.
"""

from __future__ import annotations

import logging
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from zbroker import ids
from zbroker.config.schema import ServerConfig, TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import State
from zbroker.errors import (
    BrokerError,
    FencedLeaderEpochError,
    InvalidConfigurationError,
    StaleIncarnationError,
)
from zbroker.storage.files import Files
from zbroker.storage.handles import Handles
from zbroker.storage.log import Log
from zbroker.transport.loop import Loop
from zbroker.wire.codec import decode, encode
from zbroker.wire.inner_messages import (
    Grant,
    Granted,
    GrantResult,
    Held,
    PartitionGrant,
    Reconfigure,
    Revocation,
    Revoke,
)
from zbroker.wire.messages import Done
from zbroker.workers.disk_thread import IoClock
from zbroker.workers.host import Host
from zbroker.workers.leader import Leader
from zbroker.workers.request import Request

_log = logging.getLogger(__name__)

Key = tuple[int, int]
OnResult = Callable[[GrantResult], None]


def topic_config(settings: dict[str, str]) -> TopicConfig:
    """A topic's settings from texts under their names, with '.' or '_'. Raises InvalidConfigurationError."""
    try:
        return msgspec.convert({k.replace(".", "_"): v for k, v in settings.items()}, TopicConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidConfigurationError(str(error)) from error


class Grants:
    """The partitions that this process leads, and those it is about to. `leaders` is what others look into."""

    def __init__(self, host: Host, loop: Loop, io_clock: IoClock, config: ServerConfig, files: Files) -> None:
        self._host = host
        self._incarnation = ids.own_incarnation()
        self._loop = loop
        self._io_clock = io_clock
        self._disk_free_min_bytes = config.storage.disk_free_min_bytes
        self._files = files
        # Half of what the process may open: lanes, sockets and directories' locks need descriptors too.
        descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._handles = Handles(files, max(2, min(config.limits.open_segments_max, descriptors_max // 2)))
        self.leaders: dict[Key, Leader] = {}
        self._opening: dict[Key, list[tuple[PartitionGrant, OnResult]]] = {}
        self._revoke_when_open: dict[Key, list[tuple[Revocation, Callable[[], None]]]] = {}
        self._to_open: deque[Key] = deque()

    def holding(self) -> list[Held]:
        """What this process leads, for the coordinator."""
        return [
            Held(topic_id=key[0], partition=key[1], copy_id=leader.copy_id, leader_epoch=leader.leader_epoch)
            for key, leader in self.leaders.items()
        ]

    def grant(self, request: Request) -> None:
        """GRANT: open the copies, then answer."""
        wanted = decode(Grant, request.body[0])
        if wanted.incarnation not in (0, self._incarnation):
            raise StaleIncarnationError("the grant is for the process that was here before")
        results: dict[Key, GrantResult] = {}

        def take(result: GrantResult) -> None:
            results[result.topic_id, result.partition] = result
            if len(results) == len({(one.topic_id, one.partition) for one in wanted.grants}):
                ordered = [results[one.topic_id, one.partition] for one in wanted.grants]
                request.reply(encode(Granted(ordered)))

        if not wanted.grants:
            request.reply(encode(Granted([])))
        for one in wanted.grants:
            self._lead(one, take)

    def revoke(self, request: Request) -> None:
        """REVOKE: close the copies, delete those that are to go, then answer."""
        wanted = decode(Revoke, request.body[0])
        missing = len(wanted.partitions)

        def closed() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                request.reply(encode(Done()))

        if not wanted.partitions:
            request.reply(encode(Done()))
        for one in wanted.partitions:
            self._give_up(one, closed)

    def reconfigure(self, request: Request) -> None:
        """RECONFIGURE: every partition of the topic takes the settings over."""
        wanted = decode(Reconfigure, request.body[0])
        config = topic_config(wanted.config)
        for (topic_id, _), leader in self.leaders.items():
            if topic_id == wanted.topic_id:
                leader.reconfigure(config)
        request.reply(encode(Done()))

    def close(self, deadline_ns: int) -> None:
        """Close every copy, each with its clean mark as long as there is time: without one the next start reads it."""
        for leader in self.leaders.values():
            try:
                leader.close(clean=self._host.clock.now_ns() < deadline_ns)
            except BrokerError as error:
                where = {"topic": leader.topic, "partition": leader.partition, "error": error}
                _log.error("not closed in order", extra=where)
        self.leaders.clear()

    def _lead(self, grant: PartitionGrant, on_result: OnResult) -> None:
        key = (grant.topic_id, grant.partition)
        if key in self._opening:
            self._opening[key].append((grant, on_result))
            return
        leader = self.leaders.get(key)
        if leader is not None and leader.state is State.OFFLINE:
            # Its files failed. A new grant opens the copy afresh: what is on the disk decides, not what was in memory.
            del self.leaders[key]
            leader.revoke()
            leader.log.close(clean=False)
            leader = None
        if leader is not None:
            on_result(self._renew(leader, grant))
            return
        self._opening[key] = [(grant, on_result)]
        self._to_open.append(key)
        if len(self._to_open) == 1:
            self._loop.call_after(0, self._open_next)

    def _open_next(self) -> None:
        key = self._to_open.popleft()
        if self._to_open:
            self._loop.call_after(0, self._open_next)
        waiting = self._opening.pop(key)
        grant = max((one for one, _ in waiting), key=lambda one: one.leader_epoch)
        self._io_clock.enter(id(self))
        try:
            leader = self._open(grant)
        except BrokerError as error:
            where = {"topic": grant.topic, "partition": grant.partition, "error": error}
            _log.error("cannot be led", extra=where)
            for one, on_result in waiting:
                on_result(_failure(one, error))
        else:
            self.leaders[key] = leader
            for one, on_result in waiting:
                on_result(_success(one, leader))
        finally:
            self._io_clock.leave(id(self))
        for revocation, on_closed in self._revoke_when_open.pop(key, []):
            self._give_up(revocation, on_closed)

    def _open(self, grant: PartitionGrant) -> Leader:
        config = topic_config(grant.config)
        log = Log.open(
            Path(grant.directory),
            config,
            self._files,
            self._host.clock,
            leader_epoch_hint=grant.leader_epoch,
            handles=self._handles,
            disk_free_min_bytes=self._disk_free_min_bytes,
        )
        try:
            return Leader(self._host, grant, log, config)
        except BaseException:
            log.close(clean=False)
            raise

    def _renew(self, leader: Leader, grant: PartitionGrant) -> GrantResult:
        if grant.leader_epoch < leader.leader_epoch:
            error = FencedLeaderEpochError(f"epoch {grant.leader_epoch} after {leader.leader_epoch}")
            return _failure(grant, error)
        leader.handle(ev.EpochRaised(grant.leader_epoch))
        return _success(grant, leader)

    def _give_up(self, revocation: Revocation, on_closed: Callable[[], None]) -> None:
        key = (revocation.topic_id, revocation.partition)
        if key in self._opening:
            self._revoke_when_open.setdefault(key, []).append((revocation, on_closed))
            return
        leader = self.leaders.pop(key, None)
        if leader is None:
            on_closed()
            return

        leader.revoke()
        if revocation.delete or leader.log.failure is not None:
            self._end(leader, on_closed, delete=revocation.delete)
            return
        try:
            job = leader.log.begin_flush()
        except BrokerError:
            self._end(leader, on_closed, delete=False)
            return

        def synced(_: Any, error: BaseException | None) -> None:
            if error is None:
                leader.log.finish_flush(job)
            self._end(leader, on_closed, delete=False)

        self._host.disk.submit(job.run, synced)

    def _end(self, leader: Leader, on_closed: Callable[[], None], *, delete: bool) -> None:
        log = leader.log
        self._io_clock.enter(id(self))
        try:
            if delete:
                log.delete()
            else:
                if log.failure is None:
                    log.save_high_watermark(leader.high_watermark)
                log.close(clean=log.failure is None)
        except BrokerError as error:
            where = {"topic": leader.topic, "partition": leader.partition, "error": error}
            _log.error("not closed in order", extra=where)
        finally:
            self._io_clock.leave(id(self))
        on_closed()


def _failure(grant: PartitionGrant, error: BrokerError) -> GrantResult:
    return GrantResult(grant.topic_id, grant.partition, error.code, error.message, -1, -1)


def _success(grant: PartitionGrant, leader: Leader) -> GrantResult:
    log = leader.log
    return GrantResult(grant.topic_id, grant.partition, 0, "", log.log_start, log.log_end)
