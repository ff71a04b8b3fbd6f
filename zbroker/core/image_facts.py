"""The facts that an image is made of: topics, partitions, copies. Only `Image.apply` changes them."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

Key = tuple[int, int]
NOBODY: Final = -1


class Copy(Struct):
    """A copy: its permanent number, its disk, the process that has it, and the one it was placed on."""

    copy_id: int
    disk: str
    owner: int
    home: int


class Partition(Struct):
    """A partition's facts: its copies, the preferred one first, those in sync, and who was elected last.

    Invariants: leader epochs and partition epochs grow; `isr` is never empty; a process has one copy at most.
    `leader_incarnation` is 0 when no process can have been granted `leader_epoch`; `leader_copy` led, or is to lead.
    `formers` are incarnations that may still lead an earlier epoch unless they are dead: they were alive when another
    was elected.
    """

    topic_id: int
    partition: int
    copies: list[Copy]
    isr: list[int]
    elr: list[int] = []
    partition_epoch: int = 0
    leader_epoch: int = -1
    leader_number: int = NOBODY
    leader_incarnation: int = 0
    leader_copy: int = 0
    formers: list[int] = []
    adding: list[int] = []
    removing: list[int] = []

    @property
    def key(self) -> Key:
        """(topic id, partition)."""
        return (self.topic_id, self.partition)

    @property
    def copy_id(self) -> int:
        """The preferred copy's number."""
        return self.copies[0].copy_id

    @property
    def owner(self) -> int:
        """The process that has the preferred copy."""
        return self.copies[0].owner

    @property
    def is_unsure(self) -> bool:
        """Whether the host was started anew since the last election: what was in sync may have lost what it had."""
        return self.leader_number == NOBODY and self.leader_epoch >= 0

    @property
    def candidates(self) -> list[Copy]:
        """The copies that may be elected with nothing lost: those in sync first, the preferred one first of these."""
        return [copy for ids in (self.isr, self.elr) for copy in self.copies if copy.copy_id in ids]

    def copy(self, copy_id: int) -> Copy | None:
        """The copy of this number."""
        return next((copy for copy in self.copies if copy.copy_id == copy_id), None)

    def copy_at(self, number: int) -> Copy | None:
        """The copy that a process has."""
        return next((copy for copy in self.copies if copy.owner == number), None)

    @property
    def leader(self) -> Copy:
        """The copy that leads, or is to lead, or led last; the preferred one when that is gone."""
        return self.copy(self.leader_copy) or self.copies[0]


class Topic(Struct):
    """A topic's facts. Partitions are numbered from 0 without gaps."""

    topic_id: int
    name: str
    config: dict[str, str]
    partitions: list[Partition]
    is_altered: bool = False  # its settings are not those it was created with
