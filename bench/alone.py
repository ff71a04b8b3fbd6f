"""What one record that is waited for costs its client: CPU time of the calling thread alone, `python -m bench.alone`.

The worker is imitated in the same thread: what goes into the lane is answered at once, out of no ring. So nothing
sleeps, and the figures depend little on what else the host does. "cold": between two records other Python runs, and
6 MiB are copied, so that the caches hold what they would hold after a pause. Ring, bell and sleep are not in it.
"""

from __future__ import annotations

import difflib
import fractions
import random
import textwrap
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import click

from zbroker.client.admin import AdminClient, NewTopic
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.testing import Broker
from zbroker.wire.layout import PRODUCED, pack_reply, unpack_header

WARM = 300
COPIED_BYTES = 6 << 20


def imitate(producer: Producer[Any, Any]) -> None:
    """Have every request of this producer answered at once, as if it had been appended."""
    for lane in producer._connection._lanes.values():
        replies: deque[list[bytes]] = deque()

        def answer(frames: Any, _: int, replies: deque[list[bytes]] = replies) -> bool:
            replies.append([pack_reply(unpack_header(frames[0])), PRODUCED.pack(0, -1, 0)])
            return True

        found: Any = lane
        found.send = answer
        found.receive = lambda replies=replies: replies.popleft() if replies else None
        found.readable = replies.__len__


def evict() -> None:
    """Fill the caches with something else."""
    bytearray(COPIED_BYTES)[:] = bytes(COPIED_BYTES)
    textwrap.wrap("the quick brown fox jumps over the lazy dog", 30)
    fractions.Fraction(random.random()).limit_denominator(1000)
    difflib.SequenceMatcher(None, "abcdefg", "acdefgh").ratio()


def cost_us(call: Callable[[], object], records: int, before: Callable[[], object]) -> float:
    """Median CPU time of this thread for a call."""
    spent_ns = []
    for _ in range(records):
        before()
        began_ns = time.thread_time_ns()
        call()
        spent_ns.append(time.thread_time_ns() - began_ns)
    return median(spent_ns) / 1000


@click.command()
@click.option("--records", default=2_000, show_default=True, help="Of each row.")
def main(records: int) -> None:
    """Measure and print."""
    value = bytes(100)
    with Broker(workers=1) as broker:
        servers = broker.bootstrap_servers
        with AdminClient(bootstrap_servers=servers) as admin:
            admin.create_topics([NewTopic("sent", 1), NewTopic("read", 1)])
        with Producer(bootstrap_servers=servers) as producer, Consumer(bootstrap_servers=servers) as consumer:
            consumer.assign([("read", 0)])
            consumer.position(("read", 0))

            def append() -> None:
                producer.send("read", value).result(10)

            def append_and_evict() -> None:
                append()
                evict()

            def read() -> None:
                assert consumer.consume(100, timeout_ms=10_000)

            append()
            read()
            print(f"consume one record that is there: {cost_us(read, records, append):6.1f} us", end="")
            print(f", cold {cost_us(read, records // 2, append_and_evict):6.1f} us")
            producer.send("sent", value).result(10)
            imitate(producer)

            def send() -> None:
                producer.send("sent", value).result(10)

            cost_us(send, WARM, int)
            print(f"send and wait for the answer:     {cost_us(send, records, int):6.1f} us", end="")
            print(f", cold {cost_us(send, records // 2, evict):6.1f} us")


if __name__ == "__main__":
    main()
