"""A worker leads and others follow: the thinnest path, through real processes."""

from __future__ import annotations

from tests.scripted_copies import Copies


def test_acks_all_is_answered_when_the_follower_has_the_record() -> None:
    with Copies(2) as copies:
        first, second = copies.numbers
        copies.elect(first)
        answer = copies.produce([b"one"])
        assert answer.produced()[0] == 0
        assert copies.log_end(second) == 1
        assert copies.high_watermark(first) == 1
        copies.wait_equal()
        assert copies.batches(first) == copies.batches(second)
