"""The assignors by name, and what is refused of an assignment that somebody else has made."""

from __future__ import annotations

import pytest

from zbroker.core.assignors import ASSIGNORS, Candidate, check_target
from zbroker.core.sticky import EXACT_WORK_MAX


def member(name: str, *topics: int, owned: tuple[tuple[int, int], ...] = (), instance: str = "") -> Candidate:
    return Candidate(name, instance, frozenset(topics), frozenset(owned))


def test_range_gives_stretches_and_the_first_ones_one_more() -> None:
    target = ASSIGNORS["range"]([member("b", 1), member("a", 1)], {1: 5})
    assert target == {"a": [(1, 0), (1, 1), (1, 2)], "b": [(1, 3), (1, 4)]}


def test_range_keeps_a_static_members_place_whatever_its_member_id() -> None:
    before = ASSIGNORS["range"]([member("x", 1, instance="w1"), member("y", 1, instance="w2")], {1: 4})
    after = ASSIGNORS["range"]([member("z", 1, instance="w1"), member("y", 1, instance="w2")], {1: 4})
    assert before["x"] == after["z"]


def test_roundrobin_deals_in_turn_and_passes_over_those_who_do_not_subscribe() -> None:
    target = ASSIGNORS["roundrobin"]([member("a", 1), member("b", 1, 2)], {1: 3, 2: 2})
    assert target == {"a": [(1, 0), (1, 2)], "b": [(1, 1), (2, 0), (2, 1)]}


def test_single_active_stays_with_the_active_one_and_else_takes_the_oldest() -> None:
    assert ASSIGNORS["single-active"]([member("a", 1), member("b", 1)], {1: 2}) == {"a": [(1, 0), (1, 1)], "b": []}
    busy = member("b", 1, owned=((1, 0), (1, 1)))
    assert ASSIGNORS["single-active"]([member("a", 1), busy], {1: 2}) == {"a": [], "b": [(1, 0), (1, 1)]}


def test_more_members_than_partitions_leave_the_rest_without() -> None:
    for assign in ASSIGNORS.values():
        target = assign([member(name, 1) for name in "abcd"], {1: 3})
        assert sum(map(len, target.values())) == 3


@pytest.mark.parametrize("name", sorted(ASSIGNORS))
def test_no_members_and_no_topics_are_nothing_to_do(name: str) -> None:
    assert ASSIGNORS[name]([], {1: 3}) == {}
    assert ASSIGNORS[name]([member("a")], {}) == {"a": []}


def test_sticky_evens_out_a_chain_of_subscriptions() -> None:
    """Only a chain helps: a gives to b, and b to c."""
    a = member("a", 1, owned=((1, 0), (1, 1), (1, 2)))
    b = member("b", 1, 2, owned=((2, 0), (2, 1)))
    c = member("c", 2)
    target = ASSIGNORS["sticky"]([a, b, c], {1: 3, 2: 2})
    assert sorted(map(len, target.values())) == [1, 2, 2]


def test_sticky_of_very_many_still_gives_everything_out_and_evens_single_moves() -> None:
    names = [f"m{index:03}" for index in range(60)]
    members = [member(name, 1, 2 + index % 2) for index, name in enumerate(names)]
    counts = {1: 30, 2: 45, 3: 45}
    assert len(members) ** 2 * sum(counts.values()) > EXACT_WORK_MAX
    target = ASSIGNORS["sticky"](members, counts)
    assert check_target(target, members, counts) == ""
    loads = [len(keys) for keys in target.values()]
    assert max(loads) - min(loads) <= 1


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"a": [(1, 0), (1, 1)], "b": []}, ""),
        ({"a": [(1, 0)], "b": []}, "without a reader"),
        ({"a": [(1, 0), (1, 1)], "x": []}, "no member"),
        ({"a": [(1, 0), (1, 1), (1, 2)], "b": []}, "not there"),
        ({"a": [(1, 0)], "b": [(1, 1)]}, "does not subscribe"),
        ({"a": [(1, 0), (1, 1), (1, 1)]}, "twice"),
    ],
)
def test_an_assignment_made_elsewhere_is_checked(target: dict[str, list[tuple[int, int]]], reason: str) -> None:
    found = check_target(target, [member("a", 1), member("b", 2)], {1: 2})
    assert reason in found
    assert bool(reason) == bool(found)
