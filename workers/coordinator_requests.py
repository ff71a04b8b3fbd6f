"""What reaches the coordinator as messages, as events of its state machine."""

from __future__ import annotations

from typing import Final, NamedTuple

from zbroker.core import cluster_events as ev
from zbroker.errors import InvalidRequestError
from zbroker.wire.codec import decode
from zbroker.wire.copy_messages import DrainProcess, ElectLeaders, InitProducerId, MoveCopy
from zbroker.wire.inner_messages import AlterIsr, CopySuspect, Register
from zbroker.wire.layout import Api, Header
from zbroker.wire.messages import (
    AlterConfigs,
    CreatePartitions,
    CreateTopics,
    DeleteTopics,
    DescribeConfigs,
    Message,
    MetadataRequest,
)

TIMEOUT_DEFAULT_MS: Final = 30_000

_BODIES: Final[dict[int, type[Message]]] = {
    Api.METADATA: MetadataRequest,
    Api.CREATE_TOPICS: CreateTopics,
    Api.DELETE_TOPICS: DeleteTopics,
    Api.CREATE_PARTITIONS: CreatePartitions,
    Api.ALTER_CONFIGS: AlterConfigs,
    Api.DESCRIBE_CONFIGS: DescribeConfigs,
    Api.ELECT_LEADERS: ElectLeaders,
    Api.MOVE_COPY: MoveCopy,
    Api.DRAIN_PROCESS: DrainProcess,
    Api.INIT_PRODUCER_ID: InitProducerId,
}


class Request(NamedTuple):
    """Who waits for an answer, and to what."""

    return_address: bytes
    header: Header


def event_of(request: Request, body: bytes) -> ev.Event:
    """The event that a request is. Raises InvalidRequestError."""
    api = request.header.api
    if api == Api.REGISTER:
        return ev.ProcessRegistered(request, decode(Register, body))
    if api == Api.ALTER_ISR:
        return ev.IsrAlterationAsked(request, decode(AlterIsr, body))
    if api == Api.COPY_SUSPECT:
        return ev.CopyIsSuspect(request, decode(CopySuspect, body))
    if api == Api.DESCRIBE_CLUSTER:
        return ev.DescribeClusterAsked(request)
    if api not in _BODIES:
        raise InvalidRequestError(f"the coordinator does not answer api {api}")
    return ev.Asked(request, decode(_BODIES[api], body), request.header.timeout_ms or TIMEOUT_DEFAULT_MS)
