"""The histogram against a sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zbroker.load.histogram import Histogram

latencies = st.lists(st.integers(0, 1 << 50), min_size=1, max_size=200)


@given(latencies, st.floats(0.1, 100))
def test_a_percentile_is_at_most_one_part_in_64_above_the_true_one(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    needed = len(values) * percent / 100
    true = next(value for index, value in enumerate(ordered, 1) if index >= needed)
    found = histogram.percentile_ns(percent)
    assert true <= found <= true + true // 64 + 1


@given(latencies, latencies)
def test_merging_is_counting_both(left: list[int], right: list[int]) -> None:
    parts = Histogram(), Histogram()
    both = Histogram()
    for values, part in zip((left, right), parts, strict=True):
        for value in values:
            part.add(value)
            both.add(value)
    parts[0].merge(Histogram(parts[1].as_counts()))
    assert parts[0].as_counts() == both.as_counts()
    assert parts[0].count == len(left) + len(right)


def test_an_empty_histogram_has_percentile_zero() -> None:
    assert Histogram().percentile_ns(99) == 0
