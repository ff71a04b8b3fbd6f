"""A batch that was refused is not overtaken by the next one of the same producer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zbroker.errors import DiskFullError, NotEnoughReplicasError, RecordListTooLargeError
from zbroker.wire.layout import FLAG_FIRST, Api, pack_request, unpack_header
from zbroker.workers.refusals import SENDERS_MAX, Refusals
from zbroker.workers.request import Frame, Request


class Nowhere:
    def send(self, frames: Sequence[Frame]) -> None:
        pass

    def rouse(self) -> bool:
        return False


def request(route: Nowhere, *, is_first: bool = False, acks: int = -1) -> Request:
    raw = pack_request(Api.PRODUCE, 1, 16, acks=acks, flags=FLAG_FIRST if is_first else 0)
    return Request(unpack_header(raw), [], route, 0)


def test_batches_behind_a_refused_one_are_refused_until_nothing_is_under_way() -> None:
    refusals, route, other = Refusals(), Nowhere(), Nowhere()
    assert not refusals
    refusals.note(request(route), NotEnoughReplicasError("one copy"))
    for _ in range(3):
        with pytest.raises(NotEnoughReplicasError):
            refusals.check(request(route))
    refusals.check(request(other))
    refusals.check(request(route, is_first=True))
    refusals.check(request(route))
    assert not refusals


@pytest.mark.parametrize(
    ("acks", "error"),
    [(0, DiskFullError("full")), (1, RecordListTooLargeError("never taken, so nothing waits for it"))],
)
def test_what_is_not_sent_again_holds_nothing_up(acks: int, error: DiskFullError | RecordListTooLargeError) -> None:
    refusals, route = Refusals(), Nowhere()
    refusals.note(request(route, acks=acks), error)
    refusals.check(request(route))


def test_only_so_many_senders_are_remembered() -> None:
    refusals = Refusals()
    routes = [Nowhere() for _ in range(SENDERS_MAX + 10)]
    for route in routes:
        refusals.note(request(route), DiskFullError("full"))
    assert len(refusals) == SENDERS_MAX
    refusals.check(request(routes[0]))
    with pytest.raises(DiskFullError):
        refusals.check(request(routes[-1]))
