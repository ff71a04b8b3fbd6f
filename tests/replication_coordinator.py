"""A model of the coordinator for one partition: who is in sync, who leads, by the rules of KIP-497 and KIP-966.

It never forgets and never dies; what it says may be lost, and is said again until it is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from zbroker.errors import (
    BrokerError,
    FencedLeaderEpochError,
    InvalidUpdateVersionError,
    StaleIncarnationError,
)


class Grant(NamedTuple):
    """What a process is told."""

    to: int
    incarnation: int
    leader_epoch: int
    leader: int
    copies: tuple[int, ...]
    isr: tuple[int, ...]
    elr: tuple[int, ...]
    partition_epoch: int
    predecessor: int
    has_noted_suspect: bool = False


class GrantAnswer(NamedTuple):
    """What it answers."""

    number: int
    incarnation: int
    leader_epoch: int
    partition_epoch: int
    last_epoch: int
    log_end: int
    is_suspect: bool


class AlterIsr(NamedTuple):
    """What a leader asks."""

    number: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[int, ...]
    incarnations: tuple[int, ...]


class IsrAnswer(NamedTuple):
    """What it gets: `error` or what holds."""

    leader_epoch: int
    asked_partition_epoch: int
    error: BrokerError | None
    partition_epoch: int
    isr: tuple[int, ...]
    elr: tuple[int, ...]


@dataclass
class Process:
    """What the coordinator knows of a live process."""

    incarnation: int
    answered: tuple[int, int] = (-1, -1)  # (leader epoch, partition epoch) of its newest answer
    is_suspect: bool = False
    was_suspect: bool = False  # it said so, and that counted
    at: tuple[int, int] | None = None  # (last epoch, log end) that it reported after a power cut


class Coordinator:
    """See the module."""

    def __init__(self, copies: tuple[int, ...], min_insync: int) -> None:
        self.copies = copies
        self.min_insync = min(min_insync, len(copies))
        self.isr: tuple[int, ...] = copies
        self.elr: tuple[int, ...] = ()
        self.partition_epoch = 0
        self.leader_epoch = -1
        self.leader = -1
        self.predecessor = -1
        self.must_step_down = -1  # the old leader of a move: it answers before the new one is told
        self.must_compare = False  # after a power cut: ask all how far they are before anybody leads
        self.elections = 0
        self.alive: dict[int, Process] = {}

    # --- what happens ------------------------------------------------------------------------------------------------

    def registered(self, number: int, incarnation: int) -> None:
        self.alive[number] = Process(incarnation)
        if self.leader < 0 or self.leader not in self.alive:
            self.elect()

    def died(self, number: int, incarnation: int) -> None:
        """Proven: this incarnation will never do anything again."""
        process = self.alive.get(number)
        if process is None or process.incarnation != incarnation:
            return
        del self.alive[number]
        if self.must_step_down == number:
            self.must_step_down = -1
        if number in self.isr and len(self.isr) > 1:
            self._change(tuple(one for one in self.isr if one != number))
        if self.leader == number:
            self.elect()

    def power_cut(self) -> None:
        """Everybody died at once, and may have lost what was not synced: whoever is furthest leads."""
        for number in list(self.alive):
            del self.alive[number]
        self.leader, self.must_step_down = -1, -1
        self.leader_epoch += 1
        self.partition_epoch += 1
        self.predecessor = -1
        self.must_compare = True

    def answered(self, answer: GrantAnswer) -> None:
        process = self.alive.get(answer.number)
        if process is None or process.incarnation != answer.incarnation:
            return
        if answer.is_suspect and process.was_suspect:
            return  # said again, or before it was told that this was noted: it still has to be told
        process.answered = max(process.answered, (answer.leader_epoch, answer.partition_epoch))
        if self.must_compare and answer.leader_epoch == self.leader_epoch:
            process.at = (answer.last_epoch, answer.log_end)
            self.elect()
            return
        if answer.is_suspect and not process.was_suspect:
            process.is_suspect = process.was_suspect = True
            process.answered = (-1, -1)  # it is told that this was noted
            self.suspect(answer.number)
        if self.must_step_down == answer.number and answer.leader_epoch == self.leader_epoch:
            self.must_step_down = -1

    def suspect(self, number: int) -> None:
        """It lost something: it is neither in sync nor eligible."""
        if number in self.isr or number in self.elr:
            isr = tuple(one for one in self.isr if one != number)
            self.elr = tuple(one for one in self.elr if one != number)
            self._change(isr, lost=number)
        if self.leader == number or self.leader < 0:
            self.elect()

    def move(self) -> bool:
        """Let another copy in sync lead, while the leader lives."""
        others = [one for one in self.isr if one != self.leader and one in self.alive]
        if self.leader not in self.alive or self.must_step_down >= 0 or not others:
            return False
        self.must_step_down = self.leader
        self._lead(others[0])
        return True

    def alter(self, asked: AlterIsr) -> IsrAnswer:
        error = self._objection(asked)
        if error is None:
            self._change(asked.isr)
            for number in asked.isr:
                if number in self.alive:
                    self.alive[number].is_suspect = False
        return IsrAnswer(asked.leader_epoch, asked.partition_epoch, error, self.partition_epoch, self.isr, self.elr)

    def _objection(self, asked: AlterIsr) -> BrokerError | None:
        if asked.leader_epoch != self.leader_epoch or asked.number != self.leader:
            return FencedLeaderEpochError()
        if asked.partition_epoch != self.partition_epoch:
            return InvalidUpdateVersionError()
        for number, incarnation in zip(asked.isr, asked.incarnations, strict=True):
            if number in self.isr:
                continue
            process = self.alive.get(number)
            if process is None or process.incarnation != incarnation:
                return StaleIncarnationError()
        return None

    # --- what follows ------------------------------------------------------------------------------------------------

    def _change(self, isr: tuple[int, ...], lost: int = -1) -> None:
        if len(isr) < self.min_insync:
            before = (*self.isr, *self.elr)
            self.elr = tuple(dict.fromkeys(one for one in before if one not in isr and one != lost))
        else:
            self.elr = ()
        self.isr = isr
        self.partition_epoch += 1

    def elect(self) -> None:
        if self.must_compare:
            self._elect_furthest()
            return
        candidates = [one for one in (*self.isr, *self.elr) if one in self.alive and not self.alive[one].is_suspect]
        if candidates:
            self._lead(candidates[0])
        elif self.leader >= 0:
            self.predecessor = self.leader
            self.leader = -1

    def _elect_furthest(self) -> None:
        # All copies, not only those in sync: the ones that have it on their disks may have left meanwhile. Whatever was
        # acknowledged is in every log of a later epoch, so that the furthest has it if any has.
        if any(one not in self.alive or self.alive[one].at is None for one in self.copies):
            return
        self.must_compare = False
        best = max(self.copies, key=lambda one: self.alive[one].at or (-1, -1))
        self.isr, self.elr = (best,), ()
        self._lead(best)

    def _lead(self, number: int) -> None:
        if self.leader >= 0:
            self.predecessor = self.leader
        if number not in self.isr:
            self.elr = tuple(one for one in (*self.isr, *self.elr) if one != number)
            self.isr = (number,)
            self.partition_epoch += 1
        if self.must_step_down == number:
            self.must_step_down = -1
        self.leader = number
        self.leader_epoch += 1
        self.elections += 1

    def grants(self) -> list[Grant]:
        """What has not been answered yet by those who live."""
        if self.leader < 0 and not self.must_compare:
            return []
        newest = (self.leader_epoch, self.partition_epoch)
        found = []
        for number, process in self.alive.items():
            if process.answered >= newest:
                continue
            if number == self.leader and self.must_step_down >= 0:
                continue
            where = (number, process.incarnation, self.leader_epoch, self.leader)
            news = (self.copies, self.isr, self.elr, self.partition_epoch)
            found.append(Grant(*where, *news, self.predecessor, process.was_suspect))
        return found
