"""A producer that is killed: what was in its lane is stored all the same, once and in order (U-07)."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from tests.conditions import wait_until, wait_until_stopped
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

# Sends batches of 100 records when told to, and says how many of them are in the lane.
_SENDER = """
import sys
from zbroker import Producer
servers, topic = sys.argv[1:]
producer = Producer(bootstrap_servers=servers, linger_ms=60_000)
sent = 0
def send(batches):
    global sent
    for _ in range(batches):
        producer.send_many(topic, [b"%d" % number for number in range(sent, sent + 100)], partition=0)
        sent += 100
send(1)
producer.flush()
print("ready", flush=True)
for line in sys.stdin:
    word = line.split()[0]
    if word == "send":
        send(int(line.split()[1]))
        left = producer.flush(local=True, timeout_ms=2_000)
        print(sent - left, flush=True)
    elif word == "open":
        producer.send(topic, b"never closed", partition=0)
        print("open", flush=True)
    elif word == "stream":
        while True:
            send(3)
            if producer.flush(local=True) == 0:
                print(sent, flush=True)
"""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(workers=1, config={"coordinator": {"hang_timeout_ms": 0}}) as found:
        with AdminClient(bootstrap_servers=found.bootstrap_servers) as admin:
            admin.create_topics([NewTopic("t", 1)])
        yield found


class Sender:
    """A producer in a process of its own."""

    def __init__(self, broker: Broker) -> None:
        command = [sys.executable, "-c", _SENDER, broker.bootstrap_servers, "t"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        pipes: list[IO[str] | None] = [self.process.stdin, self.process.stdout]
        for pipe in pipes:
            if pipe is not None:
                pipe.close()


def stored(broker: Broker) -> list[int]:
    with Consumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        part = TopicPartition("t", 0)
        consumer.assign([part])
        found: list[int] = []
        while len(found) < consumer.end_offsets([part])[part]:
            for records in consumer.poll(timeout_ms=1000).values():
                found += [int(record.value or b"") for record in records]
        return found


def end(broker: Broker) -> int:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        return admin.list_offsets({("t", 0): "latest"})[TopicPartition("t", 0)].offset


def test_u07_what_a_killed_producer_had_in_its_lane_is_stored_once_and_the_rest_is_not(broker: Broker) -> None:
    with Sender(broker) as sender:
        pid = broker.signal("worker-0", signal.SIGSTOP)  # so that nothing is taken before the death
        try:
            wait_until_stopped(pid)
            assert sender.tell("send 4") == "500"
            assert sender.tell("open") == "open"
            sender.kill()
        finally:
            broker.signal("worker-0", signal.SIGCONT)
    wait_until(lambda: end(broker) >= 500)
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        assert producer.send("t", b"500", partition=0).result(10).offset == 500
    assert stored(broker) == list(range(501))


def test_u07_a_local_flush_counts_what_is_not_in_a_lane(broker: Broker) -> None:
    with Sender(broker) as sender:
        pid = broker.signal("worker-0", signal.SIGSTOP)
        try:
            wait_until_stopped(pid)
            # The sixth and seventh batch wait for an answer to the first five.
            assert sender.tell("send 7") == "600"
        finally:
            broker.signal("worker-0", signal.SIGCONT)
        wait_until(lambda: end(broker) == 800)


def test_u07_every_batch_of_a_local_flush_outlives_a_producer_killed_at_any_moment(broker: Broker) -> None:
    with Sender(broker) as sender:
        assert sender.process.stdin is not None
        sender.process.stdin.write("stream\n")
        sender.process.stdin.flush()
        for _ in range(200):
            said = int(sender.said())
        sender.kill()
        assert sender.process.stdout is not None
        lines = sender.process.stdout.read().split("\n")[:-1]  # the last line may be cut
        said = max([said, *map(int, lines)])
    wait_until(lambda: end(broker) >= said)
    found = stored(broker)
    assert found == list(range(len(found)))
    assert len(found) >= said
