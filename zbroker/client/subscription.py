"""What a consumer wants to read, and where it stands in each partition.

Guarantees: topics are either subscribed to (by name or by pattern, then partitions come and go with the metadata) or
assigned, never both. A position is the offset of the next record that is given out; it moves only when records are
given out, or by a seek. A subscribed partition that appears after the first answer about its topic starts at its
beginning: everything in it was written after the subscription. In a group the topics are followed as well, and the
partitions come by `grant` and go by `withdraw`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from zbroker.client.assigned import Assigned, Reset
from zbroker.client.cluster_view import ClusterView
from zbroker.errors import IllegalTransition, UnknownTopicOrPartitionError, error_for
from zbroker.ids import TopicPartition, check_topic_name
from zbroker.wire.messages import TopicInfo


class RebalanceListener(Protocol):
    """Is told, inside `poll`, when partitions are added to or taken from a subscription."""

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """These are read from now on; a `seek` here has effect before the first record."""

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """These are read no more: another member takes them, or the topic was deleted or unsubscribed. A `commit` here
        is the last one, and counts."""

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """These were taken already: the member was thrown out of its group. A `commit` comes too late."""
        self.on_partitions_revoked(lost)


class Subscription:
    """The topics or partitions of one consumer.

    `changes` counts what alters the set of partitions, `moves` whatever makes a run of records under way stale.
    """

    def __init__(self, reset: Reset, *, is_grouped: bool = False) -> None:
        self._reset: Reset = reset
        self._is_grouped = is_grouped
        self._seen_topics: dict[str, int] = {}  # how many partitions the first answer named
        self._has_answer = False
        self._listener: RebalanceListener | None = None
        self._more_listeners: list[RebalanceListener] = []
        self._on_assign: Callable[..., None] | None = None
        self._on_revoke: Callable[..., None] | None = None
        self._on_lost: Callable[..., None] | None = None
        self.topics: frozenset[str] = frozenset()
        self.pattern: re.Pattern[str] | None = None
        self.assigned: dict[TopicPartition, Assigned] = {}
        self.absent: frozenset[str] = frozenset()
        self.matched: frozenset[str] | None = None  # by the pattern, in the newest answer
        self.is_manual = False
        self.changes = 0
        self.moves = 0

    @property
    def is_subscribed(self) -> bool:
        """Whether topics are followed, by name or pattern."""
        return bool(self.topics) or self.pattern is not None

    @property
    def names(self) -> frozenset[str] | None:
        """Topics whose metadata is needed; None: of all, for the pattern."""
        if self.pattern is not None:
            return None
        return self.topics if self.topics else frozenset(tp.topic for tp in self.assigned)

    def subscribe(
        self,
        topics: Iterable[str],
        pattern: str | None,
        listener: RebalanceListener | None = None,
        on_assign: Callable[..., None] | None = None,
        on_revoke: Callable[..., None] | None = None,
        on_lost: Callable[..., None] | None = None,
    ) -> None:
        """Follow topics from now on, in place of those before. Raises InvalidTopicError, ValueError, re.error."""
        names = frozenset([topics] if isinstance(topics, str) else topics)
        if bool(names) == (pattern is not None):
            raise ValueError("subscribe() takes topics or a pattern")
        if self.is_manual:
            raise IllegalTransition("partitions were assigned; call unsubscribe() before subscribe()")
        for name in names:
            check_topic_name(name)
        compiled = re.compile(pattern) if pattern is not None else None
        kept = {tp: one for tp, one in self.assigned.items() if tp.topic in names}
        if not self._is_grouped:
            self._forget(self.assigned.keys() - kept.keys())
        self.topics, self.pattern, self.matched = names, compiled, None
        self._listener, self._on_assign, self._on_revoke, self._on_lost = listener, on_assign, on_revoke, on_lost
        self._seen_topics = {name: count for name, count in self._seen_topics.items() if name in names}
        self._has_answer, self.absent = False, frozenset()
        self._changed()

    def assign(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> None:
        """Read exactly these; partitions that stay keep their position."""
        if self.is_subscribed:
            raise IllegalTransition("topics are subscribed to; call unsubscribe() before assign()")
        wanted = [TopicPartition(*one) for one in partitions]
        for tp in wanted:
            check_topic_name(tp.topic)
        self.assigned = {tp: self.assigned.get(tp) or Assigned(tp, self._reset) for tp in wanted}
        self.is_manual = bool(wanted)
        self._changed()

    def unsubscribe(self) -> None:
        """Read nothing."""
        self._forget(list(self.assigned))
        self.matched = None
        self.topics, self.pattern, self.is_manual = frozenset(), None, False
        self._seen_topics, self._has_answer, self.absent = {}, False, frozenset()
        self._changed()

    def followed(self) -> set[str]:
        """Names of the topics that are subscribed to; of those that are known to match, with a pattern."""
        if self.pattern is None:
            return set(self.topics)
        if self.matched is not None:
            return set(self.matched)
        return {tp.topic for tp in self.assigned}

    def get(self, tp: TopicPartition | tuple[str, int]) -> Assigned:
        """The state of an assigned partition. Raises IllegalTransition for any other."""
        found = self.assigned.get(TopicPartition(*tp))
        if found is None:
            raise IllegalTransition(f"{TopicPartition(*tp)} is not assigned to this consumer")
        return found

    def chosen(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> list[Assigned]:
        """The states of these partitions, of all when none are named."""
        return [self.get(tp) for tp in partitions] or list(self.assigned.values())

    def follow(self, view: ClusterView) -> None:
        """Add and remove partitions as an answer about `names` says. Raises for a named topic that does not exist."""
        if not self.is_subscribed:
            return
        if self.pattern is None:
            names = self.topics
        else:
            names = frozenset(name for name in view.topics if self.pattern.fullmatch(name))
        there = {name: view.topics[name] for name in names if name in view.topics and not view.topics[name].error}
        had_answer, self._has_answer = self._has_answer, True
        if self._is_grouped:
            self._note_topics(there, had_answer)
        else:
            self._read_all(there, had_answer)
        self.absent = frozenset(names - there.keys())
        for name in sorted(self.absent):
            code = view.topics[name].error if name in view.topics else UnknownTopicOrPartitionError.code
            raise error_for(code, f"topic {name!r} does not exist")
        if self._is_grouped and not there:
            assert self.pattern is not None
            self.absent = frozenset([self.pattern.pattern])
            raise UnknownTopicOrPartitionError(f"no topic matches the pattern {self.pattern.pattern!r}")

    def _note_topics(self, there: Mapping[str, TopicInfo], had_answer: bool) -> None:
        matched = frozenset(there) if self.pattern is not None else None
        if matched != self.matched:
            self.matched = matched
            self._changed()
        for name, topic in there.items():
            is_new = self.pattern is not None and had_answer
            self._seen_topics.setdefault(name, 0 if is_new else len(topic.partitions))

    def _read_all(self, there: Mapping[str, TopicInfo], had_answer: bool) -> None:
        wanted = [TopicPartition(name, info.partition) for name, topic in there.items() for info in topic.partitions]
        self._forget(self.assigned.keys() - set(wanted))
        added = [tp for tp in wanted if tp not in self.assigned]
        for tp in added:
            known = self._seen_topics.get(tp.topic)
            is_new = known is not None or (self.pattern is not None and had_answer)
            self.assigned[tp] = Assigned(tp, "earliest" if is_new else self._reset)
        for name, topic in there.items():
            self._seen_topics[name] = len(topic.partitions)
        if added:
            self._changed()
            self._tell(self._on_assign, "on_partitions_assigned", added)

    # --- groups ------------------------------------------------------------------------------------------------------

    def grant(self, tp: TopicPartition, topic_id: int, committed: int) -> Assigned:
        """Read a partition from `committed` on; -1: where `auto_offset_reset` says, or from the beginning of one that
        was made after the subscription."""
        is_new = tp.partition >= self._seen_topics.get(tp.topic, tp.partition + 1)
        one = self.assigned[tp] = Assigned(tp, "earliest" if is_new and self._reset == "latest" else self._reset)
        one.topic_id = topic_id
        one.offset = committed if committed >= 0 else None
        self._changed()
        return one

    def withdraw(self, partitions: Iterable[TopicPartition]) -> None:
        """Read these no more. Nobody is told."""
        for tp in partitions:
            del self.assigned[tp]
        self._changed()

    def tell_assigned(self, partitions: list[TopicPartition]) -> None:
        """Call the listener. Raises what it raises."""
        self._tell(self._on_assign, "on_partitions_assigned", partitions)

    def tell_revoked(self, partitions: list[TopicPartition]) -> None:
        """Call the listener. Raises what it raises."""
        self._tell(self._on_revoke, "on_partitions_revoked", partitions)

    def tell_lost(self, partitions: list[TopicPartition]) -> None:
        """Call the listener; one that knows no losses is told a revocation. Raises what it raises."""
        self._tell(self._on_lost or self._on_revoke, "on_partitions_lost", partitions)

    def add_listener(self, listener: RebalanceListener) -> None:
        """Tell this one as well, before the one of `subscribe`, whatever is subscribed to later."""
        self._more_listeners.append(listener)

    def interrupt(self) -> None:
        """End a run of records that is under way in another thread."""
        self.moves = random.getrandbits(62)

    def _changed(self) -> None:
        self.changes += 1
        self.moves += 1

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        gone = list(partitions)
        for tp in gone:
            del self.assigned[tp]
        if gone:
            self._changed()
            self._tell(self._on_revoke, "on_partitions_revoked", gone)

    def _tell(self, call: Callable[..., None] | None, method: str, partitions: list[TopicPartition]) -> None:
        for one in self._more_listeners:
            getattr(one, method)(partitions)
        if call is not None:
            call(partitions)
        if self._listener is not None:
            known = method if hasattr(self._listener, method) else "on_partitions_revoked"
            getattr(self._listener, known)(partitions)
