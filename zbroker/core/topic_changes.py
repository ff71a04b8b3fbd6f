"""Creating, extending, altering and deleting topics.

Each topic of a request is checked as a whole, and succeeds or is refused alone; all that succeed are one append to the
metadata log. A request that makes partitions is answered when each of them has a leader or cannot have one, or when
its time is over: the topics exist then all the same, and their results say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from zbroker.clock import NS_PER_MS
from zbroker.core import answers
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import ClusterState, Standing
from zbroker.core.effects import Effect
from zbroker.core.entries import AnyEntry, TopicDeleted
from zbroker.core.image import Key, Partition
from zbroker.core.journal import Journal, Otherwise
from zbroker.core.leavings import Leavings
from zbroker.core.processes import Processes
from zbroker.core.topic_drafts import Draft, configured, known_topic
from zbroker.errors import (
    BrokerError,
    LeaderNotAvailableError,
    RequestTimedOutError,
    ThrottlingQuotaExceededError,
)
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    Done,
    MetadataRequest,
    NewTopicSpec,
    TopicResult,
    TopicResults,
)

WAITING_MAX: Final = 10_000


class _Waiting(Struct, frozen=True):
    deadline_ns: int
    keys: list[Key]
    answer: Callable[[], Effect]


class TopicChanges:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal, processes: Processes, leavings: Leavings) -> None:
        self._state = state
        self._journal = journal
        self._processes = processes
        self._leavings = leavings
        self._waiting: list[_Waiting] = []

    def metadata(self, event: ev.Asked, body: MetadataRequest, now_ns: int) -> list[Effect]:
        """Answer what is known; with `auto_create`, make what is not, where the settings allow it."""
        state, names = self._state, body.topics
        absent = [name for name in dict.fromkeys(names or ()) if name not in state.image.by_name]
        if not (absent and body.auto_create and state.config.broker.auto_create_topics_enable):
            return [do.Reply(event.request, answers.metadata(state, names))]
        entries, results = self._draft([NewTopicSpec(name, -1, -1, {}) for name in absent], now_ns)
        errors = {result.name: result.error for result in results if result.error}

        def answer() -> Effect:
            return do.Reply(event.request, answers.metadata(state, names, errors))

        if not entries:
            return [answer()]
        topic_ids = [result.topic_id for result in results if not result.error]
        return self._make(event, entries, topic_ids, answer, now_ns)

    def create_topics(self, event: ev.Asked, body: CreateTopics, now_ns: int) -> list[Effect]:
        """Make topics."""
        entries, results = self._draft(body.topics, now_ns)
        if body.validate_only:
            checked = [TopicResult(found.name, found.error, found.message, 0) for found in results]
            return [do.Reply(event.request, TopicResults(checked))]
        if not entries:
            return [do.Reply(event.request, TopicResults(results))]

        def answer() -> Effect:
            return do.Reply(event.request, TopicResults([self._outcome(found) for found in results]))

        return self._make(event, entries, [found.topic_id for found in results if not found.error], answer, now_ns)

    def _draft(self, specs: Iterable[NewTopicSpec], now_ns: int) -> tuple[list[AnyEntry], list[TopicResult]]:
        draft = Draft(self._state, now_ns)
        entries: list[AnyEntry] = []
        results = []
        for spec in specs:
            try:
                entry = draft.new_topic(spec)
            except BrokerError as error:
                results.append(TopicResult(spec.name, error.code, error.message, 0))
            else:
                entries.append(entry)
                results.append(TopicResult(spec.name, 0, "", entry.topic_id))
        return entries, results

    def _make(
        self, event: ev.Asked, entries: list[AnyEntry], topic_ids: list[int], answer: Callable[[], Effect], now_ns: int
    ) -> list[Effect]:
        self._check_waiting()

        def then(at_ns: int) -> list[Effect]:
            topics = [self._state.image.topics[topic_id] for topic_id in topic_ids]
            made = [partition for topic in topics for partition in topic.partitions]
            return self._led_soon(event, made, answer, at_ns)

        return self._journal.append(entries, durable=True, then=then, otherwise=refuse(event))

    def create_partitions(self, event: ev.Asked, body: CreatePartitions, now_ns: int) -> list[Effect]:
        """Give a topic more partitions."""
        self._check_waiting()
        topic = known_topic(self._state, body.name)
        have = len(topic.partitions)
        entry = Draft(self._state, now_ns).more_partitions(topic, body.total)

        def then(at_ns: int) -> list[Effect]:
            made = topic.partitions[have : body.total]
            keys = [partition.key for partition in made]

            def answer() -> Effect:
                error, message = self._trouble(keys)
                return do.Reply(event.request, None if error else Done(), error, message)

            return self._led_soon(event, made, answer, at_ns)

        return self._journal.append([entry], durable=True, then=then, otherwise=refuse(event))

    def _check_waiting(self) -> None:
        if len(self._waiting) >= WAITING_MAX:
            raise ThrottlingQuotaExceededError(f"{WAITING_MAX} requests wait for leaders already")

    def _led_soon(
        self, event: ev.Asked, made: list[Partition], answer: Callable[[], Effect], now_ns: int
    ) -> list[Effect]:
        deadline_ns = now_ns + event.timeout_ms * NS_PER_MS
        self._waiting.append(_Waiting(deadline_ns, [partition.key for partition in made], answer))
        # On the board from now on, without a leader: who asks in between finds a cell that will change.
        effects: list[Effect] = [do.PublishLeader(*partition.key, 0, None, None) for partition in made]
        if not self._state.fixed_workers:
            effects.append(do.PublishWanted(self._state.wanted()))
        for partition in made:
            self._state.want_election(partition.key)
        return effects

    def delete_topics(self, event: ev.Asked, body: DeleteTopics) -> list[Effect]:
        """Delete topics and their records."""
        results: list[TopicResult] = []
        deleted: list[Partition] = []
        entries: list[AnyEntry] = []
        for name in dict.fromkeys(body.names):
            try:
                topic = known_topic(self._state, name)
            except BrokerError as error:
                results.append(TopicResult(name, error.code, error.message, 0))
                continue
            entries.append(TopicDeleted(topic.topic_id))
            deleted += topic.partitions
            results.append(TopicResult(name, 0, "", topic.topic_id))
        answer = do.Reply(event.request, TopicResults(results))
        if not entries:
            return [answer]

        def then(_: int) -> list[Effect]:
            effects = self._leavings.close(deleted)
            if not self._state.fixed_workers:
                effects.append(do.PublishWanted(self._state.wanted()))
            return [*effects, answer]

        return self._journal.append(entries, durable=True, then=then, otherwise=refuse(event))

    def alter_configs(self, event: ev.Asked, body: AlterConfigs) -> list[Effect]:
        """Change a topic's settings; they hold when this is answered, and reach its leaders right after."""
        topic = known_topic(self._state, body.name)
        entry = configured(self._state, topic, body.set, body.unset)

        def then(_: int) -> list[Effect]:
            return [*self._processes.reconfigure(topic.topic_id), do.Reply(event.request, Done())]

        return self._journal.append([entry], durable=True, then=then, otherwise=refuse(event))

    def answer_waiting(self, now_ns: int) -> list[Effect]:
        """Answer the requests whose partitions are all settled, and those whose time is over."""
        if not self._waiting:
            return []
        effects, still = list[Effect](), list[_Waiting]()
        for waiting in self._waiting:
            if waiting.deadline_ns <= now_ns or all(map(self._state.is_settled, waiting.keys)):
                effects.append(waiting.answer())
            else:
                still.append(waiting)
        self._waiting = still
        return effects

    def _outcome(self, result: TopicResult) -> TopicResult:
        topic = self._state.image.topics.get(result.topic_id)
        if result.error or topic is None:
            return result
        error, message = self._trouble([partition.key for partition in topic.partitions])
        return TopicResult(result.name, error, message, result.topic_id)

    def _trouble(self, keys: list[Key]) -> tuple[int, str]:
        for key in keys:
            if self._state.image.partition(*key) is None:
                continue
            found = self._state.leadership(key)
            if found.standing is Standing.FAILED:
                text = f"it exists, but partition {key[1]} has no leader: {found.message}"
                return found.error or LeaderNotAvailableError.code, text
            if found.standing is not Standing.LEADING:
                return RequestTimedOutError.code, f"it exists, but partition {key[1]} has no leader yet"
        return 0, ""


def refuse(event: ev.Asked) -> Otherwise:
    """Answer with the reason why the log could not take what was asked."""
    return lambda error, _: [do.Reply(event.request, None, error.code, error.wire_text)]
