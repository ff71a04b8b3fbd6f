"""zbroker: a Kafka-like log broker for one host.

    with Producer() as p:
        p.send("orders", b"value", key=b"k").result()
    with Consumer("orders", auto_offset_reset="earliest") as c:
        for record in c: ...

Names are imported when they are first used (PEP 562), so that `import zbroker` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zbroker import errors as errors
    from zbroker.client.admin import AdminClient as AdminClient
    from zbroker.client.admin import NewTopic as NewTopic
    from zbroker.client.consumer import Consumer as Consumer
    from zbroker.client.producer import Producer as Producer
    from zbroker.client.subscription import RebalanceListener as RebalanceListener
    from zbroker.ids import TopicPartition as TopicPartition
    from zbroker.record.records import ConsumerRecord as ConsumerRecord
    from zbroker.record.records import OffsetAndMetadata as OffsetAndMetadata
    from zbroker.record.records import OffsetAndTimestamp as OffsetAndTimestamp
    from zbroker.record.records import RecordMetadata as RecordMetadata
    from zbroker.record.view import RecordBatch as RecordBatch

__version__ = "0.1.0"

_PLACES = {
    "AdminClient": "zbroker.client.admin",
    "Consumer": "zbroker.client.consumer",
    "ConsumerRecord": "zbroker.record.records",
    "NewTopic": "zbroker.client.admin",
    "OffsetAndMetadata": "zbroker.record.records",
    "OffsetAndTimestamp": "zbroker.record.records",
    "Producer": "zbroker.client.producer",
    "RebalanceListener": "zbroker.client.subscription",
    "RecordBatch": "zbroker.record.view",
    "RecordMetadata": "zbroker.record.records",
    "TopicPartition": "zbroker.ids",
}

__all__ = [
    "AdminClient",
    "Consumer",
    "ConsumerRecord",
    "NewTopic",
    "OffsetAndMetadata",
    "OffsetAndTimestamp",
    "Producer",
    "RebalanceListener",
    "RecordBatch",
    "RecordMetadata",
    "TopicPartition",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("zbroker.errors")
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'zbroker' has no attribute {name!r}")
    found = getattr(import_module(place), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
