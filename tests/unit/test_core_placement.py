"""Placement is even, by topic and over all, and stays within what a process and the broker may have."""

from __future__ import annotations

from collections import Counter

import pytest

from zbroker.core.placement import choose_disks, choose_owners, lowest_free
from zbroker.errors import PolicyViolationError

WORKERS = [16, 18, 20]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_a_topic_is_spread_evenly(count: int) -> None:
    loads = Counter(choose_owners(count, WORKERS, (), {}, 1_000))
    assert max(loads.values()) - min(loads[number] for number in WORKERS) <= 1


def test_topics_of_one_partition_are_spread_over_all_workers() -> None:
    loads: Counter[int] = Counter()
    for _ in range(30):
        loads.update(choose_owners(1, WORKERS, (), loads, 1_000))
    assert loads == {16: 10, 18: 10, 20: 10}


def test_a_topics_own_balance_comes_before_that_of_all() -> None:
    assert choose_owners(3, WORKERS, (), {16: 500, 18: 0, 20: 0}, 1_000) == [18, 20, 16]


def test_further_partitions_even_out_those_that_are_there() -> None:
    assert choose_owners(2, WORKERS, [16, 16, 18], {16: 2, 18: 1}, 1_000) == [20, 18]


def test_a_full_worker_gets_no_more_and_full_workers_refuse() -> None:
    with pytest.raises(PolicyViolationError, match="3 worker processes has its 10 partitions"):
        choose_owners(3, WORKERS, (), {16: 9, 18: 10, 20: 9}, 10)
    assert choose_owners(2, WORKERS, (), {16: 9, 18: 10, 20: 9}, 10) == [16, 20]


def test_new_copies_go_to_the_disk_with_the_fewest() -> None:
    disks = ["data", "/disk2", "/disk3"]
    assert choose_disks(4, disks, {"data": 5, "/disk2": 3, "gone": 0}) == ["/disk3", "/disk3", "/disk3", "/disk2"]
    assert choose_disks(3, disks, {}) == disks


def test_the_lowest_free_numbers_are_used_first() -> None:
    assert lowest_free(3, {0, 2}) == [1, 3, 4]
    assert lowest_free(0, set()) == []
