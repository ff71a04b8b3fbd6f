"""Processes, and who leads what: registration, death, election, grant.

Rules, each with its reason:
- An election is in the metadata log before its grant is sent: a forgotten leader could write beside the next one.
- A leader epoch is used once: every grant has a higher one than the grant before, but for a repetition of the same.
- Nothing is granted while the incarnation that was granted it before may live: only its pidfd frees a partition, or a
  reboot. A newer incarnation of the same number holds the lock that the older one held; the older is killed, and
  waited for all the same.
- What a process says it holds is believed only when the log says the same.

What becomes of the copies of a process that stays dead is said in `adoption`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zbroker import ids
from zbroker.clock import NS_PER_MS
from zbroker.core import cluster_events as ev
from zbroker.core import effects as do
from zbroker.core.cluster_state import (
    LEADING,
    VACANT,
    ClusterState,
    Leadership,
    Process,
    ProcessState,
    Standing,
)
from zbroker.core.effects import Effect
from zbroker.core.entries import Adopted, AnyEntry, Booted, ClusterCreated, Elected
from zbroker.core.image import Key, Partition
from zbroker.core.journal import Journal
from zbroker.core.placement import lowest_free
from zbroker.errors import BrokerError, InvalidRequestError, StaleIncarnationError
from zbroker.wire.inner_messages import GrantResult, Held, PartitionGrant, Register, Registered, Revocation

ANNOUNCE_INTERVAL_MS: Final = 200
GRANT_RETRY_MS: Final = 200
GRANT_RETRY_MAX_MS: Final = 30_000


class Elections:
    """See the module."""

    def __init__(self, state: ClusterState, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        # Copies of deleted topics by the incarnation that may have them open: they go when it has closed them, or died.
        self._deletions: dict[int, dict[Key, int]] = {}
        # Dead incarnations whose boards are still read: number, and the partitions without a successor.
        self._dead_boards: dict[int, tuple[int, set[Key]]] = {}
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
            return self._meet_processes(event.boards, now_ns)
        return self._journal.append(
            entries, durable=True, then=lambda at_ns: self._meet_processes(event.boards, at_ns), otherwise=_give_up
        )

    def _meet_processes(self, boards: list[tuple[int, int]], now_ns: int) -> list[Effect]:
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
        for number in (*state.image.owner_loads(), *state.wanted()):
            # A process that never comes back after this start is given as long as one that dies now.
            dead = Process(number, 0, "", "", ProcessState.DEAD, now_ns)
            state.processes.setdefault(number, dead)
        for partition in state.image.partitions():
            effects.append(self._nobody_leads(partition))
        self._announced_ns = now_ns
        return [*effects, do.PublishWanted(state.wanted())]

    def _nobody_leads(self, partition: Partition) -> Effect:
        self._state.set_leadership(partition.key, VACANT)
        return do.PublishLeader(*partition.key, max(partition.leader_epoch, 0), None, None)

    def announce(self, now_ns: int) -> list[Effect]:
        """Ask the processes that have not registered with this coordinator to do so."""
        self._announced_ns = now_ns
        away = [p.number for p in self._state.processes.values() if p.state is ProcessState.AWAY]
        return [do.SendAnnounce(number) for number in away]

    def registered(self, event: ev.ProcessRegistered, now_ns: int) -> list[Effect]:
        """A process says that it is up, and what it leads."""
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
        effects: list[Effect] = [do.Reply(event.request, Registered(state.image.cluster_id, state.site.incarnation))]
        older = [found for found, owner in state.watched.items() if owner == number and found != incarnation]
        effects += [do.FenceProcess(number, found) for found in older]
        process = Process(number, incarnation, register.board, register.lane_socket, ProcessState.LIVE, now_ns)
        state.processes[number] = process
        if incarnation not in state.watched:
            state.watched[incarnation] = number
            effects.append(do.WatchProcess(number, incarnation))
        return effects + self._compare(register) + self._resume(register, now_ns)

    def _compare(self, register: Register) -> list[Effect]:
        """Believe what the log confirms of a process's holdings, and have it close what it should not have."""
        state, effects, strangers = self._state, list[Effect](), list[Revocation]()
        confirmed: set[int] = set()
        for held in register.holding:
            partition = state.image.partition(held.topic_id, held.partition)
            if partition is None:
                strangers.append(Revocation(held.topic_id, held.partition, delete=True))
                deletions = self._deletions.setdefault(register.incarnation, {})
                deletions[held.topic_id, held.partition] = held.copy_id
            elif partition.owner != register.number or partition.copy_id != held.copy_id:
                strangers.append(Revocation(held.topic_id, held.partition, delete=False))
            elif state.leadership(partition.key).standing is Standing.LEADING:
                continue
            elif is_confirmed(partition, held, register.incarnation):
                confirmed.add(partition.topic_id)
                effects += self._lead(partition)
        for key in self._deletions.get(register.incarnation, {}):
            if not any((one.topic_id, one.partition) == key for one in strangers):
                strangers.append(Revocation(*key, delete=True))
        if strangers:
            effects.append(do.SendRevoke(register.number, register.incarnation, strangers))
        # A coordinator may have died between writing a change of settings down and sending it.
        altered = [topic_id for topic_id in sorted(confirmed) if state.image.topics[topic_id].is_altered]
        return effects + [self._reconfigure(register.number, register.incarnation, topic_id) for topic_id in altered]

    def _reconfigure(self, number: int, incarnation: int, topic_id: int) -> Effect:
        settings = self._state.settings_of(self._state.image.topics[topic_id])
        return do.SendReconfigure(number, incarnation, topic_id, settings)

    def _resume(self, register: Register, now_ns: int) -> list[Effect]:
        """Have a process lead what it owns and does not lead: with a new epoch, or the one it was asked to take."""
        held = {(one.topic_id, one.partition) for one in register.holding}
        vacant, asked = [], []
        for partition in self._state.image.of_owner(register.number):
            standing = self._state.leadership(partition.key).standing
            if standing is Standing.ASKED and partition.leader_incarnation == register.incarnation:
                asked.append(partition)
            elif standing is not Standing.LEADING or partition.key not in held:
                vacant.append(partition)
        grants = self._grants(register.number, register.incarnation, asked)
        if not self._state.fixed_workers and len(vacant) > 1:
            return grants + self._separate(vacant)
        highest = {(one.topic_id, one.partition): one.leader_epoch for one in register.holding}
        return grants + self.elect(vacant, now_ns, epochs_seen=highest)

    def _separate(self, partitions: list[Partition]) -> list[Effect]:
        """Let a process of its own have each partition but the first: they were shared under other settings."""
        loads = self._state.image.owner_loads()
        first, *others = partitions
        indexes = lowest_free(len(others) + len(loads), ())
        numbers = [number for number in map(ids.worker_number, indexes) if number not in loads]
        entries: list[AnyEntry] = [Adopted(number, [p.copy_id]) for number, p in zip(numbers, others, strict=False)]

        def then(now_ns: int) -> list[Effect]:
            return [do.PublishWanted(self._state.wanted()), *self.elect([first], now_ns)]

        return self._journal.append(entries, durable=True, then=then)

    def died(self, number: int, incarnation: int, now_ns: int) -> list[Effect]:
        """A process has ended."""
        state = self._state
        if state.watched.pop(incarnation, None) is None:
            return []
        process = state.processes.get(number)
        if process is not None and process.incarnation == incarnation:
            process.state, process.since_ns = ProcessState.DEAD, now_ns
            if not state.image.of_owner(number) and number not in state.wanted():
                del state.processes[number]
        lost = [p for p in state.image.partitions() if p.leader_incarnation == incarnation]
        effects = [self._nobody_leads(partition) for partition in lost]
        copies = self._deletions.pop(incarnation, {})
        effects += [do.DeleteCopy(copy_id) for copy_id in copies.values()]
        self._dead_boards[incarnation] = (number, {partition.key for partition in lost})
        return effects + self._remove_boards() + self.elect(lost, now_ns)

    def _remove_boards(self) -> list[Effect]:
        done = [incarnation for incarnation, (_, waiting) in self._dead_boards.items() if not waiting]
        return [do.RemoveBoard(self._dead_boards.pop(incarnation)[0], incarnation) for incarnation in done]

    def _succeeded(self, key: Key) -> list[Effect]:
        if not self._dead_boards:
            return []
        for _, waiting in self._dead_boards.values():
            waiting.discard(key)
        return self._remove_boards()

    def elect(
        self, partitions: Iterable[Partition], now_ns: int, *, epochs_seen: dict[Key, int] | None = None
    ) -> list[Effect]:
        """Elect the owners of partitions, where they live and nobody else may. The last effect may be an append."""
        by_owner: dict[int, list[Partition]] = {}
        for partition in partitions:
            if self._state.live(partition.owner) is not None and self._state.is_free(partition):
                by_owner.setdefault(partition.owner, []).append(partition)
        if not by_owner:
            return []
        seen = epochs_seen or {}
        entries: list[AnyEntry] = []
        elected: list[tuple[int, int, list[Partition]]] = []
        for number, found in by_owner.items():
            incarnation = self._state.processes[number].incarnation
            epochs = [(*p.key, max(p.leader_epoch, seen.get(p.key, -1)) + 1) for p in found]
            entries.append(Elected(number, incarnation, epochs))
            elected.append((number, incarnation, found))

        def then(_: int) -> list[Effect]:
            return [effect for one in elected for effect in self._grants(*one)]

        def otherwise(error: BrokerError, at_ns: int) -> list[Effect]:
            for _, _, found in elected:
                for partition in found:
                    self._fail(partition.key, error.code, error.message, at_ns)
            return []

        return self._journal.append(entries, durable=False, then=then, otherwise=otherwise)

    def _grants(self, number: int, incarnation: int, partitions: list[Partition]) -> list[Effect]:
        for partition in partitions:
            before = self._state.leadership(partition.key)
            self._state.set_leadership(partition.key, Leadership(Standing.ASKED, attempts=before.attempts))
        return [do.SendGrant(number, incarnation, part) for part in self._state.grants_of(partitions)]

    def _fail(self, key: Key, error: int, message: str, now_ns: int) -> None:
        attempts = self._state.leadership(key).attempts
        wait_ms = min(GRANT_RETRY_MS << min(attempts, 16), GRANT_RETRY_MAX_MS)
        failed = Leadership(Standing.FAILED, error, message, attempts + 1, now_ns + wait_ms * NS_PER_MS)
        self._state.set_leadership(key, failed)

    def grant_answered(self, event: ev.GrantAnswered, now_ns: int) -> list[Effect]:
        """A process leads what it was granted, cannot, or did not say; then it is asked again, with the same epochs."""
        process = self._state.live(event.number)
        if process is None or process.incarnation != event.incarnation:
            return []
        asked = {
            partition.key: (partition, grant)
            for grant in event.grants
            if (partition := self._asked_by(grant)) is not None
        }
        if event.results is None:
            return self._grants(event.number, event.incarnation, [partition for partition, _ in asked.values()])
        answers = {(result.topic_id, result.partition): result for result in event.results}
        effects: list[Effect] = []
        outdated: set[int] = set()
        for key, (partition, grant) in asked.items():
            result = answers.get(key) or GrantResult(*key, InvalidRequestError.code, "no answer for it", -1, -1)
            if result.error:
                self._fail(key, result.error, result.message, now_ns)
                continue
            effects += self._lead(partition)
            topic = self._state.image.topics[partition.topic_id]
            if topic.is_altered and grant.config != self._state.settings_of(topic):
                outdated.add(topic.topic_id)
        # Settings that were changed between the grant and its answer may have come before the partition was open.
        return effects + [self._reconfigure(event.number, event.incarnation, topic_id) for topic_id in sorted(outdated)]

    def _asked_by(self, grant: PartitionGrant) -> Partition | None:
        """The partition, if this grant is the one whose answer is waited for."""
        partition = self._state.image.partition(grant.topic_id, grant.partition)
        if partition is None or partition.leader_epoch != grant.leader_epoch:
            return None
        return partition if self._state.leadership(partition.key).standing is Standing.ASKED else None

    def _lead(self, partition: Partition) -> list[Effect]:
        self._state.set_leadership(partition.key, LEADING)
        number, incarnation = partition.leader_number, partition.leader_incarnation
        leader = do.PublishLeader(*partition.key, partition.leader_epoch, number, incarnation)
        return [leader, *self._succeeded(partition.key)]

    def close(self, partitions: Iterable[Partition]) -> list[Effect]:
        """Have the copies of deleted partitions closed and removed, by whoever may have them open."""
        effects: list[Effect] = []
        revocations: dict[int, list[Revocation]] = {}
        for partition in partitions:
            key, incarnation = partition.key, partition.leader_incarnation
            self._state.forget(key)
            effects += [do.ForgetPartition(*key), *self._succeeded(key)]
            if incarnation in self._state.watched:
                self._deletions.setdefault(incarnation, {})[key] = partition.copy_id
                revocations.setdefault(incarnation, []).append(Revocation(*key, delete=True))
            else:
                effects.append(do.DeleteCopy(partition.copy_id))
        for incarnation, found in revocations.items():
            process = self._state.live(self._state.watched[incarnation])
            if process is not None and process.incarnation == incarnation:
                effects.append(do.SendRevoke(process.number, incarnation, found))
        return effects

    def revoke_answered(self, event: ev.RevokeAnswered) -> list[Effect]:
        """A process has closed copies; or it did not say, and is asked again for as long as it lives."""
        if not event.is_done:
            process = self._state.live(event.number)
            again = process is not None and process.incarnation == event.incarnation
            return [do.SendRevoke(event.number, event.incarnation, event.revocations)] if again else []
        waiting = self._deletions.get(event.incarnation, {})
        copies = [waiting.pop((one.topic_id, one.partition), None) for one in event.revocations]
        if not waiting:
            self._deletions.pop(event.incarnation, None)
        return [do.DeleteCopy(copy_id) for copy_id in copies if copy_id is not None]

    def reconfigured(self, event: ev.ReconfigureAnswered) -> list[Effect]:
        """A process has a topic's settings; or it did not say, and is sent those that are in force by now."""
        process = self._state.live(event.number)
        if event.is_done or process is None or process.incarnation != event.incarnation:
            return []
        if event.topic_id not in self._state.image.topics:
            return []
        return [self._reconfigure(event.number, event.incarnation, event.topic_id)]

    def reconfigure(self, topic_id: int) -> list[Effect]:
        """Send a topic's settings to every process that leads some of it."""
        owners = {partition.owner for partition in self._state.image.topics[topic_id].partitions}
        live = [process for number in sorted(owners) if (process := self._state.live(number)) is not None]
        return [self._reconfigure(process.number, process.incarnation, topic_id) for process in live]

    def retry(self, now_ns: int) -> list[Effect]:
        """Ask away processes to register. Elect again where a grant failed and its wait is over."""
        effects: list[Effect] = []
        if now_ns - self._announced_ns >= ANNOUNCE_INTERVAL_MS * NS_PER_MS:
            effects += self.announce(now_ns)
        due = sorted(key for key in self._state.failed if self._state.leadership(key).retry_ns <= now_ns)
        found = [partition for key in due if (partition := self._state.image.partition(*key)) is not None]
        return effects + self.elect(found, now_ns)

    def ready_if_so(self) -> list[Effect]:
        """Once: every wanted process has registered, and leads what it has or said that it cannot."""
        if self._is_ready:
            return []
        state = self._state
        if not all(state.live(number) for number in state.wanted()):
            return []
        owned = [p for p in state.image.partitions() if state.live(p.owner) is not None]
        if not all(state.is_settled(partition.key) for partition in owned):
            return []
        self._is_ready = True
        return [do.PublishReady()]


def _give_up(error: BrokerError, _: int) -> list[Effect]:
    """Without a written beginning there is nothing to coordinate."""
    raise error


def is_confirmed(partition: Partition, held: Held, incarnation: int) -> bool:
    """Whether the log says what a process says of its holding."""
    return partition.leader_epoch == held.leader_epoch and partition.leader_incarnation == incarnation


def is_older(incarnation: int, other: int) -> bool:
    """Whether a process certainly started before another."""
    # Apart from the pid, an incarnation is the time of its start; two of one clock tick are not told apart.
    return incarnation - ids.pid_of(incarnation) < other - ids.pid_of(other)
