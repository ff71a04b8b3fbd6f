"""What the consumer's own thread does for its group: it joins, takes and gives up partitions, commits, and leaves.

Guarantees: partitions come and go only when the application asks for records and so has nothing in hand; before one
goes, its position is committed (`enable_auto_commit`) and the listener told, and only then is it given up. A listener
that raises changes nothing: the error says so, and the next `poll` tells it again. Who was thrown out tells the
listener what it has lost, and joins again at once, by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from zbroker import ids
from zbroker.client.assigned import Assigned
from zbroker.client.assignors import Assignors
from zbroker.client.group_commits import GroupCommits
from zbroker.client.group_member import GroupMember, Phase, Target
from zbroker.client.group_session import GroupSession
from zbroker.client.settings import ConsumerSettings
from zbroker.client.sleep import WakeableConnection
from zbroker.client.subscription import Subscription
from zbroker.client.topology import Topology
from zbroker.clock import NS_PER_MS
from zbroker.errors import BrokerError, CommitFailedError, FencedInstanceIdError, RebalanceListenerError
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata

NOTE_NS: Final = 200 * NS_PER_MS  # between two looks at what costs something for each partition
THREAD_END_S: Final = 2.0
STABLE: Final = "Stable"


class ConsumerGroupMetadata(NamedTuple):
    """Who a consumer is in its group. `generation_id` 0: it is no member at the moment."""

    group_id: str
    generation_id: int
    member_id: str
    group_instance_id: str | None


class Membership:
    """See the module. The consumer's thread uses it; `wake_consumer` is called by the session's."""

    def __init__(
        self,
        settings: ConsumerSettings,
        connection: WakeableConnection,
        subscription: Subscription,
        topology: Topology,
        wake_consumer: Callable[[], None],
    ) -> None:
        """Nothing is said to the broker before the first `service`. Raises ConfigError for the assignors."""
        assert settings.group_id is not None
        assignors = Assignors(settings.partition_assignment_strategy)
        incarnation = ids.own_incarnation() if connection.shared_memory else 0
        self._settings = settings
        self._subscription = subscription
        self._wake_consumer = wake_consumer
        self._topology = topology
        self._member = GroupMember(settings, assignors.names, incarnation)
        self.commits = GroupCommits(connection, settings.group_id, self._member)
        self._session = GroupSession(settings, self._member, assignors, self._polled_ago_ms, self._on_news)
        self._has_news = True
        self._is_applying = False
        self._is_polling = False
        self._polled_ns = time.monotonic_ns()
        self._committed_ns = self._polled_ns
        self._noted_ns = self._polled_ns
        self._seen_changes = -1
        self._match_count = 0  # not 0: a pattern waits for the answer about topics of this number
        self._fatal: BrokerError | None = None
        self._starting: list[Assigned] = []
        self._running: tuple[Assigned, int | None] | None = None
        self.running: Assigned | None = None
        """What is being iterated over: that its position moves shows that the application is alive."""
        self.in_hand = False
        """Whether the application may still work on what it was given."""
        self.is_failed = False
        """Whether it ends by an exception."""

    # --- polls -------------------------------------------------------------------------------------------------------

    def begin_poll(self) -> None:
        """The application asks for records: what it was given before is done."""
        now_ns = time.monotonic_ns()
        self.in_hand = False
        self.running = None
        self._is_polling = True
        self._polled_ns = now_ns
        self.commits.note_poll(now_ns)
        if now_ns - self._noted_ns >= NOTE_NS:
            self._noted_ns = now_ns
            self.commits.note_positions(self._positions())
            self.commits.shorten()
            if self.commits.has_lost_slot():
                with self._session.lock:
                    self._member.lose(CommitFailedError("this consumer was taken out of its group"))
                self._has_news = True

    def end_poll(self) -> None:
        """The application goes on with what it was given."""
        self._polled_ns = time.monotonic_ns()
        self._is_polling = False

    def _polled_ago_ms(self) -> int:
        """Since when the application has not asked for records. Called by the session's thread."""
        now_ns = time.monotonic_ns()
        running = self.running
        if self._is_polling:
            return 0
        if running is not None:
            mark = (running, running.offset)
            if mark != self._running:
                self._running = mark
                self._polled_ns = now_ns
            if self._is_commit_due(now_ns):
                self._subscription.interrupt()
        return max(0, now_ns - self._polled_ns) // NS_PER_MS

    def _on_news(self) -> None:
        self._has_news = True
        self._subscription.interrupt()
        self._wake_consumer()

    def service(self) -> None:
        """Do what is to be done for the group now. Costs next to nothing when there is nothing.

        Raises what the coordinator refused, RebalanceListenerError, and what a commit's callback raises.
        """
        if self.in_hand or self._is_applying:
            return
        self.run_callbacks()
        if self._starting:
            self._keep_starts()
        if self._subscription.is_subscribed and (
            self._has_news or self._match_count or self._subscription.changes != self._seen_changes
        ):
            self._apply()
        if self._is_commit_due(time.monotonic_ns()):
            self.commit_positions(waits=False)

    def _apply(self) -> None:
        self._is_applying = True
        self._has_news = False  # before the look: what comes during it is looked at the next time
        try:
            self._apply_news()
        except BaseException:
            self._has_news = True
            raise
        finally:
            self._is_applying = False

    def _apply_news(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        member = self._member
        with self._session.lock:
            phase, error = member.phase, member.take_error()
            target = member.target if member.has_target else None
        if isinstance(error, FencedInstanceIdError):
            self._fatal = error
        if phase is Phase.LOST:
            self._drop_lost(rejoins=error is None)
        if error is not None:
            raise error
        if target is not None:
            self._act_on(target)
        self._seen_changes = self._subscription.changes
        self._say_what_is_wanted()

    def _say_what_is_wanted(self) -> None:
        member, subscription = self._member, self._subscription
        topics = subscription.topics if subscription.pattern is None else self._matches()
        if topics is None:
            return
        with self._session.lock:
            version = member.topics_version
            member.want(topics, subscription.pattern.pattern if subscription.pattern else "", version)
            if member.phase is Phase.OUT:
                member.join(time.monotonic_ns())
            is_urgent = member.is_urgent
        if is_urgent:
            self._session.wake()

    def _matches(self) -> frozenset[str] | None:
        """The topics that the pattern matches, once an answer about topics has come that is new enough."""
        with self._session.lock:
            is_stale = self._member.wants_match
        if is_stale and not self._match_count:
            self._match_count = self._topology.expire()
        if self._topology.count < self._match_count:
            return None
        self._match_count = 0
        return self._subscription.matched

    # --- what comes and goes -----------------------------------------------------------------------------------------

    def _act_on(self, target: Target) -> None:
        member, subscription = self._member, self._subscription
        kept = {grant.place for grant in target.grants.values()}
        gone = [grant for grant in member.owned.values() if grant.place not in kept]
        if gone:
            tps = [grant.tp for grant in gone]
            if self._settings.enable_auto_commit:
                self.commit_positions(tps, waits=True)
            self._tell(subscription.tell_revoked, tps)
            self.commits.drop(tps)
            subscription.withdraw(tps)
            with self._session.lock:
                member.give_up([grant.key for grant in gone])
        fresh = [grant for key, grant in target.grants.items() if key not in member.owned]
        try:
            self.commits.take(fresh, target.files, target.member_epoch)
        except CommitFailedError as error:
            with self._session.lock:
                member.lose(error)
            self._has_news = True
            return
        added = [subscription.grant(grant.tp, grant.topic_id, grant.committed) for grant in fresh]
        if added:
            try:
                self._tell(subscription.tell_assigned, [one.tp for one in added])
            except BaseException:
                subscription.withdraw([one.tp for one in added])
                self.commits.drop([one.tp for one in added])
                raise
        self._starting += [one for one in added if one.offset is None and one.reset == "latest"]
        with self._session.lock:
            if member.target is not None:
                member.take(target)
        self._session.wake()

    def _drop_lost(self, *, rejoins: bool) -> None:
        member, subscription = self._member, self._subscription
        with self._session.lock:
            lost = [grant.tp for grant in member.owned.values()]
            member.leave()
            if rejoins:
                member.join(time.monotonic_ns())
        self._starting.clear()
        self.commits.drop_all()
        subscription.withdraw(lost)
        if rejoins:
            self._session.wake()
        if lost:
            self._tell(subscription.tell_lost, lost)

    def _tell(self, call: Callable[[list[TopicPartition]], None], partitions: list[TopicPartition]) -> None:
        try:
            call(sorted(partitions))
        except Exception as error:
            raise RebalanceListenerError(f"the listener raised {type(error).__name__}: {error}") from error

    def _keep_starts(self) -> None:
        """Commit where reading begins at the end of a partition: its next owner must not begin at a later end."""
        found = [one for one in self._starting if one.offset is not None]
        if found:
            self._starting = [one for one in self._starting if one.offset is None]
            self.commit_positions([one.tp for one in found], waits=False)

    # --- commits -----------------------------------------------------------------------------------------------------

    def _is_commit_due(self, now_ns: int) -> bool:
        interval_ms = self._settings.auto_commit_interval_ms
        return self._settings.enable_auto_commit and now_ns - self._committed_ns >= interval_ms * NS_PER_MS

    def run_callbacks(self) -> None:
        """Call the callbacks of the commits that have ended, unless one is running."""
        if not self._is_applying:
            self._is_applying = True
            try:
                self.commits.run_callbacks()
            finally:
                self._is_applying = False

    def _positions(self) -> list[tuple[TopicPartition, int]]:
        return [(tp, one.offset) for tp, one in self._subscription.assigned.items() if one.offset is not None]

    def positions(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """Where each partition stands, as it is committed."""
        return {tp: OffsetAndMetadata(offset) for tp, offset in self._positions()}

    @property
    def is_member(self) -> bool:
        """Whether partitions come from the group; else they were assigned by hand."""
        return not self._subscription.is_manual

    def commit_positions(self, partitions: Iterable[TopicPartition] | None = None, *, waits: bool) -> None:
        """Commit the positions of these, or of all, as far as they are this consumer's still; `waits`: return when they
        are kept. Raises nothing of a broker: what failed is made up for by the next time."""
        self._committed_ns = time.monotonic_ns()
        found = self.positions()
        chosen = found if partitions is None else {tp: found[tp] for tp in partitions if tp in found}
        stores = self.commits.stores
        for tp, one in chosen.items() if stores else ():
            store = stores.get(tp)
            if store is not None:
                try:
                    store(one.offset)
                except CommitFailedError:
                    self._noted_ns = 0  # taken away: the next poll finds out
        rest = {tp: one for tp, one in chosen.items() if tp not in stores}
        if not rest:
            return
        timeout_ms = self._settings.request_timeout_ms
        if not waits:
            self.commits.commit_async(rest, None, timeout_ms=timeout_ms, is_member=self.is_member)
            return
        try:
            self.commits.commit(rest, durable=False, timeout_ms=timeout_ms, is_member=self.is_member)
        except BrokerError:
            self._noted_ns = 0

    def start_assigned(self) -> None:
        """Begin where the group has committed, in partitions that were assigned by hand and have no position."""
        fresh = [one for one in self._subscription.assigned.values() if one.offset is None]
        committed = self.commits.committed(self._settings.request_timeout_ms) if fresh else {}
        for one in fresh:
            if one.tp in committed:
                one.offset = committed[one.tp].offset

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether the group has said what this consumer reads, and nothing of it is still to come."""
        with self._session.lock:
            member = self._member
            target = member.target
            return member.phase is Phase.IN and target is not None and target.state == STABLE and not member.has_news

    def metadata(self) -> ConsumerGroupMetadata:
        """Who this consumer is."""
        member = self._member
        return ConsumerGroupMetadata(member.group_id, member.member_epoch, member.member_id, member.instance_id or None)

    def leave(self, timeout_s: float, *, is_final: bool) -> threading.Event:
        """Give everything back. The listener was told, and what it had was committed. The event: the group has heard
        it, or does not answer. Raises RebalanceListenerError, when all is done. `is_final` False: a static member does
        not come back either."""
        owned = [grant.tp for grant in self._member.owned.values()]
        failure: RebalanceListenerError | None = None
        if not self.is_member:
            owned = []
        if self._settings.enable_auto_commit and not (self.in_hand and self.is_failed):
            self.commit_positions(waits=True)
        if owned:
            is_lost = self._member.phase is Phase.LOST
            try:
                self._tell(self._subscription.tell_lost if is_lost else self._subscription.tell_revoked, owned)
            except RebalanceListenerError as error:
                failure = error
        self.commits.drop_all()
        with self._session.lock:
            is_temporary = is_final and bool(self._member.instance_id)
            is_named = self._member.phase in (Phase.JOINING, Phase.IN)
            told = self._session.leave(is_temporary=is_temporary, reason="closed") if is_named else _done()
            self._member.leave()
        self._session.wake_if_running()
        self._subscription.withdraw([tp for tp in owned if tp in self._subscription.assigned])
        self._starting.clear()
        self._has_news, self._fatal = True, None
        told.wait(timeout_s)
        if failure is not None:
            raise failure
        return told

    def close(self, timeout_s: float) -> None:
        """Leave, and end the thread. In a forked child it touches nothing."""
        try:
            self.leave(timeout_s, is_final=True)
        finally:
            self.end(THREAD_END_S)

    def end(self, timeout_s: float) -> None:
        """Unmap what commits go to, and end the thread, after `leave`."""
        self.commits.close()
        self._session.close(timeout_s)

    @property
    def has_ended(self) -> bool:
        """Whether the thread has."""
        return self._session.has_ended


def _done() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
