"""What replication promises, checked from outside after every event. A broken promise raises `ViolationError`.

one leader in an epoch                                   what readers could see once, every later leader has
the high watermark only rises, and is nowhere above      the same (epoch, offset) is the same record behind the
the log end of a copy that may be elected                same records, in every log (replication_log.Written)
acks=all is answered for what readers can see, acks=fsync when enough copies have it on their disks
after a power cut everything that acks=fsync was answered for is there
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from tests.replication_coordinator import Coordinator
from tests.replication_log import Item, ViolationError
from zbroker.core.partition import ACKS_ALL, ACKS_FSYNC

if TYPE_CHECKING:
    from tests.replication_node import Node, Request


class Promises:
    """See the module."""

    def __init__(self, coordinator: Coordinator, nodes: Callable[[], list[Node]], *, has_zombies: bool) -> None:
        self._coordinator = coordinator
        self._nodes = nodes
        self._has_zombies = has_zombies
        self.committed: list[Item] = []  # what readers could see
        self.on_disk: dict[int, int] = {}  # acks=fsync that was answered: offset -> value
        self.lossy: dict[int, bool] = {}  # copies that lost something -> whether they have left ISR and ELR since
        self.is_after_power_cut = False
        self.unanswered: dict[int, int] = {}  # value -> acks
        self.counts: dict[str, int] = {}
        self._leaders: dict[int, tuple[int, int]] = {}  # epoch -> (node, incarnation)
        self._boards: dict[int, int] = {}  # epoch -> highest high watermark published in it

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def begins_to_lead(self, node: Node, epoch: int) -> None:
        """Leader completeness, and one leader in an epoch."""
        self.count("leaders")
        who = (node.number, node.incarnation)
        if self._leaders.setdefault(epoch, who) != who:
            raise ViolationError(f"epoch {epoch} has the leaders {self._leaders[epoch]} and {who}")
        if epoch != self._coordinator.leader_epoch:
            return
        if self.is_after_power_cut:
            self._compare_disks(node)
        seen, log = self.committed, node.log
        if log.slice(log.base, len(seen)) != seen[log.base :]:
            raise ViolationError(
                f"leader {node.number} of epoch {epoch} ends at {log.log_end}; readers saw {len(seen)}"
            )

    def _compare_disks(self, node: Node) -> None:
        self.is_after_power_cut = False
        log = node.log
        for offset, value in self.on_disk.items():
            if offset >= log.base and (offset >= log.log_end or log.at(offset)[1] != value):
                raise ViolationError(
                    f"{value} at {offset}, acknowledged with acks=fsync, did not survive the power cut"
                )
        common = log.base
        while common < min(len(self.committed), log.log_end) and self.committed[common] == log.at(common):
            common += 1
        del self.committed[common:]

    def published(self, node: Node) -> None:
        """A leader showed its high watermark."""
        one = node.leader
        assert one is not None
        epoch, high_watermark = one.leader_epoch, one.high_watermark
        known = self._boards.get(epoch)
        self._boards[epoch] = high_watermark
        if known is not None and high_watermark < known:
            raise ViolationError(f"high watermark {high_watermark} after {known} in epoch {epoch}")
        if high_watermark > node.log.log_end:
            raise ViolationError(f"high watermark {high_watermark} above the log end {node.log.log_end}")
        seen, log = self.committed, node.log
        is_newest = epoch == self._coordinator.leader_epoch
        # With a copy that loses its disk's cache its board is lost too; readers' leaders are all dead then.
        has_boards = not self._has_zombies and not self.counts.get("lossy kills") and not self.counts.get("power cuts")
        if known is None and is_newest and high_watermark < len(seen) and has_boards:
            raise ViolationError(f"the first high watermark {high_watermark} of epoch {epoch} is below {len(seen)}")
        shared = min(high_watermark, len(seen))
        if shared > log.base and log.at(shared - 1) != seen[shared - 1]:
            raise ViolationError(f"readers saw {seen[shared - 1]} at {shared - 1}, now {log.at(shared - 1)}")
        if high_watermark > len(seen):
            self._check_eligible(node, high_watermark)
            seen.extend(log.slice(len(seen), high_watermark))

    def _check_eligible(self, node: Node, high_watermark: int) -> None:
        """Whoever may be elected has what readers can see from now on."""
        coordinator = self._coordinator
        nodes = self._nodes()
        for number in (*coordinator.isr, *coordinator.elr):
            log = nodes[number].log
            if log.log_end < high_watermark and number not in self.lossy:
                raise ViolationError(
                    f"high watermark {high_watermark} above the log end {log.log_end} of eligible {number}"
                )
        one = node.leader
        if one is None or one.progress is None or len(coordinator.isr) >= coordinator.min_insync:
            return
        if one.progress.copies.partition_epoch == coordinator.partition_epoch:
            raise ViolationError(f"high watermark {high_watermark} with {coordinator.isr} in sync")

    def acknowledged(self, request: Request, base_offset: int) -> None:
        """A producer got its answer."""
        value, acks = request
        if value not in self.unanswered:
            raise ViolationError(f"{value} was answered twice")
        del self.unanswered[value]
        self.count(f"acks {acks}")
        if acks not in (ACKS_ALL, ACKS_FSYNC):
            return
        if base_offset >= len(self.committed) or self.committed[base_offset][1] != value:
            raise ViolationError(f"{value} was acknowledged at {base_offset} and cannot be read")
        # What was deleted meanwhile need not be anywhere.
        is_deleted = base_offset < max(one.log.log_start for one in self._nodes())
        if acks == ACKS_FSYNC and not is_deleted:
            item = self.committed[base_offset]
            logs = [one.log for one in self._nodes() if one.log.base <= base_offset < one.log.synced]
            disks = sum(log.at(base_offset) == item for log in logs)
            if disks < self._coordinator.min_insync:
                raise ViolationError(f"{value} was acknowledged with acks=fsync and {disks} disks")
            self.on_disk[base_offset] = value

    def cuts(self, node: Node, offset: int) -> None:
        """A follower cuts nothing that readers could see."""
        self.count("cuts")
        if offset < min(len(self.committed), node.log.log_end) and node.log.at(offset) == self.committed[offset]:
            raise ViolationError(f"{node.number} cuts {self.committed[offset]} at {offset}, which readers could see")

    def loses(self, number: int) -> None:
        """A copy lost what was not on its disk."""
        self.lossy[number] = False

    def look_at_isr(self, unproven: Collection[tuple[int, int]]) -> None:
        """A copy that lost something counts again when it has left, and was taken in again.

        While its death is `unproven` (number, incarnation) it may be taken in as what it was before.
        """
        coordinator = self._coordinator
        for number, has_left in list(self.lossy.items()):
            is_eligible = number in coordinator.isr or number in coordinator.elr
            if not is_eligible:
                self.lossy[number] = True
            elif any(number == dead for dead, _ in unproven):
                self.lossy[number] = False
            elif has_left:
                del self.lossy[number]
