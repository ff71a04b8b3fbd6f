"""`producer.sender`: records without a value, and records that cannot be encoded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zbroker.client.admin import AdminClient
from zbroker.client.producer import Producer
from zbroker.errors import InvalidRecordError
from zbroker.ids import TopicPartition
from zbroker.testing import Broker


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=1) as found:
        yield found


def written(broker: Broker, topic: str) -> int:
    """How many records the topic's one partition has."""
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        return admin.list_offsets({(topic, 0): "latest"})[TopicPartition(topic, 0)].offset


def test_a_record_without_a_value_is_emitted_like_any_other(broker: Broker) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        emit = producer.sender("no-value")
        for number in range(200):
            emit(None)
            emit(None, b"key-%d" % number)
        assert producer.flush(timeout_ms=20_000) == 0
    assert written(broker, "no-value") == 400


def test_records_that_cannot_be_encoded_are_said_by_flush_and_by_on_error(broker: Broker) -> None:
    said: list[Exception] = []
    with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        emit = producer.sender("not-encodable", on_error=said.append)
        emit("text")
        with pytest.raises(InvalidRecordError):
            producer.flush(timeout_ms=20_000)
        assert [type(error) for error in said] == [InvalidRecordError]
        emit(b"good")
        assert producer.flush(timeout_ms=20_000) == 0
    assert written(broker, "not-encodable") == 1
