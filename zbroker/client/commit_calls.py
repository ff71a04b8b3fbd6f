"""The calls of a consumer that are about its group: what is committed, and what was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, overload

from zbroker.client.group_commits import Callback
from zbroker.client.membership import ConsumerGroupMetadata, Membership
from zbroker.client.settings import ConsumerSettings
from zbroker.client.single_use import SingleUse
from zbroker.errors import CommitFailedError, InvalidGroupIdError
from zbroker.ids import TopicPartition
from zbroker.record.records import ConsumerRecord, OffsetAndMetadata
from zbroker.shm.commit_slots import SlotPlace

Partition: TypeAlias = TopicPartition | tuple[str, int]
ToCommit: TypeAlias = ConsumerRecord[Any, Any] | Mapping[Any, int | OffsetAndMetadata] | None


class CommitCalls:
    """See the module; a part of `Consumer`. Without a `group_id` every call raises InvalidGroupIdError."""

    settings: ConsumerSettings
    _use: SingleUse
    _group: Membership | None
    _slots: Mapping[str, Mapping[int, SlotPlace]]

    def commit(self, offsets: ToCommit = None, durable: bool = False, timeout_ms: float | None = None) -> None:
        """Return when the group's progress is kept: it survives the death of this process and of the coordinator.

        None: the position of every partition, which is behind all that was given out. A record: the place behind it;
        this costs a store into shared memory, so each record may be committed. A mapping of partitions: these offsets,
        with or without a note. `durable`: it survives a loss of power as well. The last commit counts: going back is
        allowed.

        Name what follows the offsets. (It is not keyword-only: CPython 3.11 takes 55 ns a call to fill in defaults.)

        Raises CommitFailedError for a partition that was taken from this consumer or is not its own; TimeoutError_,
        where a message is needed (`durable`, a note, a consumer that cannot map files). A record may be committed by
        another thread than the one that polls, by one at a time.
        """
        if type(offsets) is ConsumerRecord and not durable:
            try:
                committed, is_closed = self._slots[offsets.topic][offsets.partition]
            except KeyError:
                if self._store(offsets):
                    return
            else:
                committed[0] = offsets.offset  # as the place behind it is stored
                if is_closed:
                    raise CommitFailedError(f"{offsets.tp} was taken from this consumer")
                return
        self._commit(offsets, durable, timeout_ms)

    def _commit(self, offsets: ToCommit, durable: bool, timeout_ms: float | None) -> None:
        with self._use:
            group = self._member_of_group()
            chosen = self._to_commit(group, offsets)
            wait_ms = self.settings.request_timeout_ms if timeout_ms is None else int(timeout_ms)
            group.commits.commit(chosen, durable=durable, timeout_ms=wait_ms, is_member=group.is_member)
            group.run_callbacks()

    def _store(self, record: ConsumerRecord[Any, Any]) -> bool:
        """Commit a record by a store with a fence. False: it is not this consumer's, or is committed by a message."""
        store = self._group.commits.stores.get(record.tp) if self._group is not None else None
        if store is None:
            return False
        try:
            store(record.offset + 1)
        except CommitFailedError:
            raise CommitFailedError(f"{record.tp} was taken from this consumer") from None
        return True

    def commit_async(self, offsets: ToCommit = None, *, callback: Callback | None = None) -> None:
        """Begin a commit. `callback(offsets, error)` is called once it has ended, inside a later `poll`, `commit` or
        `close`; error None: it is kept. A failed one is not tried again."""
        with self._use:
            group = self._member_of_group()
            chosen = self._to_commit(group, offsets)
            wait_ms = self.settings.request_timeout_ms
            group.commits.commit_async(chosen, callback, timeout_ms=wait_ms, is_member=group.is_member)

    @overload
    def committed(self, partition: Partition, /, *, timeout_ms: float | None = None) -> OffsetAndMetadata | None: ...
    @overload
    def committed(
        self, partitions: Iterable[Partition], /, *, timeout_ms: float | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata | None]: ...
    def committed(
        self, partitions: Partition | Iterable[Partition], /, *, timeout_ms: float | None = None
    ) -> OffsetAndMetadata | dict[TopicPartition, OffsetAndMetadata | None] | None:
        """What the group has committed of a partition, or of several: by any member, now. None: nothing."""
        with self._use:
            wait_ms = self.settings.request_timeout_ms if timeout_ms is None else int(timeout_ms)
            found = self._member_of_group().commits.committed(wait_ms)
        if isinstance(partitions, tuple) and len(partitions) == 2 and isinstance(partitions[0], str):
            return found.get(TopicPartition(*partitions))
        return {TopicPartition(*one): found.get(TopicPartition(*one)) for one in partitions}

    def group_metadata(self) -> ConsumerGroupMetadata:
        """Who this consumer is in its group."""
        with self._use:
            return self._member_of_group().metadata()

    def _member_of_group(self) -> Membership:
        if self._group is None:
            raise InvalidGroupIdError("this consumer has no group", hint="Consumer(..., group_id='NAME')")
        return self._group

    def _to_commit(self, group: Membership, offsets: ToCommit) -> dict[TopicPartition, OffsetAndMetadata]:
        if offsets is None:
            return group.positions()
        if isinstance(offsets, ConsumerRecord):
            return {offsets.tp: OffsetAndMetadata(offsets.offset + 1)}
        chosen = {}
        for tp, one in offsets.items():
            entry = OffsetAndMetadata(one) if isinstance(one, int) else one
            if not isinstance(entry, OffsetAndMetadata) or entry.offset < 0:
                raise ValueError(f"{tp}: {one!r} is neither an offset nor an OffsetAndMetadata")
            chosen[TopicPartition(*tp)] = entry
        return chosen
