"""The clients for asyncio: the same names, settings and errors, awaited.

    async with aio.Producer() as producer:
        await producer.send("orders", b"value")
    async with aio.Consumer("orders", auto_offset_reset="earliest") as consumer:
        async for record in consumer: ...

They run on the event loop's own thread: it watches the ZeroMQ socket, the doorbell of the lanes and the broker's
processes as descriptors (`connection`). There is no thread pool. A consumer with a `group_id` has one thread of its
own, which sends heartbeats while the application keeps the loop busy. What takes several round trips is the code of
the other clients, run again as its answers come (`replay`). Listeners and callbacks are plain functions, called by the
loop's thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zbroker.aio.admin import AdminClient as AdminClient
    from zbroker.aio.consumer import Consumer as Consumer
    from zbroker.aio.producer import Producer as Producer

_PLACES = {
    "AdminClient": "zbroker.aio.admin",
    "Consumer": "zbroker.aio.consumer",
    "Producer": "zbroker.aio.producer",
}

__all__ = ["AdminClient", "Consumer", "Producer"]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'zbroker.aio' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(place), name)
    return found
