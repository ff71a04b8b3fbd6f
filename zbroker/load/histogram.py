"""A latency histogram with logarithmic buckets: small, mergeable, exact to one part in 128.

A value in nanoseconds falls into one of 128 steps of its power of two: the buckets of HdrHistogram with two significant
digits. Percentiles give the upper bound of the bucket, as HdrHistogram does, so a reported figure is never below the
true one, and less than 0.8 % above it.

Latencies of an open loop are taken from the moment at which a record was due, and need no correction. For a closed
loop, whose next request waits for the last answer, `add_expected` fills in what it left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_STEP_BITS = 7
_STEPS = 1 << _STEP_BITS
QUANTILES = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0)


def _bucket(value: int) -> int:
    if value < _STEPS:
        return value
    shift = value.bit_length() - _STEP_BITS - 1
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

    def add_expected(self, value_ns: int, interval_ns: int) -> None:
        """Count a latency of a loop that meant to ask every `interval_ns`, and what it did not ask meanwhile: those
        would have waited one interval less each."""
        assert interval_ns > 0
        self.add(value_ns)
        for missed_ns in range(value_ns - interval_ns, 0, -interval_ns):
            self.add(missed_ns)

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
        assert 0 <= percent <= 100
        needed = max(1.0, self.count * percent / 100)
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= needed:
                return _upper_bound(bucket)
        return 0

    def curve(self) -> Iterator[tuple[float, int]]:
        """(percent, latency in ns) at the usual percentiles, as far out as there are latencies to tell them apart."""
        count = self.count
        for percent in QUANTILES:
            if percent == 100 or (100 - percent) / 100 * count > 0.999:
                yield percent, self.percentile_ns(percent)

    def as_counts(self) -> dict[int, int]:
        """The counts by bucket, as `Histogram(counts)` takes them."""
        return dict(self._counts)
