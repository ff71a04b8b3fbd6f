"""What is said to those who ask a process that is not there, or whose end came before its answer."""

from __future__ import annotations

from typing import Final

from zbroker import ids
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    CoordinatorNotAvailableError,
    InvalidRequestError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
)
from zbroker.wire.layout import Api, Header

PROCESS_NUMBER_MAX: Final = 1 << 20


def may_be_process(number: int) -> bool:
    """Whether a process of the broker behind the router can have this number."""
    return number == ids.COORDINATOR or ids.worker_number(0) <= number < PROCESS_NUMBER_MAX


def absent(target: int) -> BrokerError:
    """The process is not there, so that it surely was not asked."""
    if target == ids.COORDINATOR:
        return CoordinatorNotAvailableError("the coordinator is not connected")
    if may_be_process(target):
        return LeaderNotAvailableError(f"{ids.process_name(target)} is not connected")
    return InvalidRequestError(f"{target} names no process")


def ended(header: Header, what: str) -> BrokerError:
    """What the end of a process, or of its connection, means for a request that it was given, and of which nobody knows
    whether it was done."""
    name = ids.process_name(header.target)
    if header.target == ids.COORDINATOR:
        # Not CoordinatorNotAvailableError: after that a client asks again also for what must not be done twice.
        text = f"the {name} {what} while it was asked; it may have done it or not"
        return BrokerNotAvailableError(text, hint=CoordinatorNotAvailableError.hint)
    if header.api == Api.OPEN_LANE:
        return absent(header.target)  # a lane of the dead is none
    return NotLeaderForPartitionError(f"{name} {what}")
