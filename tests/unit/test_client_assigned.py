"""What a consumer shows as the high watermark while leaders change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zbroker.client.assigned import Assigned
from zbroker.ids import TopicPartition


def source(high_watermark: int | None) -> Any:
    return SimpleNamespace(high_watermark=lambda: high_watermark)


def test_a_new_leader_that_knows_less_as_yet_does_not_take_the_high_watermark_back() -> None:
    one = Assigned(TopicPartition("orders", 0), "earliest")
    shown = []
    for found in (None, source(5_553), source(0), source(None), source(6_221)):
        one.source = found
        shown.append(one.high_watermark())
    assert shown == [None, 5_553, 5_553, None, 6_221]


def test_a_new_leader_that_knows_less_than_was_read_is_not_believed() -> None:
    one = Assigned(TopicPartition("orders", 0), "earliest")
    one.source = source(1_698)
    assert one.high_watermark() == 1_698
    one.offset, one.was_read = 1_771, True
    assert one.high_watermark() == 1_771
    one.seek(1_700)
    assert one.high_watermark() == 1_698


def test_a_seek_shows_what_is_there_even_if_it_is_less() -> None:
    one = Assigned(TopicPartition("orders", 0), "earliest")
    one.source = source(100)
    assert one.high_watermark() == 100
    one.source = source(40)
    one.seek_to("latest")
    assert one.high_watermark() == 40
    one.source = source(30)
    one.seek(30)
    assert one.high_watermark() == 30
