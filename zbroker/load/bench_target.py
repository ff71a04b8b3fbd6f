"""The broker that is measured: one of its own for a benchmark, or one that is up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.config.paths import TMPFS_ROOT, paths_for
from zbroker.config.schema import BrokerSection, ServerConfig
from zbroker.errors import TopicAlreadyExistsError
from zbroker.shm.owned_directory import OwnedDirectory
from zbroker.testing import Broker
from zbroker.transport.endpoints import parse

CREATE_TIMEOUT_MS = 120_000


class Target:
    """A broker that answers. `boards_dir` is None where its processes cannot be seen, `broker` for one that is not
    the benchmark's own."""

    def __init__(self, bootstrap_servers: str, boards_dir: Path | None, broker: Broker | None = None) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.boards_dir = boards_dir
        self.broker = broker
        self._numbers = count(1)

    @property
    def boards(self) -> str:
        """The boards' directory as a task holds it."""
        return "" if self.boards_dir is None else str(self.boards_dir)

    @contextmanager
    def topic(
        self, name: str, partitions: int, *, replicas: int = 1, config: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, list[int]]]:
        """(name, partitions) of a topic: on its own broker a new one that is gone afterwards, else that very topic,
        made if it is not there, and kept."""
        wanted = f"{name}-{next(self._numbers)}" if self.broker is not None else name
        with AdminClient(bootstrap_servers=self.bootstrap_servers) as admin:
            try:
                new = NewTopic(wanted, partitions, replicas, dict(config or {}))
                admin.create_topics([new], timeout_ms=CREATE_TIMEOUT_MS)
            except TopicAlreadyExistsError:
                assert self.broker is None, "its topics are new"
            found = admin.describe_topics([wanted])[wanted]
        yield wanted, [one.partition for one in found.partitions]
        if self.broker is not None:  # it may be another incarnation of it by now
            with AdminClient(bootstrap_servers=self.bootstrap_servers) as admin:
                admin.delete_topics([wanted], timeout_ms=CREATE_TIMEOUT_MS)


@contextmanager
def own_broker(
    *,
    workers: int = 1,
    replicas: int = 0,
    pin: bool = False,
    directory: Path | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Target]:
    """A broker of its own with its data in memory (/dev/shm), or below `directory`; both are gone afterwards."""
    with ExitStack() as stack:
        where = None
        sections: dict[str, Any] = {**(config or {}), "workers": {"count": workers, "pin": pin}}
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            where = stack.enter_context(OwnedDirectory.make("zbb-", directory)) / "broker"
            # The sockets' paths are bounded, and the boards belong in memory wherever the data are.
            run_dir = stack.enter_context(OwnedDirectory.make("zbb-", TMPFS_ROOT))
            sections["broker"] = {**sections.get("broker", {}), "run_dir": f"{run_dir}/run"}
        broker = stack.enter_context(Broker(workers=workers, replicas=replicas, config=sections, directory=where))
        yield Target(broker.bootstrap_servers, broker.paths.boards_dir, broker)


def running_broker(bootstrap_servers: str) -> Target:
    """A broker that is up. Raises ConfigError."""
    run_dir = parse(bootstrap_servers).run_dir
    if run_dir is None:
        return Target(bootstrap_servers, None)
    paths = paths_for(ServerConfig(broker=BrokerSection(run_dir=str(run_dir))))
    return Target(bootstrap_servers, paths.boards_dir)
