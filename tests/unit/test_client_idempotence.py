"""A producer's identity, numbers, names and conditions, against a broker that the test plays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.scripted_broker import ScriptedBroker, was_alone
from zbroker.client.delivery import Delivery
from zbroker.client.producer import Producer
from zbroker.client.settings import ProducerSettings, read_settings
from zbroker.errors import (
    ConfigError,
    CoordinatorNotAvailableError,
    DiskFullError,
    InvalidRecordError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    PolicyViolationError,
    ProducerFencedError,
    RecordListTooLargeError,
    WrongExpectedOffsetError,
)
from zbroker.record.batch import read_header
from zbroker.record.columns import encode_columns
from zbroker.record.producers import APPLICATION_IDS, application_id
from zbroker.record.view import RecordBatch


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with ScriptedBroker() as found:
        yield found


def connect(broker: ScriptedBroker, **settings: Any) -> Producer[Any, Any]:
    return Producer(bootstrap_servers=broker.address, **({"enable_idempotence": True} | settings))


def stamps(broker: ScriptedBroker) -> list[tuple[int, int, int]]:
    return [(batch.producer_id, batch.producer_epoch, batch.base_sequence) for _, batch in broker.produced]


def test_t27_answers_that_get_lost_store_nothing_twice(broker: ScriptedBroker) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    broker.drops = lambda header: chance.random() < 0.3
    with connect(broker, request_timeout_ms=40) as producer:
        futures = [
            producer.send_many("t", [b"%d" % number for number in range(first, first + 30)])
            for first in range(0, 3_000, 30)
        ]
        assert [future.result(30)[0].base_offset for future in futures] == list(range(0, 3_000, 30)), seed
    assert broker.partitions[0].values == [b"%d" % number for number in range(3_000)], seed
    assert len(broker.produced) > 100, "nothing was lost"


def test_numbers_follow_each_other_by_records_and_stay_with_their_batch(broker: ScriptedBroker) -> None:
    refusals = iter([0, NotLeaderForPartitionError.code, DiskFullError.code, 0, 0])
    broker.refuse = lambda header, batch: next(refusals)
    with connect(broker) as producer:
        for values in ([b"a", b"b"], [b"c"], [b"d", b"e"]):
            producer.send_many("t", values).result(10)
    (own_id, _, _), *_ = stamps(broker)
    assert own_id == 1_001
    assert stamps(broker) == [(own_id, 0, 0), *[(own_id, 0, 2)] * 3, (own_id, 0, 3)]


def test_what_keeps_a_batch_waiting_is_said_once_and_a_lost_leader_is_not(
    broker: ScriptedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = iter([NotLeaderForPartitionError.code, DiskFullError.code, DiskFullError.code, 0])
    broker.refuse = lambda header, batch: next(refusals)
    with connect(broker) as producer:
        producer.send("t", b"a").result(10)
    assert [(record.levelname, "t:0: " in record.message) for record in caplog.records] == [("WARNING", True)]
    assert "as the test wants" in caplog.text
    assert DiskFullError.hint in caplog.text


def test_a_batch_that_is_refused_for_good_leaves_no_gap(broker: ScriptedBroker) -> None:
    refusals = iter([0, PolicyViolationError.code, 0])
    broker.refuse = lambda header, batch: next(refusals)
    with connect(broker) as producer:
        producer.send_many("t", [b"a", b"b"]).result(10)
        with pytest.raises(PolicyViolationError):
            producer.send("t", b"refused").result(10)
        assert producer.send("t", b"c").result(10).offset == 2
    assert [sequence for _, _, sequence in stamps(broker)] == [0, 2, 2]


def test_a_producer_that_the_leader_has_forgotten_goes_on_under_a_new_id(broker: ScriptedBroker) -> None:
    with connect(broker) as producer:
        producer.send("t", b"a").result(10)
        broker.partitions[0].forget_producers()
        assert producer.send("t", b"b").result(10).offset == 1
        assert producer.send("t", b"c").result(10).offset == 2
    assert stamps(broker) == [(1_001, 0, 0), (1_001, 0, 1), (1_002, 0, 0), (1_002, 0, 1)]


def test_each_partition_is_numbered_for_itself() -> None:
    with ScriptedBroker(partitions=2) as broker, connect(broker) as producer:
        for _ in range(2):
            for partition in (0, 1):
                producer.send("t", b"x", partition=partition).result(10)
        assert [sequence for _, _, sequence in stamps(broker)] == [0, 0, 1, 1]
        assert broker.ids_given == 1


def test_t27_a_newer_producer_of_the_same_name_fences_the_older_for_good(broker: ScriptedBroker) -> None:
    with connect(broker, transactional_id="pay") as older, connect(broker, transactional_id="pay") as newer:
        assert older.send("t", b"old").result(10).offset == 0
        assert newer.send("t", b"new").result(10).offset == 1
        with pytest.raises(ProducerFencedError):
            older.send("t", b"late").result(10)
        with pytest.raises(ProducerFencedError):
            older.send("t", b"later")
        with pytest.raises(ProducerFencedError):
            older.send_many("t", [b"later"])
        assert newer.send("t", b"newer").result(10).offset == 2
    assert broker.partitions[0].values == [b"old", b"new", b"newer"]


def test_a_named_producer_takes_no_new_id_behind_its_successors_back(broker: ScriptedBroker) -> None:
    with connect(broker, transactional_id="pay") as producer:
        producer.send("t", b"a").result(10)
        broker.partitions[0].forget_producers()
        with pytest.raises(ProducerFencedError, match="open 'pay' again"):
            producer.send("t", b"b").result(10)
    assert broker.epochs == {"pay": 0}


def test_a_coordinator_that_is_away_is_waited_for(broker: ScriptedBroker) -> None:
    broker.init_error = CoordinatorNotAvailableError.code
    with connect(broker) as producer:
        future = producer.send("t", b"a")
        wait_until(lambda: broker.init_count > 1, what="the id to be asked for again")
        broker.init_error = 0
        assert future.result(10).offset == 0


def test_an_id_that_is_refused_for_good_fails_the_records(broker: ScriptedBroker) -> None:
    broker.init_error = PolicyViolationError.code
    with connect(broker) as producer, pytest.raises(PolicyViolationError):
        producer.send("t", b"a").result(10)


def test_without_idempotence_nothing_is_numbered_and_another_producers_numbers_are_not_passed_on(
    broker: ScriptedBroker,
) -> None:
    foreign = encode_columns([b"read"], timestamp_ms=1, producer_id=7, producer_epoch=1, base_sequence=9)
    with connect(broker, enable_idempotence=False) as producer:
        producer.send("t", b"a").result(10)
        with memoryview(foreign) as view:
            read = RecordBatch("t", 0, view, header=read_header(view))
            producer.send_batch(read).result(10)
            read.release()
    assert stamps(broker) == [(-1, -1, -1)] * 2
    assert broker.ids_given == 0


def test_f02_a_name_is_stored_once_from_whatever_producer_and_to_one_partition() -> None:
    with ScriptedBroker(partitions=8) as broker:
        found = []
        for _ in range(3):
            with connect(broker) as producer:
                found.append(producer.send("t", b"order 7", dedup_id="order-7").result(10))
                assert producer.send_many("t", [b"x", b"y"], dedup_id=b"pair").result(10)[0].record_count == 2
                producer.send("t", b"nameless").result(10)
        assert len({(one.partition, one.offset) for one in found}) == 1
        values = [value for partition in broker.partitions for value in partition.values]
        assert sorted(values, key=str) == sorted([b"order 7", b"x", b"y", *[b"nameless"] * 3], key=str)
        named = [stamp for stamp in stamps(broker) if stamp[0] >= APPLICATION_IDS]
        assert named == [(application_id(b"order-7"), 0, 0), (application_id(b"pair"), 0, 0)] * 3


def test_f02_an_empty_name_is_refused(broker: ScriptedBroker) -> None:
    with connect(broker) as producer, pytest.raises(InvalidRecordError, match="dedup_id"):
        producer.send("t", b"a", dedup_id="")


def test_f04_an_atomic_batch_is_one_batch_or_nothing() -> None:
    with ScriptedBroker(partitions=8) as broker, connect(broker, max_request_size=100_000) as producer:
        values = [b"%d" % number for number in range(10_000)]
        assert producer.send_many("t", values, atomic=True).result(10)[0].record_count == 10_000
        assert [batch.record_count for _, batch in broker.produced] == [10_000]
        with pytest.raises(RecordListTooLargeError):
            producer.send_many("t", [*values, b"one more"], atomic=True)
        with pytest.raises(MessageSizeTooLargeError):
            producer.send_many("t", [bytes(100)] * 1_000, atomic=True)
        keys = [b"%d" % number for number in range(100)]
        with pytest.raises(InvalidRecordError, match="name one"):
            producer.send_many("t", values[:100], keys, atomic=True)
        named = producer.send_many("t", values[:100], keys, partition=3, atomic=True).result(10)
        assert [(one.partition, one.record_count) for one in named] == [(3, 100)]
        assert producer.send_many("t", [], atomic=True).result(10) == []
        assert producer.flush() == 0
        assert len(broker.produced) == 2


def test_f06_a_batch_is_stored_at_the_offset_it_expects_or_not_at_all(broker: ScriptedBroker) -> None:
    with connect(broker) as producer:
        assert producer.send("t", b"a", expected_offset=0).result(10).offset == 0
        assert producer.send_many("t", [b"b", b"c"], expected_offset=1).result(10)[0].base_offset == 1
        with pytest.raises(WrongExpectedOffsetError):
            producer.send("t", b"late", b"key", headers=[("h", b"v")], timestamp_ms=5, expected_offset=2).result(10)
        batch = producer.create_batch("t", partition=0)
        assert batch.append(b"d")
        assert producer.send_batch(batch, expected_offset=3).result(10)[0].base_offset == 3
        assert producer.send("t", b"e").result(10).offset == 4
    assert broker.partitions[0].values == [b"a", b"b", b"c", b"d", b"e"]


def test_f06_a_lost_answer_is_no_reason_to_find_the_own_record_in_the_way(broker: ScriptedBroker) -> None:
    broker.drops = lambda header: len(broker.produced) == 1
    with connect(broker, request_timeout_ms=100) as producer:
        assert producer.send("t", b"a", expected_offset=0).result(10).offset == 0
    assert len(broker.produced) > 1, "nothing was lost"


def test_f06_an_expected_offset_names_its_partition() -> None:
    with ScriptedBroker(partitions=2) as broker, connect(broker) as producer:
        with pytest.raises(InvalidRecordError, match="partition"):
            producer.send("t", b"a", expected_offset=0)
        with pytest.raises(InvalidRecordError, match="below 0"):
            producer.send("t", b"a", partition=1, expected_offset=-1)
        assert producer.send("t", b"a", partition=1, expected_offset=0).result(10).partition == 1


def test_what_goes_alone_says_so(broker: ScriptedBroker) -> None:
    with connect(broker) as producer:
        producer.send("t", b"a").result(10)
        producer.send("t", b"b").result(10)
    assert all(was_alone(header) for header, _ in broker.produced)


class OneLane:
    """A connection whose every request goes by one lane and is never answered."""

    def __init__(self) -> None:
        self.flags: list[int] = []

    def way(self, target: int, *sizes_bytes: int) -> Any:
        return self

    def submit(self, *_: Any, flags: int, **__: Any) -> int:
        self.flags.append(flags)
        return 0


def test_what_follows_another_on_its_way_does_not_say_that_it_is_alone() -> None:
    lane = OneLane()
    delivery = Delivery(lane, read_settings(ProducerSettings, None, {}))  # type: ignore[arg-type]  # all it needs
    queue = delivery.queue("t", 0)
    queue.needs_leader, queue.sequences = False, None
    delivery.leaders._routes["t", 0] = (16, 1, 0)  # type: ignore[assignment]  # as good as a Route
    for _ in range(3):
        batch = delivery.new_batch(queue)
        batch.encoded = encode_columns([b"x"], timestamp_ms=1)
        batch.count = 1
        queue.add_closed(batch)
    assert lane.flags == [1, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"enable_idempotence": True, "acks": 0},
        {"enable_idempotence": True, "max_in_flight_requests_per_connection": 6},
        {"transactional_id": "pay", "acks": 0},
        {"transactional_id": "pay", "enable_idempotence": False},
    ],
)
def test_settings_that_contradict_idempotence_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="idempotence"):
        read_settings(ProducerSettings, None, settings)


@pytest.mark.parametrize("settings", [{"acks": 0}, {"max_in_flight_requests_per_connection": 6}])
def test_idempotence_that_was_not_asked_for_gives_way(settings: dict[str, object]) -> None:
    assert not read_settings(ProducerSettings, None, settings).enable_idempotence
