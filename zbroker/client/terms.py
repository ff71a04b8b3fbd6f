"""On what a batch is stored, beyond its place in the order: a name that the application gave it, an expected offset.

A name is not sent as a text: an id made from it goes where a producer's id would, so it is in the log with the batch
(`zbroker.record.producers`). A named batch has no number of its producer.
"""

from __future__ import annotations

from typing import NamedTuple

from zbroker.errors import InvalidRecordError
from zbroker.record.producers import application_id
from zbroker.wire.copy_messages import ProduceOptions


class Terms(NamedTuple):
    """On what a batch is stored: `name_id` stands for the application's name of it, 0: none."""

    options: ProduceOptions | None
    name_id: int


def terms_of(dedup_id: str | bytes | None, expected_offset: int | None) -> Terms | None:
    """What a user asked for, None: nothing. Raises InvalidRecordError for a name or an offset that can be none."""
    if dedup_id is None and expected_offset is None:
        return None
    name_id = 0
    if dedup_id is not None:
        name = dedup_id.encode() if isinstance(dedup_id, str) else bytes(dedup_id)
        if not name:
            raise InvalidRecordError("dedup_id: an empty name")
        name_id = application_id(name)
    if expected_offset is not None and expected_offset < 0:
        raise InvalidRecordError(f"expected_offset: {expected_offset} is below 0")
    return Terms(None if expected_offset is None else ProduceOptions(expected_offset), name_id)
