"""The asyncio clients with a real broker: every way to reach it, waiting, giving up, errors, groups."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.conditions import wait_until_stopped
from tests.consuming import broker_with_tcp, fill, make_topic, numbers
from zbroker import AdminClient as BlockingAdminClient
from zbroker import Consumer as BlockingConsumer
from zbroker import NewTopic
from zbroker import Producer as BlockingProducer
from zbroker.aio import AdminClient, Consumer, Producer
from zbroker.errors import (
    BrokerNotAvailableError,
    BufferFullError,
    ClosedError,
    CommitFailedError,
    ConcurrentUseError,
    ConfigError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    TimeoutError_,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from zbroker.ids import TopicPartition
from zbroker.testing import Broker

LIMIT_S = 60
READ_MS = 20_000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a test's coroutine, with a limit, and see that it started no thread but those of groups."""

    async def limited() -> Any:
        async with asyncio.timeout(LIMIT_S):
            found = await main()
        names = {thread.name for thread in threading.enumerate()} - {"MainThread"}
        assert not any(name.startswith(("asyncio", "ThreadPool", "zbroker")) for name in names), names
        return found

    return asyncio.run(limited())


async def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


async def values_of(consumer: Consumer[Any, Any], count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        more = await consumer.consume(count - len(found), timeout_ms=20_000)
        assert more, f"{len(found)} of {count}"
        found += [record.value for record in more]
    return found


def test_records_go_in_and_come_out_in_order_of_their_keys(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        async with Producer(way) as producer:
            futures = [await producer.send(topic, b"%d" % index, b"k%d" % (index % 5)) for index in range(2_000)]
            found = [await future for future in futures]
            assert {one.topic for one in found} == {topic}
            assert len({(one.partition, one.offset) for one in found}) == 2_000
            assert await producer.flush() == 0
        seen: dict[Any, list[int]] = {}
        async with Consumer(topic, way, auto_offset_reset="earliest") as consumer:
            async for record in consumer:
                seen.setdefault(record.key, []).append(int(record.value or b""))
                if sum(map(len, seen.values())) == 2_000:
                    break
        assert all(one == sorted(one) for one in seen.values())
        assert sorted(sum(seen.values(), start=[])) == list(range(2_000))  # noqa: RUF017

    run(main)


def test_a_consumer_that_waits_wakes_for_a_record_and_lets_other_tasks_run(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        settings: dict[str, Any] = {**way, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 3 * READ_MS}
        async with Producer(way) as producer, Consumer(topic, settings) as consumer:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            for index in range(20):
                reading = asyncio.create_task(consumer.consume(timeout_ms=READ_MS))
                await asyncio.sleep(0.005)
                assert not reading.done()
                await producer.send_and_wait(topic, b"%d" % index)
                assert [record.value for record in await reading] == [b"%d" % index]
            counting.cancel()
            assert turns > 20

    run(main)


def test_a_read_that_is_cancelled_loses_no_record(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        async with Producer(way) as producer, Consumer(topic, way, auto_offset_reset="earliest") as consumer:

            async def write() -> None:
                for index in range(300):
                    await producer.send(topic, b"%d" % index, partition=0)
                    await asyncio.sleep(0.001)

            writing = asyncio.create_task(write())
            seen: list[int] = []
            cancelled = 0
            while len(seen) < 300:
                try:
                    async with asyncio.timeout(0.002):
                        seen += [int(record.value or b"") for record in await consumer.consume(10, timeout_ms=5_000)]
                except TimeoutError:
                    cancelled += 1
            await writing
            assert seen == list(range(300))
            assert cancelled > 0

    run(main)


def test_sending_waits_while_the_buffer_is_full_and_gives_up(served: tuple[Broker, str]) -> None:
    broker, _ = served
    way = {"bootstrap_servers": broker.bootstrap_servers, "buffer_memory": 1 << 20, "batch_size": 16 << 10}
    make_topic({"bootstrap_servers": broker.bootstrap_servers}, "full", 1)
    names = [name for name in broker.process_names() if name.startswith("worker")]

    async def main() -> None:
        async with Producer(way, max_block_ms=2_000, max_request_size=64 << 10) as producer:
            await producer.send_and_wait("full", b"first")
            pids = [broker.signal(name, signal.SIGSTOP) for name in names]
            sent: list[asyncio.Future[Any]] = []
            try:
                wait_until_stopped(*pids)

                async def send_on() -> None:
                    while True:
                        sent.append(await producer.send("full", b"x" * 10_000))

                with pytest.raises(BufferFullError):
                    await send_on()
                assert len(sent) >= 50
                assert not any(future.done() for future in sent)
                waiting = asyncio.create_task(producer.send("full", b"last"))
                await asyncio.sleep(0.05)
                assert not waiting.done()
            finally:
                for name in names:
                    broker.signal(name, signal.SIGCONT)
            await (await waiting)
            await asyncio.gather(*sent)

    run(main)


def test_a_list_larger_than_the_buffer_is_stored_once(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        async with Producer(way, buffer_memory=1 << 20) as producer:
            sent = await producer.send_many(topic, [b"%06d" % number + bytes(1_000) for number in range(4_000)])
            assert sum(part.record_count for part in await sent) == 4_000
            partitions = await producer.partitions_for(topic)
        async with Consumer(way) as consumer:
            ends = await consumer.end_offsets([(topic, number) for number in partitions])
            assert sum(ends.values()) == 4_000

    run(main)


def test_errors_are_those_of_the_other_clients(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="did you mean 'linger_ms'"):
            Producer(way, linger_msec=3)
        with pytest.raises(BrokerNotAvailableError):
            await Consumer(topic, bootstrap_servers="ipc:///nowhere/at/all").start()
        with pytest.raises(ClosedError, match="not started"):
            await Producer(way).send(topic, b"value")
        async with Producer(way, max_block_ms=2_000) as producer:
            with pytest.raises(MessageSizeTooLargeError):
                await producer.send(topic, b"x" * 3_000_000)
            with pytest.raises(UnknownTopicOrPartitionError):
                await producer.send(topic, b"value", partition=99)
            with pytest.raises(InvalidRecordError):
                await producer.send(topic, 7)
        with pytest.raises(ClosedError):
            await producer.send(topic, b"value")
        async with Consumer(topic, way, auto_offset_reset="none") as consumer:
            with pytest.raises(OffsetOutOfRangeError):
                await consumer.consume(timeout_ms=5_000)
        async with Consumer("not-there-" + topic, way) as consumer:
            with pytest.raises(UnknownTopicOrPartitionError):
                await consumer.poll(timeout_ms=5_000)

    run(main)


def test_positions_seeks_and_queries(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(100))
    tp = TopicPartition(topic, 0)

    async def main() -> None:
        async with Consumer(way) as consumer:
            await consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            assert await consumer.position(tp) == 0
            assert await consumer.end_offsets([tp]) == {tp: 100}
            await consumer.seek(tp, 90)
            assert await values_of(consumer, 10) == numbers(10, 90)
            assert await consumer.lag() == {tp: 0}
            await consumer.seek_to_last(5, tp)
            await consumer.pause(tp)
            assert await consumer.consume(timeout_ms=50) == []
            await consumer.resume(tp)
            assert (await anext(consumer.batches(timeout_ms=20_000))).last_offset == 99
            assert topic in await consumer.topics()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await consumer.consume(timeout_ms=None)
            assert await consumer.position(tp) == 100

    run(main)


def test_one_task_at_a_time_and_an_end_from_another(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        consumer: Consumer[Any, Any] = Consumer(topic, way)
        await consumer.start()

        async def read() -> list[Any]:
            return [record async for record in consumer]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)  # it begins
        with pytest.raises(ConcurrentUseError):
            await consumer.poll()
        consumer.wakeup()
        assert await reading == []
        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        await consumer.close()
        await consumer.close()
        assert await reading == []
        with pytest.raises(ClosedError):
            await consumer.poll()

    run(main)


def test_members_of_a_group_share_commit_and_hand_over(way: dict[str, Any], topic: str) -> None:
    for partition in range(3):
        fill(way, topic, numbers(20), partition=partition)
    settings = {**way, "group_id": topic, "auto_offset_reset": "earliest", "enable_auto_commit": False}

    async def main() -> None:
        async with Consumer(topic, settings) as first:
            seen = 0
            async for record in first:
                await first.commit(record)
                seen += 1
                if seen == 60:
                    break
            async with Consumer(topic, settings) as second:

                async def both() -> bool:
                    await first.poll(timeout_ms=5)
                    await second.poll(timeout_ms=5)
                    return bool(first.assignment()) and bool(second.assignment())

                while not await both():
                    pass
                assert not first.assignment() & second.assignment()
                taken = next(iter(second.assignment()))
                with pytest.raises(CommitFailedError):
                    await first.commit({taken: 1})
                found = await second.committed([TopicPartition(topic, number) for number in range(3)])
                assert {one.offset for one in found.values() if one is not None} == {20}
                await second.commit(durable=True)
            while len(first.assignment()) < 3:
                await first.poll(timeout_ms=5)
        async with Consumer(topic, settings) as third:
            while len(third.assignment()) < 3:
                assert await third.consume(timeout_ms=5) == [], "everything was committed"
            assert {await third.position(tp) for tp in third.assignment()} == {20}

    run(main)


def test_a_consumer_that_commits_by_itself_leaves_nothing_to_its_successor(way: dict[str, Any], topic: str) -> None:
    fill(way, topic, numbers(50))
    settings = {**way, "group_id": topic, "auto_offset_reset": "earliest"}

    async def main() -> None:
        async with Consumer(topic, settings) as first:
            assert await values_of(first, 30) == numbers(30)
        async with Consumer(topic, settings) as second:
            assert await values_of(second, 20) == numbers(20, 30)

    run(main)


def test_topics_are_made_described_and_deleted(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        async with AdminClient(way) as admin:
            name = "made-" + topic
            await admin.create_topics([NewTopic(name, 2)])
            with pytest.raises(TopicAlreadyExistsError):
                await admin.create_topics([name])
            await admin.create_partitions({name: 4})
            await admin.wait_for_topics([name])
            assert len((await admin.describe_topics([name]))[name].partitions) == 4
            assert name in await admin.list_topics()
            assert (await admin.list_offsets({(name, 3): "latest"}))[TopicPartition(name, 3)].offset == 0
            await admin.delete_topics([name])
            with pytest.raises(UnknownTopicOrPartitionError):
                await admin.describe_topics([name])
            assert (await admin.describe_cluster()).processes
        with pytest.raises(ClosedError):
            await admin.list_topics()

    run(main)


def test_many_at_once_named_batches_and_what_is_not_acknowledged_in_time(way: dict[str, Any], topic: str) -> None:
    async def main() -> None:
        async with Producer(way) as producer:
            ranges = await (await producer.send_many(topic, numbers(5_000), partition=1))
            assert sum(one.record_count for one in ranges) == 5_000
            first = await (await producer.send_many(topic, [b"a", b"b"], dedup_id="once"))
            assert await (await producer.send_many(topic, [b"a", b"b"], dedup_id="once")) == first
            batch = producer.create_batch(topic, partition=2)
            assert batch.append(b"value")
            assert (await (await producer.send_batch(batch)))[0].record_count == 1
            assert await producer.partitions_for(topic) == [0, 1, 2]
            with pytest.raises(TimeoutError_):
                await producer.send_and_wait(topic, b"late", timeout_ms=0)

    run(main)


def test_clients_live_through_the_death_of_a_worker(served: tuple[Broker, str]) -> None:
    broker, _ = served
    way = {"bootstrap_servers": broker.bootstrap_servers}
    make_topic(way, "deaths", 2)

    async def main() -> None:
        async with Producer(way) as producer, Consumer("deaths", way, auto_offset_reset="earliest") as consumer:
            seen: list[int] = []

            async def read() -> None:
                async for record in consumer:
                    seen.append(int(record.value or b""))

            reading = asyncio.create_task(read())
            for index in range(400):
                if index in (100, 250):
                    name = "worker-0" if index == 100 else "worker-1"
                    broker.kill(name)
                await (await producer.send("deaths", b"%d" % index, partition=index % 2))
            await until(lambda: len(seen) == 400)
            await consumer.close()
            await reading
            assert sorted(seen) == list(range(400))

    run(main)


def test_no_call_of_the_other_clients_is_missing() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(BlockingAdminClient) <= public(AdminClient)
    assert public(BlockingConsumer) <= public(Consumer) | {"settings"}
    own_way = {"sender", "failed_at_close", "disarm_in_child"}
    assert public(BlockingProducer) <= public(Producer) | own_way
