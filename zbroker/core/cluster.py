"""The coordinator as a state machine: events in, effects out. No I/O, no clock, no randomness.

State: the image, which is what the metadata log says, and beside it what only this run has learned of processes and
leaderships (`cluster_state`). Every event is one call of `handle`; whatever it wants done comes back as effects, to be
done in their order. Decisions are in `elections`, `adoption`, `topic_changes`; this module only says which event goes
where, and keeps the order of things:

    handle(event) -> ..., AppendEntries                 the last effect, when something must be written down first
    handle(EntriesAppended) -> what follows from it     the image has the entries now, and not before
    handle(AppendFailed) -> what to say instead         nothing has happened

Replay is `Image.replayed(entries)`, then `Started`: the same `Image.apply` as live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from zbroker.config.schema import ServerConfig
from zbroker.core import answers
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.adoption import Adoption
from zbroker.core.cluster_events import Event
from zbroker.core.cluster_state import ClusterState, Site
from zbroker.core.effects import Effect
from zbroker.core.elections import Elections
from zbroker.core.image import Image
from zbroker.core.journal import Journal
from zbroker.core.topic_changes import TopicChanges
from zbroker.errors import BrokerError, IllegalTransition, InvalidRequestError
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    MetadataRequest,
)


class Cluster:
    """See the module. Only `handle` changes it."""

    def __init__(
        self, config: ServerConfig, site: Site, fixed_workers: int, cell_of: Callable[[int, int], int], image: Image
    ) -> None:
        """See `ClusterState`. `config` is read at each use: what SIGHUP changes in it holds from then on."""
        self.state = ClusterState(config, site, fixed_workers, cell_of, image)
        self._journal = Journal(self.state.image)
        self._elections = Elections(self.state, self._journal)
        self._adoption = Adoption(self.state, self._journal, self._elections)
        self._topics = TopicChanges(self.state, self._journal, self._elections)
        self._is_started = False

    @property
    def image(self) -> Image:
        """What the log says."""
        return self.state.image

    def handle(self, event: Event, now_ns: int) -> list[Effect]:
        """Take one event; what is to be done about it, in order. Raises IllegalTransition, and changes nothing, for an
        event before `Started` or between an append and its outcome."""
        is_outcome = isinstance(event, ev.EntriesAppended | ev.AppendFailed)
        if is_outcome != self._journal.is_waiting:
            raise IllegalTransition(f"{type(event).__name__}: an append is {'' if is_outcome else 'not '}answered")
        if self._is_started == isinstance(event, ev.Started):
            raise IllegalTransition(f"{type(event).__name__}: the start comes first, and once")
        self._is_started = True
        effects = _HANDLERS[type(event)](self, event, now_ns)
        if self._journal.is_waiting:
            assert isinstance(effects[-1], do.AppendEntries)
            assert not any(isinstance(effect, do.AppendEntries) for effect in effects[:-1])
            return effects
        return effects + self._topics.answer_waiting(now_ns) + self._elections.ready_if_so()

    def _ticked(self, _: ev.Ticked, now_ns: int) -> list[Effect]:
        effects = self._elections.retry(now_ns)
        return effects if self._journal.is_waiting else effects + self._adoption.adopt(now_ns)

    def _registered(self, event: ev.ProcessRegistered, now_ns: int) -> list[Effect]:
        try:
            return self._elections.registered(event, now_ns)
        except BrokerError as error:
            return [do.Reply(event.request, None, error.code, error.message)]

    def _asked(self, event: ev.Asked, now_ns: int) -> list[Effect]:
        try:
            return self._serve(event, now_ns)
        except BrokerError as error:
            return [do.Reply(event.request, None, error.code, error.message)]

    def _serve(self, event: ev.Asked, now_ns: int) -> list[Effect]:
        topics = self._topics
        match event.body:
            case MetadataRequest() as body:
                return topics.metadata(event, body, now_ns)
            case CreateTopics() as body:
                return topics.create_topics(event, body, now_ns)
            case CreatePartitions() as body:
                return topics.create_partitions(event, body, now_ns)
            case DeleteTopics() as body:
                return topics.delete_topics(event, body)
            case AlterConfigs() as body:
                return topics.alter_configs(event, body)
            case DescribeConfigs() as body:
                return [do.Reply(event.request, answers.settings(self.state, body.name))]
        raise InvalidRequestError(f"the coordinator does not answer {type(event.body).__name__}")


_HANDLERS: Final[dict[type[Event], Callable[[Cluster, Any, int], list[Effect]]]] = {
    ev.Started: lambda cluster, event, now_ns: cluster._elections.started(event, now_ns),
    ev.Connected: lambda cluster, _, now_ns: cluster._elections.announce(now_ns),
    ev.EntriesAppended: lambda cluster, _, now_ns: cluster._journal.appended(now_ns),
    ev.AppendFailed: lambda cluster, event, now_ns: cluster._journal.failed(event.error, now_ns),
    ev.ProcessRegistered: Cluster._registered,
    ev.ProcessDied: lambda cluster, event, now_ns: cluster._elections.died(event.number, event.incarnation, now_ns),
    ev.GrantAnswered: lambda cluster, event, now_ns: cluster._elections.grant_answered(event, now_ns),
    ev.RevokeAnswered: lambda cluster, event, _: cluster._elections.revoke_answered(event),
    ev.ReconfigureAnswered: lambda cluster, event, _: cluster._elections.reconfigured(event),
    ev.Ticked: Cluster._ticked,
    ev.Asked: Cluster._asked,
    ev.DescribeClusterAsked: lambda cluster, event, _: [do.Reply(event.request, answers.cluster(cluster.state))],
}
