"""What the commands of groups show: lag from files where they can be read, members as the coordinator or they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from zbroker.cli.options import Options
from zbroker.config.load import load
from zbroker.config.paths import Paths, paths_at, paths_for
from zbroker.core.image import Image
from zbroker.dump.group_lag import PartitionLag, group_lags
from zbroker.errors import (
    BrokerNotAvailableError,
    CoordinatorNotAvailableError,
    GroupIdNotFoundError,
    RequestTimedOutError,
)
from zbroker.ids import TopicPartition
from zbroker.transport.endpoints import parse
from zbroker.workers import metadata_log

if TYPE_CHECKING:
    from zbroker.client.admin import AdminClient
    from zbroker.wire.group_messages import GroupDescription, MemberInfo

AWAY: Final = (BrokerNotAvailableError, CoordinatorNotAvailableError, RequestTimedOutError)
ASK_MS: Final = 1_000  # the files say the most; who is away does not hold it up
UNKNOWN: Final = "Unknown"


class Row(NamedTuple):
    """A group in one partition. Offsets and lag None: nobody knows."""

    topic: str
    partition: int
    committed: int | None
    log_end: int | None
    lag: int | None
    lag_ms: int | None
    member_id: str | None
    client_id: str | None
    pid: int | None


class GroupView(NamedTuple):
    """A group. `state` "Unknown" and no members: the coordinator is away."""

    group_id: str
    state: str
    assignor: str
    members: list[MemberInfo]
    rows: list[Row]

    @property
    def total_lag(self) -> int:
        """Records in all partitions, as far as they are known."""
        return sum(row.lag or 0 for row in self.rows)


def find_paths(options: Options) -> Paths | None:
    """Where the broker's files are; None where they cannot be read from here, or nobody knows."""
    endpoint = parse(options.where())
    if endpoint.run_dir is None:
        return None
    found = paths_at(endpoint.run_dir)
    if found is not None:
        return found
    configured = paths_for(load(options.config_path).config)
    return configured if configured.run_dir == endpoint.run_dir and configured.offsets_dir.exists() else None


def _topic_names(paths: Paths) -> dict[int, str]:
    try:
        data = (paths.metadata_dir / metadata_log.LOG_NAME).read_bytes()
    except FileNotFoundError:
        return {}
    image = Image.replayed(metadata_log.parse(data).entries)
    return {topic_id: topic.name for topic_id, topic in image.topics.items()}


def group_ids_from_files(paths: Paths) -> list[str]:
    """The groups that have committed something, or have members that may."""
    return list(group_lags(paths, {}))


def look(options: Options, group_ids: Iterable[str]) -> list[GroupView]:
    """The groups as they are now. Raises GroupIdNotFoundError, and BrokerNotAvailableError where there is neither a
    broker nor its files."""
    asked = list(group_ids)
    paths = find_paths(options)
    described: dict[str, GroupDescription] = {}
    remote: dict[str, list[Row]] = {}
    try:
        options.timeout_ms = min(options.timeout_ms, ASK_MS) if paths is not None else options.timeout_ms
        with options.admin() as admin:
            described = admin.describe_groups(asked)
            if paths is None:
                remote = {one.group_id: _rows_by_request(admin, one) for one in described.values()}
    except AWAY as error:
        if paths is None:
            raise
        options.note(f"the coordinator does not answer ({error.message}): members as their files say")
    if paths is None:
        return [_view(described[name], remote[name]) for name in asked]
    owned = {one.group_id: _owners(one).keys() for one in described.values()}
    names = _topic_names(paths)
    found = group_lags(paths, names, owned=owned)
    views = []
    for name in asked:
        if name not in found and name not in described:
            raise GroupIdNotFoundError(f"group {name!r} does not exist", hint="zbroker groups list")
        # What was committed in a topic that was deleted says nothing of the one that has its name now.
        lags = [one for one in found.get(name, []) if one.topic_id in names]
        views.append(_view_of_files(name, lags, described.get(name)))
    return views


def _view(described: GroupDescription, rows: list[Row]) -> GroupView:
    return GroupView(described.group_id, described.state, described.assignor, described.members, rows)


def _view_of_files(name: str, lags: list[PartitionLag], described: GroupDescription | None) -> GroupView:
    owners = _owners(described)
    rows = []
    for one in lags:
        member = owners.get((one.topic_id, one.partition))
        member_id, client_id, pid = None, None, None
        if member is not None:
            member_id, client_id, pid = member.member_id, member.client_id, member.pid
        elif described is None and one.owner is not None:
            member_id, client_id, pid = one.owner.names.member_id, one.owner.names.client_id, one.owner.pid
        rows.append(
            Row(
                one.topic or f"#{one.topic_id}", one.partition, one.committed, one.log_end, one.lag, one.lag_ms,
                member_id, client_id, pid or None,
            )
        )  # fmt: skip
    if described is not None:
        return _view(described, rows)
    return GroupView(name, UNKNOWN, "", [], rows)


def _owners(described: GroupDescription | None) -> dict[tuple[int, int], MemberInfo]:
    return {key: member for member in described.members for key in member.owned} if described is not None else {}


def _rows_by_request(admin: AdminClient, described: GroupDescription) -> list[Row]:
    """Over tcp the leaders are asked where the logs end; nobody says how old records are."""
    owners = _owners(described)
    names = {topic.topic_id: name for name, topic in admin.describe_topics().items()}
    committed = {(one.topic_id, one.partition): one.offset for one in described.offsets if one.offset >= 0}
    tps = {key: TopicPartition(names[key[0]], key[1]) for key in {*committed, *owners} if key[0] in names}
    starts = admin.list_offsets(dict.fromkeys(tps.values(), "earliest"))
    ends = admin.list_offsets(dict.fromkeys(tps.values(), "latest"))
    rows = []
    for key, tp in tps.items():
        offset, member, end = committed.get(key), owners.get(key), ends[tp].offset
        lag = max(0, end - max(offset or 0, starts[tp].offset))
        who = (member.member_id, member.client_id, member.pid or None) if member is not None else (None, None, None)
        rows.append(Row(*tp, offset, end, lag, None, *who))
    return sorted(rows, key=lambda row: row[:2])
