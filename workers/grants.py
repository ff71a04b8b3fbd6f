"""Opening and closing copies, and making them lead or follow, as the coordinator says: nothing is opened without a
grant, recovery included.

Guarantees: a grant is answered when every copy in it is open and published, or has its error; at most one copy is
opened or changed in a turn of the loop, so that many do not hold up those that are led already. The same grant again is
the same as once: it waits for an opening that is due. A revocation is answered when the files are closed, and gone if
they were to be deleted. After a failed opening nothing is held, and the grant may come again.

A copy that begins to lead has taken over the tail of the leader before it from that one's files, and its high watermark
is not below the last that readers saw. One that ends to lead has answered everybody who waited before it follows. The
log stays open over both. A copy with damage is not opened to lead: it is set aside, and fetched again from the leader.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from zbroker.config.schema import ServerConfig, TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.follower import State as FollowerState
from zbroker.errors import (
    BrokerError,
    CopyDamagedError,
    FencedLeaderEpochError,
    InvalidConfigurationError,
    StaleIncarnationError,
)
from zbroker.storage.copied_log import CopiedLog
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
from zbroker.workers.follower import Follower
from zbroker.workers.host import Host
from zbroker.workers.leader import Leader
from zbroker.workers.open_copy import Key, OpenCopy, check_not_suspect, set_aside
from zbroker.workers.predecessor import complete_tail, last_high_watermark
from zbroker.workers.producer_state import ProducerState
from zbroker.workers.request import Request

NOBODY: Final = -1

_log = logging.getLogger(__name__)

OnResult = Callable[[GrantResult], None]


def topic_config(settings: dict[str, str]) -> TopicConfig:
    """A topic's settings from texts under their names, with '.' or '_'. Raises InvalidConfigurationError."""
    try:
        return msgspec.convert({k.replace(".", "_"): v for k, v in settings.items()}, TopicConfig, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidConfigurationError(str(error)) from error


class Grants:
    """The copies that this process has, and those it is about to have. `leaders` is what others look into."""

    def __init__(self, host: Host, config: ServerConfig) -> None:
        self._host = host
        self._disk_free_min_bytes = config.storage.disk_free_min_bytes
        self._expiration_ms = config.storage.producer_id_expiration_ms
        self.leaders: dict[Key, Leader] = {}
        self.followers: dict[Key, Follower] = {}
        self._due: dict[Key, list[tuple[PartitionGrant, OnResult]]] = {}
        self._revoke_when_open: dict[Key, list[tuple[Revocation, Callable[[], None]]]] = {}
        self._queue: deque[Key] = deque()

    def copies(self) -> Iterator[OpenCopy]:
        """Every open copy."""
        yield from self.leaders.values()
        yield from self.followers.values()

    def copy(self, key: Key) -> OpenCopy | None:
        """The open copy of a partition."""
        return self.leaders.get(key) or self.followers.get(key)

    def holding(self) -> list[Held]:
        """What this process leads and follows, for the coordinator."""
        return [
            Held(*copy.key, copy_id=copy.copy_id, leader_epoch=copy.leader_epoch, is_leader=copy.key in self.leaders)
            for copy in self.copies()
        ]

    def grant(self, request: Request) -> None:
        """GRANT: open the copies, or have them lead or follow, then answer."""
        wanted = decode(Grant, request.body[0])
        if wanted.incarnation not in (0, self._host.incarnation):
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
            self._take(one, take)

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
        for copy in self.copies():
            if copy.topic_id == wanted.topic_id:
                copy.reconfigure(config)
        request.reply(encode(Done()))

    def elections_are_durable(self) -> None:
        """The elections of all leaders that there are here now are on the coordinator's disk."""
        for leader in self.leaders.values():
            leader.handle(ev.EpochDurable(leader.leader_epoch))

    def close(self, deadline_ns: int) -> None:
        """Close every copy, each with its clean mark as long as there is time: without one the next start reads it."""
        for copy in self.copies():
            try:
                copy.close(clean=self._host.clock.now_ns() < deadline_ns)
            except BrokerError as error:
                where = {"topic": copy.topic, "partition": copy.partition, "error": error}
                _log.error("not closed in order", extra=where)
        self.leaders.clear()
        self.followers.clear()

    # --- grants ------------------------------------------------------------------------------------------------------

    def _take(self, grant: PartitionGrant, on_result: OnResult) -> None:
        key = (grant.topic_id, grant.partition)
        if key in self._due:
            self._due[key].append((grant, on_result))
            return
        leader = self.leaders.get(key)
        if leader is not None and leader.is_whole and self._is_to_lead(grant):
            on_result(self._change(leader, grant))
            return
        self._due[key] = [(grant, on_result)]
        self._queue.append(key)
        if len(self._queue) == 1:
            self._host.loop.call_after(0, self._do_next)

    def _do_next(self) -> None:
        key = self._queue.popleft()
        if self._queue:
            self._host.loop.call_after(0, self._do_next)
        waiting = self._due.pop(key)
        grant = max((one for one, _ in waiting), key=_age)
        io_clock = self._host.io_clock
        io_clock.enter(id(self))
        try:
            result = self._open_or_change(key, grant)
        except BrokerError as error:
            where = {"topic": grant.topic, "partition": grant.partition, "error": error}
            _log.error("cannot be opened", extra=where)
            result = _failure(grant, error)
        finally:
            io_clock.leave(id(self))
        for _, on_result in waiting:
            on_result(result)
        for revocation, on_closed in self._revoke_when_open.pop(key, []):
            self._give_up(revocation, on_closed)

    def _open_or_change(self, key: Key, grant: PartitionGrant) -> GrantResult:
        copy = self.copy(key)
        if copy is not None and not copy.is_whole and not _is_fetched_again(copy):
            # Its files failed. A new grant opens the copy afresh: what is on the disk decides, not what was in memory.
            self._forget(key)
            copy.revoke()
            copy.log.close(clean=False)
            copy = None
        return self._open(grant) if copy is None else self._change(copy, grant)

    def _is_to_lead(self, grant: PartitionGrant) -> bool:
        return grant.leader == self._host.number or (grant.leader == NOBODY and not grant.copies)

    def _change(self, copy: OpenCopy, grant: PartitionGrant) -> GrantResult:
        if grant.leader_epoch < copy.leader_epoch:
            return _failure(grant, FencedLeaderEpochError(f"epoch {grant.leader_epoch} after {copy.leader_epoch}"))
        is_to_lead = self._is_to_lead(grant)
        if isinstance(copy, Leader):
            if is_to_lead:
                copy.renew(grant)
            elif grant.leader_epoch > copy.leader_epoch:
                self._demote(copy, grant)
            elif grant.leader != NOBODY:
                return _failure(grant, FencedLeaderEpochError(f"epoch {grant.leader_epoch} is led here"))
        else:
            assert isinstance(copy, Follower)
            if is_to_lead:
                if not copy.is_whole:
                    return _failure(grant, CopyDamagedError("the copy is being fetched again"))
                self._promote(copy, grant)
            else:
                copy.follow(grant)
        return self._success(grant)

    def _open(self, grant: PartitionGrant) -> GrantResult:
        config = topic_config(grant.config)
        is_to_lead = self._is_to_lead(grant)
        damage: CopyDamagedError | None = None
        try:
            check_not_suspect(Path(grant.directory), self._host.files)
            log = self._open_log(grant, config)
        except CopyDamagedError as error:
            if is_to_lead or grant.leader == NOBODY:
                raise
            set_aside(Path(grant.directory), error, self._host.files)
            damage = error
            log = self._open_log(grant, config)
        try:
            host = self._host
            producers = ProducerState(log, host.files, host.clock, config, self._expiration_ms)
            if is_to_lead:
                self._lead(grant, log, producers, config, 0)
            else:
                self._follow(grant, log, producers, config, 0)
            if damage is not None:
                # Nothing is fetched, and so nothing confirmed, before the coordinator knows what was lost.
                self.followers[grant.topic_id, grant.partition].found_damage(damage)
        except BaseException:
            log.close(clean=False)
            raise
        return self._success(grant)

    def _open_log(self, grant: PartitionGrant, config: TopicConfig) -> CopiedLog:
        host = self._host
        directory = Path(grant.directory)
        log = CopiedLog.open(
            directory,
            config,
            host.files,
            host.clock,
            leader_epoch_hint=grant.leader_epoch,
            handles=host.handles,
            disk_free_min_bytes=self._disk_free_min_bytes,
        )
        if log.recovery.is_after_power_cut:
            where = {"topic": grant.topic, "partition": grant.partition, "log_end": log.log_end}
            _log.warning("the power went while this copy was open: what was not synced is lost", extra=where)
        return log

    # --- roles -------------------------------------------------------------------------------------------------------

    def _lead(
        self, grant: PartitionGrant, log: CopiedLog, producers: ProducerState, config: TopicConfig, known: int
    ) -> None:
        host = self._host
        places = {place.copy_id: place for place in grant.copies}
        before = places.get(grant.predecessor)
        if before is not None and before.copy_id != grant.copy_id and not grant.is_unclean:
            epoch_max = grant.leader_epoch - 1
            producers.note_all(complete_tail(log, Path(before.directory), host.files, epoch_max))
        shown = last_high_watermark(grant.predecessor_board, grant.topic_id, grant.partition, grant.leader_epoch)
        leader = Leader(host, grant, log, producers, config, high_watermark=max(known, shown))
        self.leaders[leader.key] = leader

    def _follow(
        self, grant: PartitionGrant, log: CopiedLog, producers: ProducerState, config: TopicConfig, known: int
    ) -> None:
        follower = Follower(self._host, grant, log, producers, config, high_watermark=known)
        self.followers[follower.key] = follower
        follower.follow(grant)

    def _demote(self, leader: Leader, grant: PartitionGrant) -> None:
        del self.leaders[leader.key]
        leader.stop()
        try:
            self._follow(grant, leader.log, leader.producers, topic_config(grant.config), leader.high_watermark)
        except BaseException:
            leader.log.close(clean=False)
            raise
        finally:
            leader.give_cell_back()

    def _promote(self, follower: Follower, grant: PartitionGrant) -> None:
        del self.followers[follower.key]
        follower.stop()
        try:
            self._lead(grant, follower.log, follower.producers, topic_config(grant.config), follower.high_watermark)
        except BaseException:
            follower.log.close(clean=False)
            raise
        finally:
            follower.give_cell_back()

    def _success(self, grant: PartitionGrant) -> GrantResult:
        copy = self.copy((grant.topic_id, grant.partition))
        assert copy is not None
        log = copy.log
        return GrantResult(
            grant.topic_id,
            grant.partition,
            0,
            "",
            log.log_start,
            log.log_end,
            log.last_epoch,
            _is_fetched_again(copy),
        )

    # --- revocations -------------------------------------------------------------------------------------------------

    def _forget(self, key: Key) -> None:
        self.leaders.pop(key, None)
        self.followers.pop(key, None)

    def _give_up(self, revocation: Revocation, on_closed: Callable[[], None]) -> None:
        key = (revocation.topic_id, revocation.partition)
        if key in self._due:
            self._revoke_when_open.setdefault(key, []).append((revocation, on_closed))
            return
        copy = self.copy(key)
        if copy is None:
            on_closed()
            return
        self._forget(key)
        copy.revoke()
        if revocation.delete or copy.log.failure is not None:
            self._end(copy, on_closed, delete=revocation.delete)
            return
        try:
            job = copy.log.begin_flush()
        except BrokerError:
            self._end(copy, on_closed, delete=False)
            return

        def synced(_: Any, error: BaseException | None) -> None:
            if error is None:
                copy.log.finish_flush(job)
            self._end(copy, on_closed, delete=False)

        self._host.disk.submit(job.run, synced)

    def _end(self, copy: OpenCopy, on_closed: Callable[[], None], *, delete: bool) -> None:
        log = copy.log
        io_clock = self._host.io_clock
        io_clock.enter(id(self))
        try:
            if delete:
                log.delete()
            else:
                if log.failure is None:
                    log.save_high_watermark(min(copy.high_watermark, log.log_end))
                log.close(clean=log.failure is None)
        except BrokerError as error:
            where = {"topic": copy.topic, "partition": copy.partition, "error": error}
            _log.error("not closed in order", extra=where)
        finally:
            io_clock.leave(id(self))
        on_closed()


def _age(grant: PartitionGrant) -> tuple[int, int, bool]:
    """What only grows from a grant to a newer one."""
    return grant.leader_epoch, grant.partition_epoch, grant.is_epoch_durable


def _is_fetched_again(copy: OpenCopy) -> bool:
    return isinstance(copy, Follower) and copy.state is FollowerState.SUSPECT


def _failure(grant: PartitionGrant, error: BrokerError) -> GrantResult:
    is_suspect = isinstance(error, CopyDamagedError)
    return GrantResult(grant.topic_id, grant.partition, error.code, error.message, -1, -1, -1, is_suspect)
