"""How many partitions nobody leads, and how many have copies out of sync: on the coordinator's board, for `status`.

Guarantees: the figures are right within a tick of a change, and cost nothing while nothing changes. A copy that is
being made is not counted as missing.
"""

from __future__ import annotations

from zbroker.core.cluster import Cluster
from zbroker.core.cluster_state import Standing
from zbroker.shm.coordinator_board import CoordinatorBoardWriter
from zbroker.shm.layout import Counter


class PartitionCounts:
    """See the module."""

    def __init__(self, board: CoordinatorBoardWriter, cluster: Cluster) -> None:
        self._board = board
        self._cluster = cluster
        self._counted_version = -1
        self._offline = 0

    def look_again(self) -> None:
        """Something ended that may have led."""
        self._counted_version = -1

    def tick(self) -> None:
        """Count, if anything may have changed."""
        image, state = self._cluster.image, self._cluster.state
        if image.version == self._counted_version and not self._offline:
            return
        offline = behind = 0
        for partition in image.partitions():
            offline += state.leadership(partition.key).standing is not Standing.LEADING
            behind += len({copy.copy_id for copy in partition.copies} - {*partition.isr, *partition.adding}) > 0
        self._counted_version, self._offline = image.version, offline
        self._board.set_counter(Counter.PARTITIONS_OFFLINE, offline)
        self._board.set_counter(Counter.PARTITIONS_BEHIND, behind)
