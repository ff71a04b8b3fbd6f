"""How somebody becomes a member: what is refused, and the member that comes of a heartbeat or of a slot file."""

from __future__ import annotations

from typing import Final

from zbroker.config.schema import GroupsSection
from zbroker.core.group_events import FoundMember
from zbroker.core.group_member import Holding, Member
from zbroker.core.group_offsets import Committed, Offsets
from zbroker.core.image import Image
from zbroker.errors import InvalidGroupIdError, InvalidRequestError, InvalidSessionTimeoutError
from zbroker.wire.group_messages import GroupHeartbeat

NAME_BYTES_MAX: Final = 255
TOPICS_MAX: Final = 10_000
ASSIGNORS_MAX: Final = 16


def check_name(name: str, what: str) -> None:
    """Raises InvalidGroupIdError for what cannot name a group or a member."""
    if not name or not name.isprintable() or len(name.encode("utf-8", "replace")) > NAME_BYTES_MAX:
        raise InvalidGroupIdError(f"{what}: {name[:64]!r}; 1 to {NAME_BYTES_MAX} bytes of printable characters")


def check_heartbeat(body: GroupHeartbeat, config: GroupsSection) -> None:
    """Raises InvalidGroupIdError, InvalidSessionTimeoutError, InvalidRequestError for a member that cannot be."""
    check_name(body.group_id, "group_id")
    check_name(body.member_id, "member_id")
    for name, what in ((body.instance_id, "group_instance_id"), (body.client_id, "client_id")):
        if name:
            check_name(name, what)
    least, most = config.session_timeout_min_ms, config.session_timeout_max_ms
    if not least <= body.session_timeout_ms <= most:
        raise InvalidSessionTimeoutError(f"session_timeout_ms {body.session_timeout_ms}: {least} to {most} are allowed")
    if body.max_poll_interval_ms <= 0 or body.polled_ago_ms < 0:
        raise InvalidRequestError(f"max_poll_interval_ms {body.max_poll_interval_ms}, polled {body.polled_ago_ms} ago")
    if len(body.topics) > TOPICS_MAX or len(body.assignors) > ASSIGNORS_MAX:
        raise InvalidRequestError(f"{len(body.topics)} topics and {len(body.assignors)} assignors in one subscription")
    if body.owned:
        raise InvalidRequestError("a member that joins owns nothing")


def joined(body: GroupHeartbeat, incarnation: int, now_ns: int) -> Member:
    """The member that a first heartbeat makes."""
    member = Member(
        member_id=body.member_id,
        instance_id=body.instance_id,
        client_id=body.client_id,
        incarnation=incarnation,
        joined=0,
        heard_ns=now_ns,
        session_timeout_ms=body.session_timeout_ms,
        max_poll_interval_ms=body.max_poll_interval_ms,
        polled_ns=now_ns,
    )
    member.take_subscription(body)
    member.take_signs_of_life(body, now_ns)
    return member


def restored(found: FoundMember, offsets: Offsets, image: Image, now_ns: int) -> Member:
    """A member of before. What it holds is what it had; until it is heard, it wants the topics of that."""
    holdings = {}
    for one in found.slots:
        if one.is_open:
            start = offsets.get(found.group_id, one.key)
            if one.start >= 0 and (start is None or start.offset != one.start):
                start = Committed(one.start)
            holdings[one.key] = Holding(one.file, one.slot, one.granted_epoch, start)
    return Member(
        member_id=found.member_id,
        instance_id=found.instance_id,
        client_id=found.client_id,
        incarnation=found.incarnation,
        joined=0,
        heard_ns=now_ns,
        session_timeout_ms=found.session_timeout_ms,
        max_poll_interval_ms=found.max_poll_interval_ms,
        polled_ns=now_ns,
        epoch=found.member_epoch,
        topics=tuple(sorted({image.topics[key[0]].name for key in holdings if key[0] in image.topics})),
        holdings=holdings,
        target=frozenset(holdings),
        away_since_ns=found.away_since_ns,
        is_heard=False,
    )
