"""Partitioners against other implementations, and what all of them promise."""

from __future__ import annotations

import warnings

import mmh3
import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from zbroker.client.partitioner import mmh3_of, murmur2, murmur2_of, round_robin

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its import reads resources in a deprecated way
    from kafka.partitioner.default import murmur2 as kafka_python_murmur2

KEYS = st.binary(max_size=200)
COUNTS = st.integers(1, 10_000)


@given(KEYS)
def test_murmur2_is_kafkas(key: bytes) -> None:
    assert murmur2(key) == aiokafka_murmur2(key) & 0xFFFF_FFFF == kafka_python_murmur2(key) & 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_murmur2_gives_the_values_of_kafkas_own_test(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed & 0xFFFF_FFFF


@given(KEYS, COUNTS)
def test_a_keys_partition_exists_and_stays_the_same(key: bytes, count: int) -> None:
    for hash_of in (mmh3_of, murmur2_of):
        assert 0 <= hash_of(key) % count < count
        assert hash_of(key) == hash_of(bytes(key))


@given(KEYS, COUNTS)
def test_mmh3_is_the_unsigned_hash_of_the_library(key: bytes, count: int) -> None:
    assert mmh3_of(key) % count == (mmh3.hash(key) & 0xFFFF_FFFF) % count


@given(COUNTS)
def test_keys_spread_over_few_partitions_evenly(seed: int) -> None:
    found = [0] * 8
    for number in range(4_000):
        found[mmh3_of(b"%d-%d" % (seed, number)) % 8] += 1
    assert min(found) > 350


def test_round_robin_takes_each_partition_in_turn() -> None:
    choose = round_robin()
    assert [choose(b"same", 3) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
