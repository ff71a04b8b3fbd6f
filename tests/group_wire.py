"""A member of a group that speaks the wire and maps its slots: what the coordinator must be right for.

Run as a program it joins, commits one more each time it owns something, and says on stdout what it owns.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path

from zbroker import ids
from zbroker.client.connection import Connection
from zbroker.client.settings import ConnectionSettings
from zbroker.core.sticky import Key
from zbroker.errors import BrokerError, error_for
from zbroker.shm.commit_slots import MemberSlots
from zbroker.wire.codec import decode, encode
from zbroker.wire.group_messages import (
    GroupAssignment,
    GroupHeartbeat,
    GroupLeave,
    OffsetCommit,
    OffsetFetch,
    OffsetResults,
    OffsetsFetched,
    OffsetToCommit,
)
from zbroker.wire.layout import Api

TIMEOUT_MS = 5_000


class WireMember:
    """One member, single-threaded: call `turn` often."""

    def __init__(
        self, bootstrap_servers: str, group_id: str, topics: list[str], *, instance_id: str = "", is_local: bool = True,
        session_timeout_ms: int = 10_000, assignors: tuple[str, ...] = ("sticky",),
    ) -> None:  # fmt: skip
        self.connection = Connection(ConnectionSettings(bootstrap_servers=bootstrap_servers))
        self.group_id, self.topics, self.instance_id = group_id, topics, instance_id
        self.member_id = uuid.uuid4().hex
        self.is_local = is_local
        self.session_timeout_ms, self.assignors = session_timeout_ms, assignors
        self.epoch = 0
        self.owned: dict[Key, tuple[int, int]] = {}
        self.committed: dict[Key, int] = {}
        self.error = 0
        self.joined_ns = 0
        self.revocations = 0
        self._files: dict[int, MemberSlots] = {}
        self._waits = False

    def _heartbeat(self) -> None:
        incarnation = ids.own_incarnation() if self.is_local else 0
        body = GroupHeartbeat(
            self.group_id, self.member_id, self.epoch, self.instance_id, "wire", incarnation, self.topics, "",
            list(self.assignors), b"", sorted(self.owned), self.session_timeout_ms, 300_000, 0, 500,
        )  # fmt: skip
        self._waits = True
        self.connection.submit(
            ids.COORDINATOR, Api.GROUP_HEARTBEAT, [encode(body)], self._answered, timeout_ms=TIMEOUT_MS
        )

    def _answered(self, error: int, body: list[bytes]) -> None:
        self._waits = False
        if error:
            found = error_for(error)
            if not found.retriable:
                self.error = error
                self.owned.clear()
            return
        answer = decode(GroupAssignment, body[0])
        if answer.member_epoch >= self.epoch:
            self._act(answer)

    def _act(self, answer: GroupAssignment) -> None:
        for place in answer.files:
            if place.file not in self._files:
                self._files[place.file] = MemberSlots.attach(Path(place.path))
        named = {}
        for topic in answer.topics:
            for one in topic.partitions:
                named[topic.topic_id, one.partition] = one
        self.revocations += len(self.owned.keys() - named.keys())
        self.owned = {key: place for key, place in self.owned.items() if key in named}
        for key, one in named.items():
            if self.owned.get(key) != (one.file, one.slot):
                self.owned[key] = (one.file, one.slot)
                self.committed[key] = one.committed
        self.epoch = answer.member_epoch

    def turn(self, timeout_ms: float = 5) -> None:
        """Receive, act, and keep one heartbeat out."""
        if not self._waits and not self.error:
            self._heartbeat()
        self.connection.wait_for(lambda: not self._waits, timeout_ms)

    def until(self, count: int, timeout_s: float = 20) -> None:
        """Turn until it owns so many partitions."""
        deadline = time.monotonic() + timeout_s
        while len(self.owned) != count:
            assert time.monotonic() < deadline, f"{len(self.owned)} partitions, not {count}; error {self.error}"
            self.turn()

    def commit(self, key: Key, offset: int, *, is_durable: bool = False) -> None:
        """Commit by store where there is a slot, else by message. Raises CommitFailedError and others."""
        file, slot = self.owned[key]
        if file >= 0:
            self._files[file].commit(slot, offset)
        if file < 0 or is_durable:
            one = OffsetToCommit("", key[0], key[1], offset, -1, "")
            body = OffsetCommit(self.group_id, self.member_id, self.epoch, is_durable, [one])
            frames = self.connection.request(ids.COORDINATOR, Api.OFFSET_COMMIT, [encode(body)], timeout_ms=TIMEOUT_MS)
            for result in decode(OffsetResults, frames[0]).offsets:
                if result.error:
                    raise error_for(result.error, result.message)

    def leave(self, *, is_temporary: bool = False) -> None:
        """Leave, and close."""
        body = GroupLeave(self.group_id, self.member_id, is_temporary)
        self.connection.request(ids.COORDINATOR, Api.GROUP_LEAVE, [encode(body)], timeout_ms=TIMEOUT_MS)
        self.close()

    def close(self) -> None:
        """Close without a word."""
        for file in self._files.values():
            file.close()
        self.connection.close()


def fetch_offsets(bootstrap_servers: str, group_id: str) -> dict[Key, int]:
    """What the coordinator says that a group has committed."""
    connection = Connection(ConnectionSettings(bootstrap_servers=bootstrap_servers))
    try:
        body = [encode(OffsetFetch(group_id, None))]
        frames = connection.request(ids.COORDINATOR, Api.OFFSET_FETCH, body, timeout_ms=TIMEOUT_MS)
        return {(one.topic_id, one.partition): one.offset for one in decode(OffsetsFetched, frames[0]).offsets}
    finally:
        connection.close()


def main() -> None:
    """Arguments: bootstrap servers, group, topic, and perhaps an instance id."""
    bootstrap_servers, group_id, topic, *rest = sys.argv[1:]
    member = WireMember(bootstrap_servers, group_id, [topic], instance_id=rest[0] if rest else "")
    said = None
    while True:
        member.turn()
        if member.error:
            sys.exit(f"error {member.error}")
        for key in list(member.owned):
            member.committed[key] = max(0, member.committed[key]) + 1
            try:
                member.commit(key, member.committed[key])
            except BrokerError:
                member.owned.pop(key, None)
        state = {"owned": sorted(member.owned), "revocations": member.revocations, "ns": time.monotonic_ns()}
        if state["owned"] != said:
            said = sorted(member.owned)
            sys.stdout.write(json.dumps(state) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
