"""The order check finds every loss, double, change and swap, and nothing in equal streams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zbroker.load.order_check import OrderCheck

streams = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.binary(max_size=8)), min_size=1, max_size=40)


def check_of(stream: list[tuple[str, bytes]]) -> OrderCheck:
    check = OrderCheck()
    for key, value in stream:
        check.add(key, [value])
    return check


@given(streams, st.randoms(use_true_random=False))
def test_streams_that_keep_each_keys_order_are_equal(stream: list[tuple[str, bytes]], random: object) -> None:
    by_key = sorted(stream, key=lambda pair: pair[0])  # a stable sort keeps each key's order
    assert check_of(stream).differences(check_of(by_key)) == []


@given(streams, st.data())
def test_a_lost_doubled_or_altered_record_is_found(stream: list[tuple[str, bytes]], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(stream) - 1))
    key, value = stream[index]
    for broken in (
        stream[:index] + stream[index + 1 :],
        [*stream[: index + 1], *stream[index:]],
        [*stream[:index], (key, value + b"x"), *stream[index + 1 :]],
    ):
        found = check_of(stream).differences(check_of(broken))
        assert len(found) == 1
        assert found[0].startswith(f"{key}: ")


def test_swapped_records_of_a_key_are_found() -> None:
    sent = check_of([("a", b"1"), ("a", b"2")])
    assert "not in their order" in sent.differences(check_of([("a", b"2"), ("a", b"1")]))[0]
    assert sent.differences(check_of([("a", b"12"), ("a", b"")])) != []


def test_one_key_belongs_to_one_side() -> None:
    check = check_of([("a", b"1")])
    check.merge(check_of([("b", b"1")]))
    assert check.records == 2
    with pytest.raises(AssertionError):
        check.merge(check_of([("b", b"1")]))
