"""The errors of consumer groups. Import them from `zbroker.errors`, where the whole table is."""

from __future__ import annotations

from zbroker.broker_error import BrokerError


class OffsetMetadataTooLargeError(BrokerError):
    """The metadata of a committed offset is too long."""

    code = 12


class NotCoordinatorError(BrokerError):
    """This coordinator has not taken its groups over yet."""

    code = 16
    retriable = True


class IllegalGenerationError(BrokerError):
    """The member does not own the partition in this generation of its group."""

    code = 22


class InconsistentGroupProtocolError(BrokerError):
    """No assignor is known to this member and to all others of its group."""

    code = 23
    hint = "partition_assignment_strategy must have one name in common in all members"


class InvalidGroupIdError(BrokerError):
    """Not a name of a group or member: 1 to 255 bytes of printable characters."""

    code = 24


class UnknownMemberIdError(BrokerError):
    """The group does not know this member: it left, was thrown out, or its session timed out. It joins again."""

    code = 25
    hint = "session_timeout_ms, max_poll_interval_ms; the consumer joins again by itself"


class InvalidSessionTimeoutError(BrokerError):
    """The session timeout is outside what the broker allows."""

    code = 26
    hint = "session_timeout_ms; [groups] session_timeout_min_ms, session_timeout_max_ms"


class NonEmptyGroupError(BrokerError):
    """The group has members: this is possible only without them."""

    code = 68
    hint = "stop the consumers of the group first"


class GroupIdNotFoundError(BrokerError):
    """No such group."""

    code = 69
    hint = "a group is there once a consumer with its group_id has come, or has committed"


class GroupMaxSizeReachedError(BrokerError):
    """The group has as many members as are allowed."""

    code = 81
    hint = "[groups] members_max"


class FencedInstanceIdError(BrokerError):
    """Another member has taken this one's group_instance_id over."""

    code = 82
    fatal = True
    hint = "two consumers with one group_instance_id"


class FencedMemberEpochError(BrokerError):
    """The member's epoch is not one that the coordinator gave it. It joins again."""

    code = 110


class UnreleasedInstanceIdError(BrokerError):
    """A living member has this group_instance_id."""

    code = 111
    hint = "two consumers with one group_instance_id"


class UnsupportedAssignorError(BrokerError):
    """The broker has no assignor of this name, and no member runs one."""

    code = 112
    hint = "partition_assignment_strategy: sticky, range, roundrobin, single-active, or a callable"


class StaleMemberEpochError(BrokerError):
    """The commit names an older epoch than the member's."""

    code = 113
    retriable = True


class CommitFailedError(BrokerError):
    """The partition was taken from this consumer: what it would commit is not kept, another reads on."""

    code = 1009
    hint = "max_poll_interval_ms; commit in the listener's on_partitions_revoked"


class RebalanceListenerError(BrokerError):
    """The listener of a subscription raised: what it was told of did not happen, and it is told again."""

    code = 1010
    hint = "the cause is the exception before this one"
