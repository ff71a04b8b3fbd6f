"""Every error that zbroker raises, as one table.

Guarantees: an error that a broker reports has a number (`code`), and `error_for(code)` gives back its class, so that an
error keeps its type across processes. Numbers below 1000 and class names are Kafka's (Kafka's `Errors.java`,
kafka-python's `kafka.errors`); zbroker's own begin at 1000. A number never changes its meaning.

`retriable` says that the same call may succeed later; `fatal` says that the object that raised it cannot be used again.
"""

from __future__ import annotations

from zbroker.broker_error import BrokerError as BrokerError
from zbroker.group_errors import CommitFailedError as CommitFailedError
from zbroker.group_errors import FencedInstanceIdError as FencedInstanceIdError
from zbroker.group_errors import FencedMemberEpochError as FencedMemberEpochError
from zbroker.group_errors import GroupIdNotFoundError as GroupIdNotFoundError
from zbroker.group_errors import GroupMaxSizeReachedError as GroupMaxSizeReachedError
from zbroker.group_errors import IllegalGenerationError as IllegalGenerationError
from zbroker.group_errors import InconsistentGroupProtocolError as InconsistentGroupProtocolError
from zbroker.group_errors import InvalidGroupIdError as InvalidGroupIdError
from zbroker.group_errors import InvalidSessionTimeoutError as InvalidSessionTimeoutError
from zbroker.group_errors import NonEmptyGroupError as NonEmptyGroupError
from zbroker.group_errors import NotCoordinatorError as NotCoordinatorError
from zbroker.group_errors import OffsetMetadataTooLargeError as OffsetMetadataTooLargeError
from zbroker.group_errors import RebalanceListenerError as RebalanceListenerError
from zbroker.group_errors import StaleMemberEpochError as StaleMemberEpochError
from zbroker.group_errors import UnknownMemberIdError as UnknownMemberIdError
from zbroker.group_errors import UnreleasedInstanceIdError as UnreleasedInstanceIdError
from zbroker.group_errors import UnsupportedAssignorError as UnsupportedAssignorError


class UnknownError(BrokerError):
    """The broker met an error that it has no name for."""


class OffsetOutOfRangeError(BrokerError):
    """The offset is not in the log: retention deleted it, or it was never written."""

    code = 1
    hint = "zbroker offsets TOPIC shows the range; auto_offset_reset says where to go on"


class CorruptRecordError(BrokerError):
    """A record batch fails its CRC or contradicts its own lengths."""

    code = 2
    hint = "zbroker log verify PATH names the damaged batch"


class UnknownTopicOrPartitionError(BrokerError):
    """No such topic or partition."""

    code = 3
    retriable = True
    hint = "zbroker topics list; zbroker topics create NAME; auto_create_topics_enable creates on first send"


class LeaderNotAvailableError(BrokerError):
    """The partition has no leader at the moment."""

    code = 5
    retriable = True
    hint = "zbroker topics describe TOPIC shows each leader"


class NotLeaderForPartitionError(BrokerError):
    """This process does not lead the partition any more."""

    code = 6
    retriable = True
    hint = "zbroker topics describe TOPIC shows each leader"


class RequestTimedOutError(BrokerError):
    """The broker did not finish the request within its time."""

    code = 7
    retriable = True
    hint = "request_timeout_ms, delivery_timeout_ms; zbroker status shows whether the process lives"


class MessageSizeTooLargeError(BrokerError):
    """A record or batch is larger than the broker accepts."""

    code = 10
    hint = "max_request_size on the producer, message_max_bytes on the broker, max.message.bytes on the topic"


class InvalidTopicError(BrokerError):
    """Not a topic name: 1 to 249 of [a-zA-Z0-9._-], not '.' or '..'."""

    code = 17
    hint = "a name is 1 to 249 of [a-zA-Z0-9._-], not '.' or '..'"


class RecordListTooLargeError(BrokerError):
    """A batch holds more records or bytes than the broker accepts."""

    code = 18
    hint = "[limits] records_per_batch_max, message_max_bytes"


class NotEnoughReplicasError(BrokerError):
    """Fewer copies are in sync than min.insync.replicas; nothing was appended."""

    code = 19
    retriable = True
    hint = "zbroker topics describe TOPIC shows isr; min_insync_replicas"


class NotEnoughReplicasAfterAppendError(BrokerError):
    """The batch was appended, but too few copies are in sync to call it committed."""

    code = 20
    retriable = True
    hint = "zbroker topics describe TOPIC shows isr; min_insync_replicas"


class InvalidRequiredAcksError(BrokerError):
    """acks must be 0, 1, 'all' or 'fsync'."""

    code = 21


class ClusterAuthorizationFailedError(BrokerError):
    """This user may not use this broker: only the uid that started it may."""

    code = 31
    hint = "connect as the user that runs zbroker serve"


class UnsupportedVersionError(BrokerError):
    """The other side speaks no protocol version that this side knows."""

    code = 35
    hint = "zbroker --version on both sides; upgrade the older one"


class TopicAlreadyExistsError(BrokerError):
    """A topic of that name exists already, or differs from one only by '.' and '_'."""

    code = 36
    hint = "zbroker topics describe NAME; topics create --if-not-exists"


class InvalidPartitionsError(BrokerError):
    """The number of partitions must be from 1 to the limit, and can only grow."""

    code = 37
    hint = "[limits] partitions_per_topic_max"


class InvalidReplicationFactorError(BrokerError):
    """The replication factor must be from 1 to the number of worker and replica processes."""

    code = 38
    hint = "zbroker status lists the processes; [workers] count, [replicas] count"


class InvalidConfigurationError(BrokerError):
    """A topic setting is unknown or its value is not allowed."""

    code = 40
    hint = "zbroker config explain lists them, as topics.NAME"


class InvalidRequestError(BrokerError):
    """The request does not follow the protocol."""

    code = 42
    hint = "docs/protocol.md; a client of another version?"


class PolicyViolationError(BrokerError):
    """The request would pass a limit of the broker."""

    code = 44
    hint = "[limits] in zbroker.toml"


class StorageError(BrokerError):
    """The partition's files cannot be read or written."""

    code = 56
    retriable = True
    hint = "zbroker doctor; zbroker log verify PATH"


class FencedLeaderEpochError(BrokerError):
    """The client's leader epoch is older than the leader's."""

    code = 74
    retriable = True


class UnknownLeaderEpochError(BrokerError):
    """The client's leader epoch is newer than the leader's."""

    code = 75
    retriable = True


class OutOfOrderSequenceNumberError(BrokerError):
    """A batch came whose predecessor of the same producer is missing; the producer sends that one first."""

    code = 45
    retriable = True


class InvalidProducerEpochError(BrokerError):
    """The producer's epoch is older than the newest one of its id."""

    code = 47
    fatal = True


class UnknownProducerIdError(BrokerError):
    """The partition knows nothing of this producer, whose batch is not its first."""

    code = 59
    retriable = True


class ReassignmentInProgressError(BrokerError):
    """The partition is being moved already."""

    code = 60
    retriable = True


class PreferredLeaderNotAvailableError(BrokerError):
    """The copy that should lead is not in sync, or its process is away."""

    code = 80
    retriable = True
    hint = "zbroker topics describe TOPIC shows isr; zbroker status"


class EligibleLeadersNotAvailableError(BrokerError):
    """No copy that may lead is left; an unclean election may lose records."""

    code = 83
    hint = "zbroker topics describe TOPIC shows isr and elr"


class ProducerFencedError(BrokerError):
    """A newer producer has taken this one's transactional_id over; this one cannot go on."""

    code = 90
    fatal = True
    hint = "two producers with one transactional_id"


class InvalidUpdateVersionError(BrokerError):
    """The change of the in-sync copies starts from a version that is not the newest."""

    code = 95
    retriable = True


class WrongExpectedOffsetError(BrokerError):
    """The partition does not end at the offset that the append expected; nothing was appended."""

    code = 1008
    hint = "zbroker offsets TOPIC; read what came in between, then append again"


class UnsupportedCompressionTypeError(BrokerError):
    """A batch is compressed in a way that this installation cannot read."""

    code = 76
    hint = "compression_type of the producer; pip install 'zbroker[zstd]' for zstd"


class InvalidRecordError(BrokerError):
    """A record is not valid for its topic."""

    code = 87


class ThrottlingQuotaExceededError(BrokerError):
    """Too much is in flight for this connection."""

    code = 89
    retriable = True
    hint = "fewer or smaller requests at a time; zbroker status shows what waits, docs/protocol.md the bounds"


class DiskFullError(BrokerError):
    """The disk that holds the partition is full: reads go on, produce resumes by itself when there is room."""

    code = 1001
    retriable = True
    hint = "free space, or retention.ms / retention.bytes of the topic; zbroker topics describe shows sizes"


class LaneRefusedError(BrokerError):
    """The worker opens no more shared-memory lanes; the client goes on with messages."""

    code = 1002
    retriable = True
    hint = "[limits] lane_bytes_total_max; transport='zmq'"


class TooManyOpenFilesError(BrokerError):
    """The process has no file descriptor left."""

    code = 1003
    retriable = True
    hint = "ulimit -n; LimitNOFILE in the systemd unit; zbroker doctor"


class DirectoryLockedError(BrokerError):
    """Another process holds this directory."""

    code = 1004
    hint = "zbroker status -b ipc://RUN_DIR shows who; stop that broker or choose another --data-dir"


class StaleIncarnationError(BrokerError):
    """The process that asks is not the one that is registered: a newer one took its place."""

    code = 1005
    fatal = True


class CopyDamagedError(BrokerError):
    """A copy has damage below its high watermark; it is neither led nor served."""

    code = 1006
    hint = "zbroker log verify PATH; zbroker log recover PATH"


class CoordinatorNotAvailableError(BrokerError):
    """The coordinator is away; produce and fetch go on, admin calls wait for it."""

    code = 15
    retriable = True
    hint = "zbroker status; [supervisor] restarts it"


class BrokerNotAvailableError(BrokerError):
    """Nothing answers at this address."""

    code = 8
    retriable = True
    hint = "zbroker serve starts a broker; bootstrap_servers or ZBROKER_BOOTSTRAP_SERVERS says where it is"


class TimeoutError_(BrokerError, TimeoutError):  # noqa: N801, N818 - the built-in's name, kept apart from it
    """The call did not finish within its time."""

    code = 1007
    retriable = True


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type, or out of its range. The message names it and the nearest known one."""


class BufferFullError(BufferError):
    """The producer's buffer stayed full for max_block_ms (buffer_memory bounds it)."""


class ForkError(RuntimeError):
    """A client was used in another process than the one that made it."""


class ConcurrentUseError(RuntimeError):
    """A consumer was used from two threads at once; only wakeup() and close() may be called from another thread."""


class ClosedError(RuntimeError):
    """The client was used after close()."""


class IllegalTransition(RuntimeError):  # noqa: N818 - names the event, as dask's InvalidTransition does
    """A state machine was given an event that its state does not allow. Nothing was changed."""


def _codes() -> dict[int, type[BrokerError]]:
    table: dict[int, type[BrokerError]] = {}
    for found in globals().copy().values():
        if isinstance(found, type) and issubclass(found, BrokerError) and found is not BrokerError:
            assert found.code not in table, f"{found.__name__} and {table[found.code].__name__} share {found.code}"
            table[found.code] = found
    return table


CODES = _codes()


def error_for(code: int, wire_text: str = "") -> BrokerError:
    """Give the error of a number other than 0 and a `wire_text`. An unknown number gives `UnknownError`."""
    assert code != 0, "0 is success"
    message, _, hint = wire_text.partition("\n")
    if code not in CODES:
        return UnknownError(f"error {code}: {message}", hint=hint)
    return CODES[code](message, hint=hint)
