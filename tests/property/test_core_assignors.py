"""Assignors against brute force on small cases: loads are even, and no more is moved than must be."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from zbroker.core.assignors import ASSIGNORS, Candidate, Target, check_target
from zbroker.core.sticky import Key

Case = tuple[list[Candidate], dict[int, int]]


@st.composite
def cases(draw: st.DrawFn, *, members_max: int, partitions_max: int, alike: bool) -> Case:
    """Members with subscriptions and what they own, some of it of topics that are gone or not subscribed to."""
    counts = draw(st.dictionaries(st.integers(1, 3), st.integers(1, partitions_max), min_size=1, max_size=3))
    names = [f"m{index}" for index in range(draw(st.integers(1, members_max)))]
    everything = frozenset(counts)
    keys = [(topic_id, number) for topic_id, count in counts.items() for number in range(count + 1)]
    owners = {key: draw(st.sampled_from([*names, None])) for key in keys}
    members = []
    for name in names:
        topics = everything if alike else frozenset(draw(st.sets(st.sampled_from(sorted(counts)))))
        owned = frozenset(key for key, owner in owners.items() if owner == name)
        members.append(Candidate(name, "", topics, owned))
    return members, counts


def cost(target: Mapping[str, list[Key]], members: list[Candidate]) -> tuple[int, int]:
    """(sum of squared loads, partitions that their owner does not keep)."""
    owned = {one.member_id: one.owned for one in members}
    squares = sum(len(keys) ** 2 for keys in target.values())
    moves = sum(key not in owned[name] for name, keys in target.items() for key in keys)
    return squares, moves


def best_of_all(members: list[Candidate], counts: Mapping[int, int]) -> tuple[int, int]:
    keys = [(topic_id, number) for topic_id, count in counts.items() for number in range(count)]
    readers = [[one.member_id for one in members if key[0] in one.topics] for key in keys]
    kept = [(key, names) for key, names in zip(keys, readers, strict=True) if names]
    found: tuple[int, int] | None = None
    for choice in product(*(names for _, names in kept)):
        target: Target = {one.member_id: [] for one in members}
        for (key, _), name in zip(kept, choice, strict=True):
            target[name].append(key)
        one = cost(target, members)
        found = one if found is None or one < found else found
    assert found is not None
    return found


@settings(deadline=None)
@given(cases(members_max=6, partitions_max=9, alike=False))
def test_every_assignor_gives_each_partition_to_one_subscriber(case: Case) -> None:
    members, counts = case
    for name, assign in ASSIGNORS.items():
        target = assign(members, counts)
        assert set(target) == {one.member_id for one in members}
        assert check_target(target, members, counts) == "", name


@settings(deadline=None)
@given(cases(members_max=3, partitions_max=2, alike=False))
def test_sticky_is_the_best_of_all_assignments_whatever_is_subscribed_to(case: Case) -> None:
    members, counts = case
    assert cost(ASSIGNORS["sticky"](members, counts), members) == best_of_all(members, counts)


@settings(deadline=None)
@given(cases(members_max=3, partitions_max=2, alike=True))
def test_sticky_is_the_best_of_all_assignments_where_all_subscribe_alike(case: Case) -> None:
    members, counts = case
    assert cost(ASSIGNORS["sticky"](members, counts), members) == best_of_all(members, counts)


@settings(deadline=None)
@given(cases(members_max=8, partitions_max=20, alike=True))
def test_sticky_is_balanced_within_one_and_moves_nothing_the_second_time(case: Case) -> None:
    members, counts = case
    first = ASSIGNORS["sticky"](members, counts)
    loads = [len(keys) for keys in first.values()]
    assert max(loads) - min(loads) <= 1
    settled = [one._replace(owned=frozenset(first[one.member_id])) for one in members]
    assert ASSIGNORS["sticky"](settled, counts) == first


@settings(deadline=None)
@given(cases(members_max=8, partitions_max=20, alike=True), st.integers(0, 7))
def test_sticky_takes_only_from_others_what_a_newcomer_gets_and_gives_only_what_a_leaver_had(
    case: Case, index: int
) -> None:
    members, counts = case
    first = ASSIGNORS["sticky"](members, counts)
    settled = [one._replace(owned=frozenset(first[one.member_id])) for one in members]
    joined = ASSIGNORS["sticky"]([*settled, Candidate("new", "", frozenset(counts), frozenset())], counts)
    for one in settled:
        assert set(joined[one.member_id]) <= one.owned, "somebody who was there gets more because one came"
    if len(settled) > 1:
        leaver = settled[index % len(settled)]
        left = ASSIGNORS["sticky"]([one for one in settled if one is not leaver], counts)
        for name, keys in left.items():
            assert set(first[name]) <= set(keys), "somebody loses a partition because one went"
