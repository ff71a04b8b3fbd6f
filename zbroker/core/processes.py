"""The broker's processes as the coordinator knows them: registration, death, and what both mean for partitions.

Guarantees: a process is dead when its pidfd says so, and not before; a newer incarnation of a number takes the place of
an older one, which is killed and waited for all the same; what a process says it holds is believed only when the log
says the same. After a restart of the coordinator a process that has not registered yet is away, not dead.
"""

from __future__ import annotations

from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import (
    VACANT,
    ClusterState,
    Process,
    ProcessState,
    Standing,
    is_worker,
)
from zbroker.core.effects import Effect
from zbroker.core.elections import Elections
from zbroker.core.entries import Adopted, AnyEntry, Booted, ClusterCreated
from zbroker.core.followings import Followings
from zbroker.core.image import Partition
from zbroker.core.journal import Journal
from zbroker.core.leavings import Leavings
from zbroker.core.placement import lowest_free
from zbroker.errors import BrokerError, InvalidRequestError, StaleIncarnationError
from zbroker.wire.inner_messages import Held, Register, Registered

ANNOUNCE_INTERVAL_MS: Final = 200


class Processes:
    """See the module."""

    def __init__(
        self, state: ClusterState, journal: Journal, elections: Elections, followings: Followings, leavings: Leavings
    ) -> None:
        self._state = state
        self._journal = journal
        self._elections = elections
        self._followings = followings
        self._leavings = leavings
        self._announced_ns = 0
        self._is_ready = False

    def started(self, event: ev.Started, now_ns: int) -> list[Effect]:
        """After the replay: nobody leads until processes have registered."""
        image = self._state.image
        entries: list[AnyEntry] = []
        if not image.cluster_id:
            entries.append(ClusterCreated(event.cluster_id))
        if image.boot_id != event.boot_id:
            entries.append(Booted(event.boot_id))
        if not entries:
            return self._meet(event.boards, now_ns)
        return self._journal.append(
            entries, durable=True, then=lambda at_ns: self._meet(event.boards, at_ns), otherwise=_give_up
        )

    def _meet(self, boards: list[tuple[int, int]], now_ns: int) -> list[Effect]:
        state = self._state
        known = [(p.leader_number, p.leader_incarnation) for p in state.image.partitions() if p.leader_incarnation]
        effects: list[Effect] = []
        for number, incarnation in dict.fromkeys([*known, *boards]):
            if number in (ids.COORDINATOR, ids.ROUTER):
                continue
            state.watched[incarnation] = number
            found = state.processes.get(number)
            if found is None or is_older(found.incarnation, incarnation):
                state.processes[number] = Process(number, incarnation, "", "", ProcessState.AWAY, now_ns)
            effects.append(do.WatchProcess(number, incarnation))
        for number in (*state.image.owner_loads(), *state.wanted(), *state.replicas()):
            # A process that never comes back after this start is given as long as one that dies now.
            dead = Process(number, 0, "", "", ProcessState.DEAD, now_ns)
            state.processes.setdefault(number, dead)
        for partition in state.image.partitions():
            state.holders[partition.key] = {partition.leader_incarnation, *partition.formers} - {0}
            effects.append(self._elections.vacate(partition))
        self._announced_ns = now_ns
        return [*effects, do.PublishWanted(state.wanted())]

    def announce(self, now_ns: int) -> list[Effect]:
        """Ask the processes that have not registered with this coordinator to do so."""
        self._announced_ns = now_ns
        away = [p.number for p in self._state.processes.values() if p.state is ProcessState.AWAY]
        return [do.SendAnnounce(number) for number in away]

    def announce_if_due(self, now_ns: int) -> list[Effect]:
        """Ask them again, now and then."""
        return self.announce(now_ns) if now_ns - self._announced_ns >= ANNOUNCE_INTERVAL_MS * NS_PER_MS else []

    def registered(self, event: ev.ProcessRegistered, now_ns: int) -> list[Effect]:
        """A process says that it is up, and what it leads and follows."""
        state, register = self._state, event.register
        number, incarnation = register.number, register.incarnation
        if number in (ids.COORDINATOR, ids.ROUTER):
            raise InvalidRequestError(f"{ids.process_name(number)} does not register")
        known = state.processes.get(number)
        is_same = known is not None and known.incarnation == incarnation
        if known is not None and not is_same and is_older(incarnation, known.incarnation):
            raise StaleIncarnationError(f"a newer {ids.process_name(number)} has registered")
        if known is not None and is_same and known.state is ProcessState.DEAD:
            raise StaleIncarnationError(f"this {ids.process_name(number)} is dead")
        effects: list[Effect] = [do.Reply(event.request, self._welcome(register))]
        older = [found for found, owner in state.watched.items() if owner == number and found != incarnation]
        effects += [do.FenceProcess(number, found) for found in older]
        process = Process(number, incarnation, register.board, register.lane_socket, ProcessState.LIVE, now_ns)
        state.processes[number] = process
        if incarnation not in state.watched:
            state.watched[incarnation] = number
            effects.append(do.WatchProcess(number, incarnation))
        return effects + self._leavings.compare(register) + self._resume(register)

    def _welcome(self, register: Register) -> Registered:
        state = self._state
        elected = [p for p in state.image.of_owner(register.number) if p.leader_incarnation == register.incarnation]
        # A coordinator syncs the log before it begins; the one before may have died before it could say so.
        are_durable = not any(partition.key in state.undurable for partition in elected)
        return Registered(state.image.cluster_id, state.site.incarnation, are_durable)

    def _resume(self, register: Register) -> list[Effect]:
        """Believe what the log confirms, repeat what was asked, and have the rest looked at."""
        state, effects = self._state, list[Effect]()
        held = {(one.topic_id, one.partition): one for one in register.holding}
        again, confirmed, idle = list[Partition](), list[Partition](), list[Partition]()
        for partition in state.image.of_owner(register.number):
            key, holding = partition.key, held.get(partition.key)
            standing = state.leadership(key).standing
            is_elected = partition.leader_incarnation == register.incarnation
            leads = holding is not None and holding.is_leader
            if standing is Standing.ASKED and is_elected:
                again.append(partition)
                continue
            holders = state.holders.setdefault(key, set())
            (holders.add if leads else holders.discard)(register.incarnation)
            if standing is Standing.LEADING:
                if is_elected and not leads:
                    self._state.set_leadership(key, VACANT)
                    idle.append(partition)
                elif not is_elected and holding is not None and self._is_newest(partition, holding):
                    self._followings.confirm(partition, register.number, register.incarnation)
            elif holding is not None and leads and is_elected and self._is_newest(partition, holding):
                confirmed.append(partition)
                effects += self._elections.lead(partition)
            else:
                idle.append(partition)
        if not state.fixed_workers and is_worker(register.number) and len(idle) > 1:
            return effects + self._elections.grant(again) + self._separate(register.number, idle)
        for partition in idle:
            found = held.get(partition.key)
            state.want_election(partition.key, -1 if found is None else found.leader_epoch)
            effects += self._followings.depose(partition)
        effects += self._elections.proceed(idle)
        invited = [partition for partition in state.image.of_owner(register.number) if partition not in confirmed]
        effects += self._elections.grant(again) + self._followings.invite([*confirmed, *invited])
        copied = [partition for partition in confirmed if len(partition.copies) > 1]
        # A coordinator may have died between writing a change down and sending it.
        topics = [one for one in sorted({p.topic_id for p in confirmed}) if state.image.topics[one].is_altered]
        effects += [self._reconfigure(register.number, register.incarnation, topic_id) for topic_id in topics]
        return effects + state.news(copied)

    def _is_newest(self, partition: Partition, held: Held) -> bool:
        return partition.leader_epoch == held.leader_epoch

    def _reconfigure(self, number: int, incarnation: int, topic_id: int) -> Effect:
        settings = self._state.settings_of(self._state.image.topics[topic_id])
        return do.SendReconfigure(number, incarnation, topic_id, settings)

    def _separate(self, number: int, partitions: list[Partition]) -> list[Effect]:
        """Let a process of its own have each partition but the first: they were shared under other settings."""
        loads = self._state.image.owner_loads()
        first, *others = partitions
        indexes = lowest_free(len(others) + len(loads), ())
        heirs = [heir for heir in map(ids.worker_number, indexes) if heir not in loads]
        copies = [copy for partition in others if (copy := partition.copy_at(number)) is not None]
        entries: list[AnyEntry] = [Adopted(heir, [copy.copy_id]) for heir, copy in zip(heirs, copies, strict=False)]

        def then(_: int) -> list[Effect]:
            self._state.want_election(first.key)
            return [do.PublishWanted(self._state.wanted())]

        return self._journal.append(entries, durable=True, then=then)

    def died(self, number: int, incarnation: int, now_ns: int) -> list[Effect]:
        """A process has ended."""
        state = self._state
        if state.watched.pop(incarnation, None) is None:
            return []
        state.stuck.discard(incarnation)
        process = state.processes.get(number)
        touched = state.image.of_owner(number)
        if process is not None and process.incarnation == incarnation:
            process.state, process.since_ns = ProcessState.DEAD, now_ns
            self._followings.died(number, touched)
            if not touched and number not in (*state.wanted(), *state.replicas()):
                del state.processes[number]
        led = [partition for partition in touched if partition.leader_incarnation == incarnation]
        effects = [self._elections.lost(partition) for partition in led]
        state.examine |= {partition.key for partition in touched}
        effects += self._leavings.died(number, incarnation, led)
        return effects + self._elections.proceed(touched)

    def stuck(self, number: int, incarnation: int) -> list[Effect]:
        """A killed process hangs in the kernel: copies in sync lead in its place; the rest waits for its end."""
        state = self._state
        if incarnation not in state.watched or incarnation in state.stuck:
            return []
        state.stuck.add(incarnation)
        touched = state.image.of_owner(number)
        led = [partition for partition in touched if partition.leader_incarnation == incarnation]
        state.examine |= {partition.key for partition in touched}
        warning = do.Warn("killed, and hangs in the kernel", {"peer": ids.process_name(number)})
        lost = [self._elections.lost(partition, can_read_tail=False) for partition in led]
        return [warning, *lost, *self._elections.proceed(touched)]

    def reconfigured(self, event: ev.ReconfigureAnswered) -> list[Effect]:
        """A process has a topic's settings; or it did not say, and is sent those that are in force by now."""
        process = self._state.live(event.number)
        if event.is_done or process is None or process.incarnation != event.incarnation:
            return []
        if event.topic_id not in self._state.image.topics:
            return []
        return [self._reconfigure(event.number, event.incarnation, event.topic_id)]

    def reconfigure(self, topic_id: int) -> list[Effect]:
        """Send a topic's settings to every process that has some of it."""
        partitions = self._state.image.topics[topic_id].partitions
        owners = {copy.owner for partition in partitions for copy in partition.copies}
        live = [process for number in sorted(owners) if (process := self._state.live(number)) is not None]
        return [self._reconfigure(process.number, process.incarnation, topic_id) for process in live]

    def ready_if_so(self) -> list[Effect]:
        """Once: every wanted process has registered, and leads what it has or said that it cannot."""
        if self._is_ready:
            return []
        state = self._state
        if not all(state.live(number) for number in (*state.wanted(), *state.replicas())):
            return []
        owned = [p for p in state.image.partitions() if any(state.live(copy.owner) for copy in p.candidates)]
        if not all(state.is_settled(partition.key) for partition in owned):
            return []
        self._is_ready = True
        return [do.PublishReady()]


def _give_up(error: BrokerError, _: int) -> list[Effect]:
    """Without a written beginning there is nothing to coordinate."""
    raise error


def is_older(incarnation: int, other: int) -> bool:
    """Whether a process certainly started before another."""
    # Apart from the pid, an incarnation is the time of its start; two of one clock tick are not told apart.
    return incarnation - ids.pid_of(incarnation) < other - ids.pid_of(other)
