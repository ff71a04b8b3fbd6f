"""The partition leader's state machine under random events, against a twin that only keeps lists."""

from __future__ import annotations

import copy
import random

import pytest

from zbroker.config.schema import TopicConfig
from zbroker.core import partition_events as ev
from zbroker.core.partition import Partition, State
from zbroker.core.partition_state import PartitionState
from zbroker.errors import DiskFullError, StorageError

SEEDS = range(200)
STEPS = 150


class Twin:
    """Plays log, disk and clients, and notes what the state machine may never do."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        config = TopicConfig(flush_messages=self.random.choice([-1, 5]), flush_ms=self.random.choice([-1, 0, 20]))
        self.one = Partition(leader_epoch=1, log_start=0, log_end=0, durable=0, config=config)
        self.lengths: list[tuple[int, int, int]] = []  # request, base offset, acks
        self.log_end = 0
        self.published = 0
        self.durable = 0
        self.flushing: int | None = None
        self.answered: dict[int, str] = {}
        self.acks: dict[int, int] = {}
        self.waits: dict[int, int] = {}
        self.next_request = 0
        self.now_ns = 0

    def give(self, event: ev.Event) -> None:
        self.now_ns += self.random.randrange(10_000_000)
        for effect in self.one.handle(event, self.now_ns):
            self.do(effect)

    def do(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Write(request, acks, base_offset, _):
                self.write(request, acks, base_offset)
            case ev.Publish(high_watermark):
                assert high_watermark == self.log_end >= self.published
                self.published = high_watermark
            case ev.PublishDurable(durable):
                assert durable >= self.durable
                self.durable = durable
            case ev.Flush():
                assert self.flushing is None, "one flush at a time"
                self.flushing = self.log_end
            case ev.Wake(waits):
                for wait in waits:
                    offset = self.waits.pop(wait)
                    assert offset < self.published or self.one.state is State.REVOKED
            case ev.Acknowledge(request, base_offset):
                end = next(end for asked, base, end in self.lengths if asked == request and base == base_offset)
                assert end <= self.published, "an acknowledged record can be read"
                assert not [o for o in self.waits.values() if o < self.published], "readers are woken first"
                if self.acks[request] == 2:
                    assert end <= self.durable, "acks=fsync is on the disk"
                self.answer(request, "ok")
            case ev.Refuse(request, _):
                self.answer(request, "error")

    def write(self, request: int, acks: int, base_offset: int) -> None:
        assert base_offset == self.log_end, "an offset is given out once, and none is left out"
        chance = self.random.random()
        if chance < 0.05:
            self.give(ev.AppendFailed(request, DiskFullError() if chance < 0.03 else StorageError()))
            return
        self.log_end += self.random.randrange(1, 4)
        self.lengths.append((request, base_offset, self.log_end))
        self.give(ev.Appended(request, acks, base_offset, self.log_end))

    def write_at_once(self, request: int, acks: int) -> None:
        """The short way, held to the long one."""
        self.now_ns += self.random.randrange(10_000_000)
        base_offset, long = self.log_end, copy.deepcopy(self.one)
        self.log_end += self.random.randrange(1, 4)
        self.lengths.append((request, base_offset, self.log_end))
        assert long.handle(ev.Produce(request, acks, -1), self.now_ns) == [ev.Write(request, acks, base_offset, 1)]
        wanted = long.handle(ev.Appended(request, acks, base_offset, self.log_end), self.now_ns)
        passed = self.one.appended_at_once(self.log_end, self.now_ns)
        found = [
            ev.Publish(self.one.high_watermark),
            *([ev.Wake(passed)] if passed else []),
            *([ev.Acknowledge(request, base_offset)] if acks else []),
        ]
        assert found == wanted
        assert state_of(self.one) == state_of(long), "both ways leave the same behind"
        for effect in found:
            self.do(effect)

    def answer(self, request: int, how: str) -> None:
        assert request not in self.answered, "a request is answered once"
        self.answered[request] = how

    def step(self) -> None:
        choice = self.random.randrange(10)
        if choice < 5:
            self.next_request += 1
            self.acks[self.next_request] = acks = self.random.choice([0, 1, -1, 2, 2])
            if self.one.takes_at_once(acks, -1, None) and self.random.random() < 0.7:
                self.write_at_once(self.next_request, acks)
            else:
                self.give(ev.Produce(self.next_request, acks, -1))
        elif choice == 5:
            wait = self.next_request + 1_000_000
            self.next_request += 1
            self.waits[wait] = self.random.randrange(self.log_end + 3)
            self.give(ev.WaitFor(wait, self.waits[wait]))
        elif choice == 6 and self.waits:
            wait = self.random.choice(list(self.waits))
            del self.waits[wait]
            self.give(ev.StopWaiting(wait))
        elif choice == 7 and self.flushing is not None:
            durable, self.flushing = self.flushing, None
            self.give(ev.Flushed(durable) if self.random.random() < 0.8 else ev.FlushFailed(StorageError()))
        elif choice == 8:
            self.give(self.random.choice([ev.RoomLost(), ev.RoomFound(), ev.RoomFound()]))
        else:
            self.give(ev.Tick())


def state_of(one: Partition) -> dict[str, object]:
    return {name: getattr(one, name) for name in PartitionState.__slots__}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_events_keeps_the_promises(seed: int) -> None:
    twin = Twin(seed)
    for _ in range(STEPS):
        twin.step()
        one = twin.one
        assert one.high_watermark == one.log_end == twin.log_end == twin.published
        assert one.durable == twin.durable <= twin.log_end
        assert one.wait_count == len(twin.waits)
    twin.give(ev.Revoked())
    assert not twin.waits
    unanswered = set(twin.acks) - set(twin.answered)
    assert all(twin.acks[request] == 0 for request in unanswered), f"seed {seed}: never answered: {unanswered}"
