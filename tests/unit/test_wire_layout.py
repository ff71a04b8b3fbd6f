"""The forty bytes of a header stay what they are, and what is no header is refused with a typed error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from zbroker.errors import InvalidRequestError, UnsupportedVersionError
from zbroker.wire import copy_messages as copies
from zbroker.wire import group_messages as groups
from zbroker.wire import inner_messages as inner
from zbroker.wire import messages as m
from zbroker.wire.codec import decode, encode
from zbroker.wire.layout import (
    HEADER_BYTES,
    INNER_APIS,
    PEER,
    PRODUCED,
    REPLY,
    REQUEST,
    WAITED,
    Api,
    pack_reply,
    pack_request,
    unpack_header,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "wire_header.txt"
REQUEST_BYTES = pack_request(
    Api.PRODUCE, 0x1122334455667788, 65_537, topic_id=7, partition=3, leader_epoch=9, acks=-1, timeout_ms=30_000
)


GRANT = inner.PartitionGrant(
    1, 0, "orders", 2, "/data/copies/2/t00000001-0", 4, 0, {"retention.ms": "1"}, 16, 99,
    (inner.CopyPlace(2, 16, "/data/copies/2/t00000001-0"),), (2,), (3,), 7, 3, "/run/boards/w.board", False, True
)  # fmt: skip


def group_messages() -> dict[str, m.Message]:
    """One message of each kind that members of groups and the coordinator exchange."""
    committed = groups.CommittedOffset("orders", 1, 0, 42, 3, "note", 1_700_000_000_000)
    assigned = groups.AssignedTopic(1, "orders", [groups.AssignedPartition(0, 2, 5, 42, 3, "note")])
    member = groups.SubscribedMember("m-1", "w1", ["orders"], [(1, 0)], b"data")
    work = groups.AssignWork(9, "app.Mine", 500, [member], [groups.AssignableTopic(1, "orders", 4)])
    offset = groups.OffsetToCommit("orders", 1, 0, 42, 3, "note")
    info = groups.MemberInfo(
        "m-1", "w1", "app", 77, 4, ["orders"], "ord.*", [(1, 0)], [(1, 1)], [(1, 0)], 12, True, False
    )
    return {
        "GroupHeartbeat": groups.GroupHeartbeat(
            "billing", "m-1", 4, "w1", "app", 99, ["orders"], "ord.*", ["sticky"], b"data", [(1, 0)], 10_000, 300_000,
            12, 3_000, 6, 5
        ),
        "GroupAssignment": groups.GroupAssignment(
            4, 5, 3_000, "Stable", "sticky", 6, 2, [groups.SlotFilePlace(2, "/run/g.slots")], [assigned], work
        ),
        "GroupAssign": groups.GroupAssign("billing", "m-1", 9, [groups.MemberTarget("m-1", [(1, 0)])], "none"),
        "GroupLeave": groups.GroupLeave("billing", "m-1", True, "closed"),
        "OffsetCommit": groups.OffsetCommit("billing", "m-1", 4, True, [offset]),
        "AlterGroupOffsets": groups.AlterGroupOffsets("billing", [offset]),
        "OffsetResults": groups.OffsetResults([groups.OffsetResult("orders", 1, 0, 22, "not owned")]),
        "OffsetFetch": groups.OffsetFetch("billing", [(1, 0)]),
        "OffsetsFetched": groups.OffsetsFetched([committed]),
        "ListGroups": groups.ListGroups(["Stable"]),
        "GroupsListed": groups.GroupsListed([groups.GroupInfo("billing", "Stable", 5, "sticky", 2)]),
        "DescribeGroups": groups.DescribeGroups(["billing"]),
        "GroupsDescribed": groups.GroupsDescribed(
            [groups.GroupDescription("billing", 0, "Stable", 5, "sticky", [info], [committed])]
        ),
        "DeleteGroups": groups.DeleteGroups(["billing"]),
        "RemoveGroupMembers": groups.RemoveGroupMembers("billing", ["m-1"], ["w1"]),
        "GroupResults": groups.GroupResults([groups.GroupResult("billing", 68, "it has members")]),
    }  # fmt: skip


def golden_messages() -> dict[str, m.Message]:
    """One message of each kind, each field with a value of its own."""
    process = m.ProcessInfo(16, "worker-0", 99, "/run/b", "/run/l", "running")
    partition = m.PartitionInfo(0, 16, 3, 99, [16], [16], [], "/data/t1-0", 4, [16])
    topic = m.TopicInfo("orders", 1, 0, {"retention.ms": "1000"}, [partition])
    return {
        "Hello": m.Hello("app", 1, 1, "zbroker 0"),
        "Welcome": m.Welcome(1, "id", "zbroker 0", "/run", "/run/boards", 77, 1000, True, 1 << 20, 1 << 19),
        "ProcessHello": m.ProcessHello(16, 99),
        "ProcessWelcome": m.ProcessWelcome(77),
        "MetadataRequest": m.MetadataRequest(["orders"], True),
        "MetadataReply": m.MetadataReply(5, "id", "/run/c", [process], [topic]),
        "FetchRequest": m.FetchRequest(500, 1, 1 << 20, [m.FetchPartition(1, 0, 42, 1 << 16)]),
        "FetchReply": m.FetchReply([m.FetchedPartition(1, 0, 0, 50, 2, 61, 0xE3069283)]),
        "ListOffsetsRequest": m.ListOffsetsRequest([m.OffsetQuery(1, 0, m.LATEST)]),
        "ListOffsetsReply": m.ListOffsetsReply([m.OffsetAnswer(1, 0, 0, 42, -1)]),
        "OpenLane": m.OpenLane(4096, 8192),
        "LaneOffer": m.LaneOffer(b"token", "/run/l", "/run/b"),
        "DeleteRecords": m.DeleteRecords(-1),
        "LowWatermark": m.LowWatermark(12),
        "CreateTopics": m.CreateTopics([m.NewTopicSpec("orders", 3, -1, {})], False),
        "TopicResults": m.TopicResults([m.TopicResult("orders", 36, "there", 1)]),
        "DeleteTopics": m.DeleteTopics(["orders"]),
        "CreatePartitions": m.CreatePartitions("orders", 6),
        "AlterConfigs": m.AlterConfigs("orders", {"retention.ms": "1"}, ["segment.bytes"]),
        "DescribeConfigs": m.DescribeConfigs("orders"),
        "ConfigEntries": m.ConfigEntries([m.ConfigEntry("retention.ms", "1", "topic")]),
        "ClusterInfo": m.ClusterInfo("id", "zbroker 0", "/data", [process], 1, 3),
        "Register": inner.Register(16, 99, "/run/b", "/run/l", [inner.Held(1, 0, 2, 3)]),
        "Registered": inner.Registered("id", 88, True),
        "Grant": inner.Grant([GRANT], 99),
        "Granted": inner.Granted([inner.GrantResult(1, 0, 0, "", 2, 50)]),
        "Revoke": inner.Revoke([inner.Revocation(1, 0, True)]),
        "Reconfigure": inner.Reconfigure(1, {"retention.ms": "1"}),
        "Announce": inner.Announce(88),
        "AlterIsr": inner.AlterIsr(1, 0, 4, 7, [1, 2], [99, 98]),
        "IsrAltered": inner.IsrAltered(8, [1, 2], [3]),
        "CopySuspect": inner.CopySuspect(1, 0, 2, "flipped"),
        "ElectLeaders": copies.ElectLeaders([("orders", 0)]),
        "MoveCopy": copies.MoveCopy("orders", 0, 16, 18),
        "DrainProcess": copies.DrainProcess(16),
        "PartitionResults": copies.PartitionResults([copies.PartitionResult("orders", 0, 0, "")]),
        "InitProducerId": copies.InitProducerId("billing"),
        "ProducerId": copies.ProducerId(1000, 3),
        "ProduceOptions": copies.ProduceOptions(42, b"order-7"),
        "PartitionStateRequest": copies.PartitionStateRequest([(1, 0)]),
        "PartitionStates": copies.PartitionStates(
            [copies.PartitionState(1, 0, 0, 4, 2, 49, 50, 40, [copies.CopyState(2, 17, 49, 40, 1, True)])]
        ),
        "Done": m.Done(),
        **group_messages(),
    }


def golden_text() -> str:
    """The golden file as it should be."""
    lines = [
        "# A produce request: correlation 1122334455667788, target 65537, topic 7, partition 3, epoch 9, acks all,",
        "# (the reply to it has error 6); then one message of each kind, msgpack arrays.",
        f"request {REQUEST_BYTES.hex()}",
        f"reply {pack_reply(unpack_header(REQUEST_BYTES), 6).hex()}",
    ]
    lines += [f"{name} {encode(message).hex()}" for name, message in golden_messages().items()]
    return "\n".join(lines) + "\n"


def test_header_and_messages_have_exactly_the_golden_bytes() -> None:
    assert golden_text() == GOLDEN.read_text()


@pytest.mark.parametrize("name", sorted(golden_messages()))
def test_a_message_decodes_to_itself(name: str) -> None:
    message = golden_messages()[name]
    assert decode(type(message), encode(message)) == message


def test_a_newer_message_with_more_fields_is_read() -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode(m.OpenLane(1, 2))), "new"])
    assert decode(m.OpenLane, longer) == m.OpenLane(1, 2)


def test_a_header_comes_back_as_it_went() -> None:
    header = unpack_header(REQUEST_BYTES)
    assert (header.kind, header.api, header.correlation) == (REQUEST, Api.PRODUCE, 0x1122334455667788)
    assert (header.target, header.topic_id, header.partition, header.leader_epoch) == (65_537, 7, 3, 9)
    assert (header.acks, header.timeout_ms, header.error) == (-1, 30_000, 0)


def test_a_reply_repeats_the_request_and_carries_the_error() -> None:
    reply = unpack_header(pack_reply(unpack_header(REQUEST_BYTES), 1003))
    assert (reply.kind, reply.error) == (REPLY, 1003)
    assert (reply.api, reply.correlation, reply.topic_id) == (Api.PRODUCE, 0x1122334455667788, 7)


@pytest.mark.parametrize("size", range(HEADER_BYTES))
def test_a_short_header_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequestError):
        unpack_header(REQUEST_BYTES[:size])


def test_other_bytes_another_version_and_another_kind_are_told_apart() -> None:
    with pytest.raises(InvalidRequestError):
        unpack_header(b"XB" + REQUEST_BYTES[2:])
    with pytest.raises(UnsupportedVersionError):
        unpack_header(REQUEST_BYTES[:2] + b"\x02" + REQUEST_BYTES[3:])
    with pytest.raises(InvalidRequestError):
        unpack_header(REQUEST_BYTES[:3] + b"\x02" + REQUEST_BYTES[4:])


def test_sizes_of_the_hot_bodies() -> None:
    assert (HEADER_BYTES, PRODUCED.size, WAITED.size, PEER.size) == (40, 24, 16, 12)


def test_numbers_of_requests_never_change() -> None:
    numbers = {api.name: int(api) for api in Api}
    assert numbers["PRODUCE"] == 3
    assert len(set(numbers.values())) == len(numbers)
    assert {int(api) for api in INNER_APIS} == set(range(40, 48))
