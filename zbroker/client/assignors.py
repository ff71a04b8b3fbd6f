"""Which assignors a consumer names: those of the broker, and callables of the application that this process runs.

A callable gets the members and the topics, and gives each member its partitions:

    def by_size(members: Sequence[SubscribedMember], topics: Sequence[AssignableTopic]) -> Mapping[str, Iterable[...]]:
        return {member.member_id: [(topic.name, 0), ...] for member in members}

The coordinator checks the answer, and assigns by itself ("sticky") when it is wrong, late, or an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from zbroker.errors import ConfigError
from zbroker.wire.group_messages import AssignableTopic, AssignWork, MemberTarget, SubscribedMember

NAMES: Final = ("sticky", "range", "roundrobin", "single-active")

Assignor: TypeAlias = Callable[
    [Sequence[SubscribedMember], Sequence[AssignableTopic]], Mapping[str, Iterable[tuple[str, int]]]
]

_log = logging.getLogger(__name__)


class Assignors:
    """The assignors of one consumer, the one that it wants most first."""

    def __init__(self, strategy: object) -> None:
        """`strategy`: a name, a callable, or a sequence of them. Raises ConfigError."""
        chosen: Iterable[object] = (
            strategy if isinstance(strategy, Sequence) and not isinstance(strategy, str) else [strategy]
        )
        self._own: dict[str, Assignor] = {}
        self.names: list[str] = []
        for one in chosen:
            name = one if isinstance(one, str) else self._add(one)
            if isinstance(one, str) and one not in NAMES:
                raise ConfigError(
                    f"partition_assignment_strategy: {one!r} is not one of {', '.join(NAMES)} or a callable"
                )
            self.names.append(name)
        if not self.names:
            raise ConfigError("partition_assignment_strategy: at least one")

    def _add(self, one: Any) -> str:
        if not callable(one):
            raise ConfigError(f"partition_assignment_strategy: {one!r} is neither a name nor a callable")
        call = one() if isinstance(one, type) else one
        kind = one if hasattr(one, "__qualname__") else type(one)
        name = str(getattr(one, "name", "") or f"{kind.__module__}.{kind.__qualname__}")
        self._own[name] = call
        return name

    def compute(self, work: AssignWork) -> tuple[list[MemberTarget], str]:
        """The result of an assignor, and why there is none."""
        call = self._own.get(work.assignor)
        if call is None:
            return [], f"this consumer has no assignor {work.assignor!r}"
        try:
            topic_ids = {topic.name: topic.topic_id for topic in work.topics}
            found = call(work.members, work.topics)
            return [
                MemberTarget(member_id, [(topic_ids[topic], int(number)) for topic, number in partitions])
                for member_id, partitions in found.items()
            ], ""
        except Exception as error:
            _log.exception("assignor %s failed", work.assignor)
            return [], f"{type(error).__name__}: {error}"
