"""Columns that only some batches have, and what is called when a record's batch is done.

A batch begins with values alone. The first key, header or timestamp adds its column, with what the records before it
have in that place. All but `deliver_to` is called under the producer's lock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zbroker.client.batches import Batch
from zbroker.clock import NS_PER_MS
from zbroker.record.records import Header

_log = logging.getLogger(__name__)


def add_key(batch: Batch, index: int, key: bytes | None) -> None:
    """The key of the record at `index`, the newest one."""
    if not batch.has_keys:
        batch.has_keys = True
        batch.is_plain = False
        batch.is_keyed = not batch.has_extras
        batch.keys = [None] * index
    batch.keys.append(key)


def add_extras(batch: Batch, index: int, headers: tuple[Header, ...], timestamp_ms: int | None) -> None:
    """Headers and time of the record at `index`, the newest one. A record without a time gets the present one."""
    batch.has_extras = True
    batch.is_plain = batch.is_keyed = False
    if headers or batch.has_headers:
        if not batch.has_headers:
            batch.has_headers = True
            batch.headers = [()] * index
        batch.headers.append(headers)
    if timestamp_ms is not None or batch.has_times:
        now_ms = time.time_ns() // NS_PER_MS
        if not batch.has_times:
            batch.has_times = True
            batch.timestamps_ms = [now_ms] * index
        batch.timestamps_ms.append(now_ms if timestamp_ms is None else timestamp_ms)


def deliver_to(call: Callable[..., None], batch: Batch, index: int) -> None:
    """Call `call(metadata, None)` or `call(None, error)` when the record's batch is done."""

    def done(found: Batch) -> None:
        try:
            if found.error is not None:
                call(None, found.error)
            else:
                call(found.metadata(index), None)
        except Exception:
            # It runs in whichever thread receives: its error must not end another's wait.
            _log.exception("on_delivery of a record of %s:%d raised", found.queue.topic, found.queue.partition)

    batch.on_done(done)
