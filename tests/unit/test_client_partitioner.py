"""Which partition a key goes to: Kafka's map as its Python clients compute it, and murmur3 by its published values."""

from __future__ import annotations

import random

import pytest
from aiokafka.partitioner import murmur2 as kafka_murmur2

from zbroker.client.partitioner import mmh3_of, murmur2, murmur2_of, round_robin


@pytest.mark.parametrize("seed", range(5))
def test_murmur2_is_kafkas_for_any_key(seed: int) -> None:
    random_ = random.Random(seed)
    for length in range(70):
        key = random_.randbytes(length)
        assert murmur2(key) == kafka_murmur2(key) & 0xFFFF_FFFF, key.hex()


def test_murmur2_has_the_values_of_kafkas_own_test() -> None:
    # UtilsTest.testMurmur2 of Apache Kafka, as signed 32-bit numbers.
    cases = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
             b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
             b"abc": 479470107}  # fmt: skip
    assert {key: murmur2(key) for key in cases} == {key: value & 0xFFFF_FFFF for key, value in cases.items()}


def test_a_partition_of_kafkas_map_is_the_positive_hash_modulo_the_count() -> None:
    assert [murmur2_of(b"foobar") % count for count in (1, 3, 7)] == [
        (-790332482 & 0x7FFF_FFFF) % count for count in (1, 3, 7)
    ]


def test_murmur3_has_its_published_values() -> None:
    # SMHasher's verification values for MurmurHash3_x86_32 with seed 0.
    assert mmh3_of(b"") == 0
    assert mmh3_of(b"test") == 0xBA6BD213
    assert mmh3_of(b"Hello, world!") == 0xC0363E43


def test_every_partition_gets_its_share_of_many_keys() -> None:
    for hash_of in (mmh3_of, murmur2_of):
        counts = [0] * 8
        for number in range(8_000):
            counts[hash_of(b"key-%d" % number) % 8] += 1
        assert min(counts) > 800, counts


def test_round_robin_takes_one_after_the_other_whatever_the_key() -> None:
    choose = round_robin()
    assert [choose(b"same", 3) for _ in range(5)] == [0, 1, 2, 0, 1]
