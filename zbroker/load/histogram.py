"""A latency histogram with logarithmic buckets: small, mergeable, exact to one part in 64.

A value in nanoseconds falls into one of 64 steps of its power of two, as in HdrHistogram with two significant digits.
Percentiles give the upper bound of the bucket, so a reported figure is never below the true one, and at most 1.6 %
above it.
"""

from __future__ import annotations

from collections.abc import Mapping

_STEPS = 64


def _bucket(value: int) -> int:
    if value < _STEPS:
        return value
    shift = value.bit_length() - 7
    return (shift + 1) * _STEPS + (value >> shift) - _STEPS


def _upper_bound(bucket: int) -> int:
    if bucket < _STEPS:
        return bucket
    shift, step = divmod(bucket - _STEPS, _STEPS)
    return ((step + _STEPS + 1) << shift) - 1


class Histogram:
    """Counts of latencies in nanoseconds."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts: dict[int, int] = dict(counts or {})

    def add(self, value_ns: int) -> None:
        """Count one latency. A negative one is counted as 0."""
        bucket = _bucket(max(0, value_ns))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one."""
        for bucket, count in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    @property
    def count(self) -> int:
        """How many latencies were counted."""
        return sum(self._counts.values())

    def percentile_ns(self, percent: float) -> int:
        """The latency that `percent` of the counted ones do not exceed; 0 when none was counted."""
        assert 0 < percent <= 100
        needed = self.count * percent / 100
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= needed:
                return _upper_bound(bucket)
        return 0

    def as_counts(self) -> dict[int, int]:
        """The counts by bucket, as `Histogram(counts)` takes them."""
        return dict(self._counts)
