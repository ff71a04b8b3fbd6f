"""What the router remembers of requests that are not answered yet."""

from __future__ import annotations

import pytest

from zbroker import ids
from zbroker.wire.layout import Api, Header, pack_request, unpack_header
from zbroker.workers.forwarded import OWED_MAX, Forwarded

WORKER = ids.worker_number(0)
HERE, THERE = b"\0here", b"\0then"
ASKER, OTHER = b"fasker", b"tother"


def asked(correlation: int, api: int = Api.FETCH, acks: int = 0) -> Header:
    return unpack_header(pack_request(api, correlation, WORKER, acks=acks))


@pytest.fixture
def forwarded() -> Forwarded:
    found = Forwarded()
    found.meet(HERE, 7)
    return found


def test_what_is_not_answered_is_given_once_the_oldest_first(forwarded: Forwarded) -> None:
    for number in range(4):
        forwarded.note(HERE, ASKER, asked(number))
    assert forwarded.answered(HERE, ASKER, 1)
    assert [(address, header.correlation) for address, header in forwarded.of_dead(HERE)[1]] == [
        (ASKER, 0),
        (ASKER, 2),
        (ASKER, 3),
    ]
    assert forwarded.of_dead(HERE) == (0, [])


def test_an_answer_is_owed_once_and_to_its_asker(forwarded: Forwarded) -> None:
    forwarded.note(HERE, ASKER, asked(1))
    assert not forwarded.answered(HERE, OTHER, 1)
    assert not forwarded.answered(THERE, ASKER, 1)
    assert not forwarded.answered(HERE, ASKER, 2)
    assert forwarded.answered(HERE, ASKER, 1)
    assert not forwarded.answered(HERE, ASKER, 1)
    assert forwarded.of_dead(HERE) == (7, [])


def test_a_produce_that_nobody_answers_is_not_kept(forwarded: Forwarded) -> None:
    for number, acks in enumerate((0, 1, -1, 2)):
        forwarded.note(HERE, ASKER, asked(number, Api.PRODUCE, acks))
    assert [header.acks for _, header in forwarded.of_dead(HERE)[1]] == [1, -1, 2]


def test_a_second_hello_forgets_nothing(forwarded: Forwarded) -> None:
    forwarded.note(HERE, ASKER, asked(1))
    forwarded.meet(HERE, 7)
    forwarded.meet(THERE, 8)
    assert forwarded.connections_of(7) == [HERE]
    assert forwarded.connections_of(8) == [THERE]
    assert len(forwarded.of_dead(HERE)[1]) == 1
    assert forwarded.connections_of(7) == []


def test_one_connection_keeps_so_many_and_forgets_the_oldest(forwarded: Forwarded) -> None:
    total = 3 * OWED_MAX + 1
    for number in range(total):
        forwarded.note(HERE, ASKER, asked(number))
    kept = [header.correlation for _, header in forwarded.of_dead(HERE)[1]]
    assert OWED_MAX // 2 < len(kept) <= OWED_MAX
    assert kept == list(range(total - len(kept), total))
