"""The coordinator as a state machine: events in, effects out. No I/O, no clock, no randomness.

State: the image, which is what the metadata log says, and beside it what only this run has learned of processes and
leaderships (`cluster_state`). Every event is one call of `handle`; whatever it wants done comes back as effects, to be
done in their order. Decisions are in `processes`, `elections`, `followings`, `in_sync`, `adoption`, `moves` and
`topic_changes`; this module only says which event goes where, and keeps the order of things:

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
from zbroker.core.followings import Followings
from zbroker.core.image import Image
from zbroker.core.in_sync import InSyncCopies
from zbroker.core.journal import Journal
from zbroker.core.leavings import Leavings
from zbroker.core.move_requests import MoveRequests
from zbroker.core.moves import Moves
from zbroker.core.processes import Processes
from zbroker.core.producer_ids import ProducerIdBlocks
from zbroker.core.topic_changes import TopicChanges
from zbroker.errors import BrokerError, IllegalTransition, InvalidRequestError
from zbroker.wire.copy_messages import DrainProcess, ElectLeaders, InitProducerId, MoveCopy
from zbroker.wire.inner_messages import GrantResult, PartitionGrant
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
        self._followings = Followings(self.state)
        self._leavings = Leavings(self.state)
        self._elections = Elections(self.state, self._journal, self._followings, self._leavings)
        self._processes = Processes(self.state, self._journal, self._elections, self._followings, self._leavings)
        self._in_sync = InSyncCopies(self.state, self._journal)
        self._moves = Moves(self.state, self._journal, self._elections, self._followings, self._leavings)
        self._move_requests = MoveRequests(self.state, self._moves, self._elections)
        self._producer_ids = ProducerIdBlocks(self.state, self._journal)
        self._adoption = Adoption(self.state, self._journal)
        self._topics = TopicChanges(self.state, self._journal, self._processes, self._leavings)
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
        if not self._journal.is_waiting:
            effects = effects + self._elections.decide(now_ns)
        if self._journal.is_waiting:
            assert isinstance(effects[-1], do.AppendEntries)
            assert not any(isinstance(effect, do.AppendEntries) for effect in effects[:-1])
            return effects
        answered = self._topics.answer_waiting(now_ns) + self._moves.answer_waiting(now_ns)
        return effects + answered + self._processes.ready_if_so()

    def _ticked(self, _: ev.Ticked, now_ns: int) -> list[Effect]:
        self._elections.retry(now_ns)
        effects = self._processes.announce_if_due(now_ns) + self._followings.retry(now_ns)
        effects += self._adoption.adopt(now_ns)
        return effects if self._journal.is_waiting else effects + self._moves.ticked(now_ns)

    def _grant_answered(self, event: ev.GrantAnswered, now_ns: int) -> list[Effect]:
        process = self.state.live(event.number)
        if process is None or process.incarnation != event.incarnation:
            return []
        found = {(one.topic_id, one.partition): one for one in event.results or ()}
        answers: dict[str, list[tuple[PartitionGrant, GrantResult | None]]] = {"lead": [], "follow": [], "report": []}
        for grant in event.grants:
            key = (grant.topic_id, grant.partition)
            missing = GrantResult(*key, InvalidRequestError.code, "no answer for it", -1, -1)
            result = None if event.results is None else found.get(key, missing)
            kind = "lead" if grant.leader == event.number else "report" if grant.leader < 0 else "follow"
            answers[kind].append((grant, result))
        self._elections.reported(event.incarnation, answers["report"], now_ns)
        identity = (event.number, event.incarnation)
        effects = self._elections.answered(*identity, answers["lead"], now_ns)
        effects += self._followings.answered(*identity, answers["follow"], now_ns)
        followed = [self.image.partition(grant.topic_id, grant.partition) for grant, _ in answers["follow"]]
        return effects + self._elections.proceed(one for one in followed if one is not None)

    def _registered(self, event: ev.ProcessRegistered, now_ns: int) -> list[Effect]:
        try:
            return self._processes.registered(event, now_ns)
        except BrokerError as error:
            return [do.Reply(event.request, None, error.code, error.wire_text)]

    def _asked(self, event: ev.Asked, now_ns: int) -> list[Effect]:
        try:
            return self._serve(event, now_ns)
        except BrokerError as error:
            return [do.Reply(event.request, None, error.code, error.wire_text)]

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
            case ElectLeaders() as body:
                return self._move_requests.elect_leaders(event, body, now_ns)
            case MoveCopy() as body:
                return self._move_requests.move(event, body, now_ns)
            case DrainProcess() as body:
                return self._move_requests.drain(event, body, now_ns)
            case InitProducerId() as body:
                return self._producer_ids.init(event, body)
            case DescribeConfigs() as body:
                return [do.Reply(event.request, answers.settings(self.state, body.name))]
        raise InvalidRequestError(f"the coordinator does not answer {type(event.body).__name__}")


_HANDLERS: Final[dict[type[Event], Callable[[Cluster, Any, int], list[Effect]]]] = {
    ev.Started: lambda cluster, event, now_ns: cluster._processes.started(event, now_ns),
    ev.Connected: lambda cluster, _, now_ns: cluster._processes.announce(now_ns),
    ev.EntriesAppended: lambda cluster, _, now_ns: cluster._journal.appended(now_ns),
    ev.AppendFailed: lambda cluster, event, now_ns: cluster._journal.failed(event.error, now_ns),
    ev.ProcessRegistered: Cluster._registered,
    ev.ProcessDied: lambda cluster, event, now_ns: cluster._processes.died(event.number, event.incarnation, now_ns),
    ev.ProcessStuck: lambda cluster, event, _: cluster._processes.stuck(event.number, event.incarnation),
    ev.LogSynced: lambda cluster, *_: cluster._elections.synced(),
    ev.GrantAnswered: Cluster._grant_answered,
    ev.IsrAlterationAsked: lambda cluster, event, _: cluster._in_sync.alter(event),
    ev.CopyIsSuspect: lambda cluster, event, _: cluster._in_sync.suspect(event),
    ev.RevokeAnswered: lambda cluster, event, _: cluster._leavings.revoke_answered(event),
    ev.ReconfigureAnswered: lambda cluster, event, _: cluster._processes.reconfigured(event),
    ev.Ticked: Cluster._ticked,
    ev.Asked: Cluster._asked,
    ev.DescribeClusterAsked: lambda cluster, event, _: [do.Reply(event.request, answers.cluster(cluster.state))],
}
