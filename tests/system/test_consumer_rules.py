"""Who may use a consumer, how its waits end, and which settings it takes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker.client.consumer import Consumer
from zbroker.errors import (
    BrokerNotAvailableError,
    ClosedError,
    ConcurrentUseError,
    ConfigError,
    ForkError,
)
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=1)
    with broker:
        make_topic(settings_for("shm", broker, address), "quiet", 2)
        make_topic(settings_for("shm", broker, address), "full", 1)
        fill(settings_for("shm", broker, address), "full", numbers(100))
        yield broker, address


class Asleep:
    """A consumer that waits in a thread of its own; `result` is what the wait gave or raised."""

    def __init__(self, consumer: Consumer[Any, Any], call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._call = call
        self.consumer = consumer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: consumer._use._depth > 0 or not self._thread.is_alive(), what="the wait")

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error

    def end(self) -> Any:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.result


@pytest.fixture
def consumer(way: dict[str, Any]) -> Iterator[Consumer[Any, Any]]:
    with Consumer("quiet", fetch_max_wait_ms=20_000, **way) as made:
        made.poll(timeout_ms=200)
        yield made


def test_wakeup_ends_a_poll_that_waits_and_only_that_one(consumer: Consumer[Any, Any]) -> None:
    asleep = Asleep(consumer, lambda: consumer.poll(timeout_ms=60_000))
    consumer.wakeup()
    assert asleep.end() == {}
    assert consumer.poll(timeout_ms=20) == {}


def test_a_wakeup_before_the_wait_ends_it_at_once(consumer: Consumer[Any, Any]) -> None:
    consumer.wakeup()
    assert consumer.consume(5, timeout_ms=None) == [], "it would wait without end"


def test_wakeup_ends_iterations(consumer: Consumer[Any, Any]) -> None:
    for call in (lambda: list(consumer), lambda: list(consumer.batches())):
        asleep = Asleep(consumer, call)
        consumer.wakeup()
        assert asleep.end() == []


def test_a_second_thread_is_refused_while_a_poll_waits(consumer: Consumer[Any, Any]) -> None:
    asleep = Asleep(consumer, lambda: consumer.poll(timeout_ms=60_000))
    for call in (consumer.poll, consumer.assignment, lambda: consumer.seek(("quiet", 0), 0), consumer.lag):
        with pytest.raises(ConcurrentUseError, match=r"wakeup\(\) and close\(\)"):
            call()
    consumer.wakeup()
    assert asleep.end() == {}


def test_close_from_another_thread_ends_a_poll_that_waits(consumer: Consumer[Any, Any]) -> None:
    asleep = Asleep(consumer, lambda: consumer.poll(timeout_ms=60_000))
    consumer.close()
    assert asleep.end() == {}
    for call in (consumer.poll, consumer.consume, consumer.assignment, consumer.unsubscribe, lambda: iter(consumer)):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(ClosedError):
        consumer.batches()
    consumer.close()
    consumer.wakeup()


def test_close_inside_an_iteration_ends_it(way: dict[str, Any]) -> None:
    consumer = Consumer("full", auto_offset_reset="earliest", **way)
    seen = []
    for record in consumer:
        seen.append(record.offset)
        if len(seen) == 3:
            consumer.close()
    assert seen == [0, 1, 2]


def test_a_forked_child_cannot_use_it_and_the_parent_goes_on(way: dict[str, Any]) -> None:
    with Consumer("full", auto_offset_reset="earliest", **way) as consumer:
        assert read_values(consumer, 1) == [b"0"]
        pid = os.fork()
        if pid == 0:
            try:
                consumer.poll()
            except ForkError as error:
                consumer.close()
                os._exit(0 if "post_fork" in str(error) and f"used in pid {os.getpid()}" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert read_values(consumer, 99) == numbers(99, 1)


def test_pickling_is_refused(consumer: Consumer[Any, Any]) -> None:
    with pytest.raises(TypeError, match="create one per process"):
        pickle.dumps(consumer)


def is_asleep(pid: int) -> bool:
    """Whether a process sleeps in a system call."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


_WAITER = """
import sys
from zbroker.client.consumer import Consumer
way, call = eval(sys.argv[1]), sys.argv[2]
with Consumer("quiet", fetch_max_wait_ms=20_000, **way) as consumer:
    consumer.position(("quiet", 0)) if call == "position" else consumer.poll(timeout_ms=200)
    print("ready", flush=True)
    try:
        if call == "iterate":
            for record in consumer: ...
        elif call == "batches":
            for batch in consumer.batches(): ...
        else:
            consumer.poll(timeout_ms=60_000)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        print(consumer.poll(timeout_ms=10))
"""


@pytest.mark.parametrize("call", ["poll", "iterate", "batches"])
def test_ctrl_c_ends_any_wait_and_leaves_a_usable_consumer(way: dict[str, Any], call: str) -> None:
    command = [sys.executable, "-c", _WAITER, repr(way), call]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # An interrupt that comes before the wait must end it as well, so what it sleeps in need not be known.
        wait_until(lambda: is_asleep(process.pid), what="the wait")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert (out, errors) == ("interrupted\n{}\n", "")


def test_settings_are_checked_before_anything_is_connected() -> None:
    with pytest.raises(ConfigError, match="'auto_offset_reset'"):
        Consumer(auto_ofset_reset="earliest")
    with pytest.raises(ConfigError, match="auto_offset_reset"):
        Consumer({"auto.offset.reset": "smallest"})
    with pytest.raises(ConfigError, match="group_id"):
        Consumer("t", group_id="a/b")
    with pytest.raises(ConfigError, match="one mapping"):
        Consumer({}, {})
    with pytest.raises(BrokerNotAvailableError):
        Consumer(bootstrap_servers="ipc:///nonexistent-zbroker")


def test_dotted_names_and_topics_may_be_mixed(way: dict[str, Any]) -> None:
    with Consumer({"auto.offset.reset": "earliest", "max.poll.records": 7}, "full", **way) as consumer:
        assert consumer.subscription() == {"full"}
        assert len(consumer.consume(timeout_ms=20_000)) == 1
        assert sum(map(len, consumer.poll(timeout_ms=20_000).values())) == 7
        with pytest.raises(ValueError, match="at least 1"):
            consumer.poll(max_records=0)


def test_a_transport_of_shared_memory_alone_is_refused_over_tcp(served: tuple[Broker, str]) -> None:
    with pytest.raises(Exception, match="cannot share memory"):
        Consumer("full", bootstrap_servers=served[1], transport="shm")


def test_a_consumer_leaves_no_descriptor_behind(way: dict[str, Any]) -> None:
    def use() -> None:
        with Consumer("full", auto_offset_reset="earliest", **way) as consumer:
            read_values(consumer, 100)
            consumer.poll(timeout_ms=20)

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        use()
    assert len(os.listdir("/proc/self/fd")) <= before
