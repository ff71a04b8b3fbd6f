"""What the state machine of a led partition keeps, and what follows from it: high watermark, waits, answers owed.

`Partition` (partition.py) is this with events; nothing else uses it. Every function here leaves the invariants that are
written there, and appends to the effects what must be done about the change, in the order that is written there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from enum import Enum
from typing import Final, Protocol

from zbroker.clock import NS_PER_MS
from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition_events import Copies, Effect
from zbroker.core.progress import Progress
from zbroker.errors import BrokerError, DiskFullError, StorageError
from zbroker.record.layout import BatchHeader

LAG_MAX_MS: Final = 5_000

Waiting = deque[tuple[int, int, object]]  # (next offset, base offset, request), by next offset


class State(Enum):
    """What the partition takes. See the module."""

    LEADING = "leading"
    FULL = "full"
    OFFLINE = "offline"
    REVOKED = "revoked"


# Looking a member up by its class costs more than the rest of such a question does.
OFFLINE: Final = State.OFFLINE
REVOKED: Final = State.REVOKED


class Sequences(Protocol):
    """What is known of producers' batches. Whoever does `Write` notes each batch in it."""

    def judge(self, batch: BatchHeader) -> tuple[int, int] | BrokerError | None:
        """None: append it. A pair: it was appended before, with these (base offset, next offset)."""


class PartitionState:
    """See the module."""

    __slots__ = (
        "_dirty_since_ns",
        "_flush_target",
        "_is_epoch_durable",
        "_is_flush_shared",
        "_lag_max_ns",
        "_own",
        "_progress",
        "_refusal",
        "_sequences",
        "_uncopied",
        "_unflushed",
        "_waits",
        "config",
        "durable",
        "high_watermark",
        "isr_size",
        "leader_epoch",
        "log_end",
        "log_start",
        "state",
    )

    def __init__(
        self,
        leader_epoch: int,
        log_start: int,
        log_end: int,
        durable: int,
        config: TopicConfig,
        *,
        own: int = -1,
        copies: Copies | None = None,
        high_watermark: int = 0,
        lag_max_ms: int = LAG_MAX_MS,
        is_epoch_durable: bool = True,
        sequences: Sequences | None = None,
        now_ns: int = 0,
    ) -> None:
        """Lead from `log_end` on. `own` is our copy's number and `copies` are all; without them there is one copy.

        `high_watermark` is the highest that any reader may have seen; with one copy it is the log end, whatever it was.
        """
        assert 0 <= log_start <= log_end, f"{log_start}..{log_end}"
        assert durable <= log_end
        self.leader_epoch = leader_epoch
        self.log_start = log_start
        self.log_end = log_end
        self.high_watermark = max(log_start, min(high_watermark, log_end))
        self.durable = durable
        self.config = config
        self.state = State.LEADING
        self.isr_size = 1
        self._own = own
        self._lag_max_ns = lag_max_ms * NS_PER_MS
        self._is_epoch_durable = is_epoch_durable
        self._sequences = sequences
        self._refusal: BrokerError | None = None
        self._waits: dict[int, int] = {}
        self._uncopied: Waiting = deque()  # acks=all
        self._unflushed: Waiting = deque()  # acks=fsync
        self._flush_target: int | None = None
        self._is_flush_shared = False
        self._dirty_since_ns: int | None = now_ns if durable < log_end else None
        self._progress: Progress | None = None
        if copies is None:
            self.high_watermark = log_end
        else:
            self._use(copies, now_ns)
            self._raise_high_watermark(now_ns)

    @property
    def wait_count(self) -> int:
        """How many waits are open."""
        return len(self._waits)

    @property
    def waits(self) -> Collection[int]:
        """The numbers of the open waits."""
        return self._waits.keys()

    @property
    def is_flushing(self) -> bool:
        """Whether a flush is under way."""
        return self._flush_target is not None

    @property
    def progress(self) -> Progress | None:
        """How far the other copies are, to be read; None when there are none."""
        return self._progress

    def _begin_flush(self, effects: list[Effect]) -> None:
        if self._flush_target is None:
            self._flush_target = self.log_end
            effects.append(ev.Flush(self._is_flush_shared))

    def _take_passed(self) -> list[int]:
        high_watermark = self.high_watermark
        passed = [wait for wait, offset in self._waits.items() if offset < high_watermark]
        for wait in passed:
            del self._waits[wait]
        return passed

    def _wake_passed(self, effects: list[Effect]) -> None:
        passed = self._take_passed()
        if passed:
            effects.append(ev.Wake(passed))

    def _set_full(self, error: DiskFullError) -> None:
        if self.state is State.LEADING:
            self.state = State.FULL
            self._refusal = error

    def _go_offline(self, error: BrokerError) -> list[Effect]:
        if self.state is OFFLINE:
            return []
        self.state = State.OFFLINE
        self._refusal = error if isinstance(error, StorageError) else StorageError(error.message)
        self._flush_target = None
        return self._refuse_waiting(self._refusal)

    def _refuse_waiting(self, error: BrokerError) -> list[Effect]:
        return refuse_all(self._uncopied, error) + refuse_all(self._unflushed, error)

    # --- with other copies -------------------------------------------------------------------------------------------

    def _use(self, copies: Copies, now_ns: int) -> None:
        progress = self._progress
        if progress is not None:
            progress.adopt(copies, now_ns)
        else:
            progress = Progress(self._own, copies, self.log_end, self._lag_max_ns, now_ns)
        self.isr_size = progress.isr_size
        self._progress = progress

    def _copies_moved(self, now_ns: int) -> list[Effect]:
        effects: list[Effect] = []
        if self.state is OFFLINE:
            return effects
        if self._raise_high_watermark(now_ns):
            effects.append(ev.Publish(self.high_watermark))
            self._follow_high_watermark(effects)
            effects.append(ev.Tell())
        elif self._unflushed:
            self._answer_waiting(effects)
        self._look_at_copies(effects, now_ns)
        return effects

    def _raise_high_watermark(self, now_ns: int) -> bool:
        assert self._progress is not None
        found = self._progress.high_watermark(self.log_end, self.config.min_insync_replicas, now_ns)
        if found <= self.high_watermark:
            return False
        self.high_watermark = found
        return True

    def _follow_high_watermark(self, effects: list[Effect]) -> None:
        if self._waits:
            self._wake_passed(effects)
        self._answer_waiting(effects)

    def _answer_waiting(self, effects: list[Effect]) -> None:
        """Acknowledge everything that has what it waits for."""
        waiting, bound = self._uncopied, self.high_watermark
        while waiting and waiting[0][0] <= bound:
            _, base_offset, request = waiting.popleft()
            effects.append(ev.Acknowledge(request, base_offset))
        waiting = self._unflushed
        if not waiting or not self._is_epoch_durable:
            return
        durable = self.durable
        if self._progress is not None:
            durable = self._progress.durable_on(self.config.min_insync_replicas, durable)
        bound = min(bound, durable)
        while waiting and waiting[0][0] <= bound:
            _, base_offset, request = waiting.popleft()
            effects.append(ev.Acknowledge(request, base_offset))

    def _look_at_copies(self, effects: list[Effect], now_ns: int) -> None:
        assert self._progress is not None
        if self.state is not OFFLINE:
            proposal = self._progress.proposal(self.leader_epoch, self.high_watermark, now_ns)
            if proposal is not None:
                effects.append(proposal)


def refuse_all(waiting: Waiting, error: BrokerError) -> list[Effect]:
    """Answer everybody in it with an error."""
    refusals: list[Effect] = [ev.Refuse(request, error) for _, _, request in waiting]
    waiting.clear()
    return refusals
