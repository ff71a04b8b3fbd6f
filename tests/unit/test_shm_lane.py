"""Rings and lanes: order, wrap-around, room, bounds, and who may do what."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator

import pytest

from zbroker.errors import InvalidRequestError, LaneRefusedError, MessageSizeTooLargeError, UnsupportedVersionError
from zbroker.shm import layout, region
from zbroker.shm.lane import Lane, Ring, ring_bytes_for

RING_BYTES = 4096


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    worker = Lane.create(3, 77, RING_BYTES, RING_BYTES)
    client = Lane.attach(os.dup(worker.fd))
    yield worker, client
    client.close()
    worker.close()


def taken(ring: Ring) -> list[bytes] | None:
    frames = ring.take()
    return None if frames is None else [bytes(frame) for frame in frames]


def test_messages_arrive_in_order_and_both_ways(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    assert not worker.requests.readable()
    assert client.requests.try_write([b"header", b"body"])
    assert client.requests.try_write([b"second"])
    assert worker.requests.readable()
    assert taken(worker.requests) == [b"header", b"body"]
    assert taken(worker.requests) == [b"second"]
    assert taken(worker.requests) is None
    assert worker.replies.try_write([b"answer", memoryview(b"x" * 100), bytearray(b"yy")])
    assert taken(client.replies) == [b"answer", b"x" * 100, b"yy"]


@pytest.mark.parametrize("count", range(layout.FRAMES_MAX + 1))
def test_any_number_of_frames_keeps_every_length(lanes: tuple[Lane, Lane], count: int) -> None:
    worker, client = lanes
    frames = [bytes([number]) * (number * 3 % 20) for number in range(count)]
    assert client.requests.try_write(frames)
    assert taken(worker.requests) == frames


def test_random_messages_through_many_wraps_come_out_as_they_went_in(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    waiting: deque[list[bytes]] = deque()
    for _ in range(5_000):
        frames = [chance.randbytes(chance.choice((0, 1, 7, 8, 9, 40, 300))) for _ in range(chance.randrange(5))]
        if client.requests.try_write(frames):
            waiting.append(frames)
        else:
            assert waiting, f"an empty ring refused a message that fits, seed {seed}"
        while waiting and chance.random() < 0.5:
            assert taken(worker.requests) == waiting.popleft(), f"seed {seed}"
        assert client.requests.used_bytes <= RING_BYTES, f"seed {seed}"
    while waiting:
        assert taken(worker.requests) == waiting.popleft(), f"seed {seed}"
    assert not worker.requests.readable()


def test_a_full_ring_takes_nothing_and_goes_on_after_one_is_consumed(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    message = [b"x" * 1000]
    written = 0
    while client.requests.try_write(message):
        written += 1
    assert written == RING_BYTES // 1016
    assert not client.requests.try_write(message)
    assert taken(worker.requests) == message
    assert client.requests.try_write(message)


def test_the_largest_message_fits_at_every_place_of_the_ring(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    largest = [b"y" * (RING_BYTES // 2 - 16)]
    assert client.requests.fits(len(largest[0]) - 7, 1)
    for _ in range(RING_BYTES // 8):
        assert client.requests.try_write([b"1234567"])
        assert taken(worker.requests) == [b"1234567"]
        assert client.requests.try_write(largest)
        assert taken(worker.requests) == largest


def test_a_message_that_never_fits_is_an_error_and_writes_nothing(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    with pytest.raises(MessageSizeTooLargeError, match="this lane takes 2048"):
        client.requests.try_write([b"x" * 2048])
    with pytest.raises(MessageSizeTooLargeError, match="17 frames"):
        client.requests.try_write([b""] * 17)
    assert not worker.requests.readable()


def test_peek_shows_the_message_until_it_is_consumed(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    client.requests.try_write([b"abc", b"defg"])
    before = client.requests.used_bytes
    for _ in range(2):
        frames = worker.requests.peek()
        assert frames is not None
        assert [bytes(frame) for frame in frames] == [b"abc", b"defg"]
    assert client.requests.used_bytes == before
    del frames
    worker.requests.consume()
    assert client.requests.used_bytes == 0
    assert worker.requests.peek() is None
    with pytest.raises(AssertionError):
        worker.requests.consume()


def test_what_was_taken_is_private_and_may_be_patched(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    client.requests.try_write([b"head", b"batch"])
    frames = worker.requests.take()
    assert frames is not None
    client._region.bytes[layout.LANE_HEADER_BYTES :] = b"\xff" * (2 * RING_BYTES)
    assert bytes(frames[1]) == b"batch"
    frames[1][:2] = b"BA"
    assert bytes(frames[1]) == b"BAtch"


def test_each_side_only_does_its_part(lanes: tuple[Lane, Lane]) -> None:
    worker, client = lanes
    with pytest.raises(AssertionError):
        worker.requests.try_write([b"x"])
    with pytest.raises(AssertionError):
        client.requests.take()


def test_closing_is_seen_by_the_other_side_and_what_was_sent_is_still_there() -> None:
    worker = Lane.create(3, 77, RING_BYTES, RING_BYTES)
    client = Lane.attach(os.dup(worker.fd))
    client.requests.try_write([b"last words"])
    assert not worker.is_closed_by_peer
    client.close()
    assert worker.is_closed_by_peer
    assert taken(worker.requests) == [b"last words"]
    worker.close()


def test_an_attached_lane_knows_its_number_and_worker(lanes: tuple[Lane, Lane]) -> None:
    _, client = lanes
    assert (client.number, client.worker_incarnation) == (3, 77)


def test_a_lane_of_another_version_or_with_false_sizes_is_refused_and_its_descriptor_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for index, value, error in (
        (layout.L_VERSION, 9, UnsupportedVersionError),
        (layout.L_REQUEST_BYTES, 1 << 40, InvalidRequestError),
        (layout.L_REPLY_BYTES, 8, InvalidRequestError),
    ):
        worker = Lane.create(3, 77, RING_BYTES, RING_BYTES)
        worker.words[index] = value
        with pytest.raises(error):
            Lane.attach(os.dup(worker.fd))
        worker.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lane_without_memory_is_refused_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, position: int, size_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LaneRefusedError):
        Lane.create(3, 77, RING_BYTES, RING_BYTES)


@pytest.mark.parametrize("message_bytes", [1, 1000, 4096, 1 << 20])
def test_a_ring_made_for_a_message_takes_it_with_all_its_frames(message_bytes: int) -> None:
    size_bytes = ring_bytes_for(message_bytes)
    assert size_bytes % region.PAGE_BYTES == 0
    worker = Lane.create(3, 77, size_bytes, RING_BYTES)
    client = Lane.attach(os.dup(worker.fd))
    assert client.requests.fits(message_bytes, layout.FRAMES_MAX)
    assert client.requests.try_write([b"z" * message_bytes] + [b""] * (layout.FRAMES_MAX - 1))
    client.close()
    worker.close()
