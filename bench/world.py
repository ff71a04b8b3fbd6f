"""What every benchmark stands on: a broker, fresh topics, fresh values, and the processes whose CPU time counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench import bare
from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.producer import Producer
from zbroker.testing import Broker

BATCH_RECORDS = 4_800  # of the bare loops: what send_many puts into a batch of 100-byte values


def batches(count: int) -> Iterator[list[bytes]]:
    """Lists of fresh 100-byte values, `count` in all but for a remainder."""
    for _ in range(max(1, count // BATCH_RECORDS)):
        yield bare.fresh_values(BATCH_RECORDS, 100)


class World:
    """One running broker; `scratch` is a directory on the same disk as its data, `count` the records of a run."""

    def __init__(self, broker: Broker, scratch: Path, count: int) -> None:
        self.broker = broker
        self.servers = broker.bootstrap_servers
        self.scratch = scratch
        self.count = max(1, count // BATCH_RECORDS) * BATCH_RECORDS
        self._topics = 0

    def topic(self) -> str:
        """A new topic of one partition."""
        return self.new_topic()[0]

    def new_topic(self) -> tuple[str, int, Path]:
        """(name, id, directory of the files) of a new topic of one partition."""
        self._topics += 1
        name = f"bench-{self._topics}"
        with AdminClient(bootstrap_servers=self.servers) as admin:
            made = admin.create_topics([NewTopic(name, 1)])[name]
            if not made.partitions or not made.partitions[0].directory:
                made = admin.describe_topics([name])[name]
        return name, made.topic_id, Path(made.partitions[0].directory)

    def filled(self) -> tuple[str, Path]:
        """(name, directory) of a new topic that holds `count` records."""
        name, _, directory = self.new_topic()
        with Producer(bootstrap_servers=self.servers) as producer:
            for values in batches(self.count):
                producer.send_many(name, values)
            producer.flush()
        return name, directory

    def worker_pid(self) -> int:
        """The pid of the only worker."""
        return self.broker.pid_of("worker-0")
