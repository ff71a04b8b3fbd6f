"""The histogram against a sorted list, and against HdrHistogram itself."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from zbroker.load.histogram import Histogram

latencies = st.lists(st.integers(0, 1 << 50), min_size=1, max_size=200)
hdr_latencies = st.lists(st.integers(1, 10**11), min_size=1, max_size=100)


@given(latencies, st.floats(0.1, 100))
def test_a_percentile_is_at_most_one_part_in_128_above_the_true_one(values: list[int], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    ordered = sorted(values)
    needed = len(values) * percent / 100
    true = next(value for index, value in enumerate(ordered, 1) if index >= needed)
    found = histogram.percentile_ns(percent)
    assert true <= found <= true + true // 128 + 1


@given(hdr_latencies, st.sampled_from([25.0, 50.0, 75.0, 90.0, 100.0]))
def test_percentiles_are_those_of_hdr_histogram_with_two_digits(values: list[int], percent: float) -> None:
    own, hdr = Histogram(), HdrHistogram(1, 1 << 40, 2)
    for value in values:
        own.add(value)
        hdr.record_value(value)
    rank = len(values) * percent / 100
    if rank == int(rank):  # between two ranks HdrHistogram rounds to the nearer one, this one up
        assert own.percentile_ns(percent) == hdr.get_value_at_percentile(percent)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30), st.integers(10_000, 10**6))
def test_what_a_closed_loop_left_out_is_filled_in_as_hdr_histogram_does(values: list[int], interval: int) -> None:
    own, hdr = Histogram(), HdrHistogram(1, 1 << 40, 2)
    for value in values:
        own.add_expected(value, interval)
        hdr.record_corrected_value(value, interval)
    assert own.count == hdr.get_total_count()
    assert own.percentile_ns(100) == hdr.get_value_at_percentile(100)


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


def test_the_curve_goes_as_far_out_as_the_latencies_can_tell() -> None:
    histogram = Histogram()
    for value in range(1, 1001):
        histogram.add(value)
    curve = dict(histogram.curve())
    assert 99.9 in curve
    assert 99.99 not in curve
    assert list(curve.values()) == sorted(curve.values())
    assert curve[100.0] >= 1000


def test_an_empty_histogram_has_percentile_zero() -> None:
    assert Histogram().percentile_ns(99) == 0
