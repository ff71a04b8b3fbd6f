"""A real worker, asked over its socket and over lanes by a script that plays router and coordinator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conditions import wait_until
from tests.scripted_worker import LaneClient, ScriptedWorker, batch_of, fetch_body, values_of
from zbroker.errors import (
    CODES,
    CorruptRecordError,
    FencedLeaderEpochError,
    InvalidRequestError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    UnknownLeaderEpochError,
)
from zbroker.record.batch import batches_in, read_header
from zbroker.record.crc import crc32c
from zbroker.record.layout import MAGIC_COLUMNS
from zbroker.shm.layout import CellState, Counter, ProcessState
from zbroker.wire.codec import encode
from zbroker.wire.inner_messages import Announce, Grant, Granted, PartitionGrant, Reconfigure, Revocation, Revoke
from zbroker.wire.layout import Api
from zbroker.wire.messages import (
    EARLIEST,
    LATEST,
    LOG_END,
    DeleteRecords,
    Done,
    FetchPartition,
    FetchReply,
    FetchRequest,
    ListOffsetsReply,
    ListOffsetsRequest,
    LowWatermark,
    OffsetQuery,
)


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    with ScriptedWorker() as started:
        yield started


def ways(worker: ScriptedWorker) -> dict[str, Any]:
    """The two ways to ask: the same requests, the same answers."""
    return {"socket": worker, "lane": worker.lane()}


def test_both_ways_give_the_same_answers(worker: ScriptedWorker) -> None:
    worker.grant()
    for number, (way, asker) in enumerate(ways(worker).items()):
        assert asker.produce([b"a", b"b"]).produced() == (2 * number, -1, 0), way
        assert values_of(asker.call(Api.FETCH, fetch_body(2 * number))) == [b"a", b"b"], way
        wrong = asker.produce([b"a"], partition=9)
        assert wrong.error == NotLeaderForPartitionError.code, way
        assert asker.call(Api.FETCH, b"\xc1").error == InvalidRequestError.code, way
        assert asker.call(Api.FETCH).error == InvalidRequestError.code, way
        assert asker.call(Api.PRODUCE, topic_id=1, acks=1).error == InvalidRequestError.code, way
        assert asker.produce([b"a"], leader_epoch=2).error == UnknownLeaderEpochError.code, way
        if isinstance(asker, LaneClient):
            asker.close()


def test_stored_batches_carry_offset_and_epoch_and_are_otherwise_untouched(worker: ScriptedWorker) -> None:
    worker.grant(epoch=7)
    sent = batch_of([b"x" * 50] * 3)
    worker.call(Api.PRODUCE, sent, topic_id=1, acks=1)
    worker.call(Api.PRODUCE, sent, topic_id=1, acks=1)
    stored = (worker.copy_directory(1, 0) / f"{0:020}.log").read_bytes()
    second = stored[len(sent) : 2 * len(sent)]
    header = read_header(second)
    assert (header.base_offset, header.leader_epoch, header.magic) == (3, 7, MAGIC_COLUMNS)
    assert second[16:] == sent[16:]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], CorruptRecordError),
        (lambda b: b[:-8], CorruptRecordError),
        (lambda b: b[:16] + b"\x07" + b[17:], CorruptRecordError),
        (lambda b: b"", CorruptRecordError),
        (lambda b: batch_of([b"y" * (1 << 20)]), MessageSizeTooLargeError),
        (lambda b: batch_of([b""] * 10_001), RecordListTooLargeError),
    ],
    ids=["a flipped bit", "cut short", "unknown magic", "nothing", "too large", "too many records"],
)
def test_a_bad_batch_is_answered_with_its_error_and_not_stored(worker: ScriptedWorker, change: Any, error: Any) -> None:
    worker.grant()
    answer = worker.call(Api.PRODUCE, change(batch_of([b"x" * 50] * 3)), topic_id=1, acks=1)
    assert CODES[answer.error] is error
    assert worker.produce([b"good"]).produced()[0] == 0


def test_the_topics_own_message_limit_counts(worker: ScriptedWorker) -> None:
    worker.grant(config={"max.message.bytes": "1000"})
    assert worker.produce([b"x" * 2_000]).error == MessageSizeTooLargeError.code
    worker.call(Api.RECONFIGURE, encode(Reconfigure(1, {"max.message.bytes": "4000"}))).as_(Done)
    assert worker.produce([b"x" * 2_000]).produced()[0] == 0


def test_append_time_replaces_the_producers_time_and_the_crc_holds(worker: ScriptedWorker) -> None:
    worker.grant(config={"message_timestamp_type": "LogAppendTime"})
    base_offset, append_time_ms, _ = worker.produce([b"a", b"b"]).produced()
    assert (base_offset, append_time_ms > 1_700_000_000_000) == (0, True)
    answer = worker.call(Api.FETCH, fetch_body(0))
    assert values_of(answer) == [b"a", b"b"]
    header = read_header(answer.body[1])
    assert header.has_append_time
    assert header.max_timestamp == append_time_ms


def test_acks_none_stores_and_does_not_answer(worker: ScriptedWorker) -> None:
    worker.grant()
    silent = worker.ask(Api.PRODUCE, batch_of([b"a"]), topic_id=1, acks=0)
    refused = worker.ask(Api.PRODUCE, b"bad", topic_id=1, acks=0)
    assert worker.produce([b"b"]).produced()[0] == 1
    assert not worker.has_answer(silent)
    assert not worker.has_answer(refused)


def test_fsync_is_answered_after_the_disk_and_shown_as_durable(worker: ScriptedWorker) -> None:
    worker.grant()
    asked = [worker.ask(Api.PRODUCE, batch_of([b"a"]), topic_id=1, acks=2) for _ in range(50)]
    assert [worker.answer(one).produced()[0] for one in asked] == list(range(50))
    board = worker.board()
    slot = board.find_cell(1, 0)
    assert slot is not None
    view = board.read_cell(slot)
    assert view is not None
    assert view.durable == view.high_watermark == 50
    assert 1 <= board.counter(Counter.FSYNCS) < 50, "batches that wait together share a flush"
    board.close()


def test_the_board_shows_what_was_acknowledged(worker: ScriptedWorker) -> None:
    worker.grant(config={"segment_bytes": "4096"})
    board = worker.board()
    assert board.state is ProcessState.RUNNING
    slot = board.find_cell(1, 0)
    assert slot is not None
    for count in range(1, 101):
        worker.produce([b"x" * 400])
        view = board.read_cell(slot)
        assert view is not None
        assert (view.high_watermark, view.log_end, view.state) == (count, count, CellState.LEADING)
        segment = worker.copy_directory(1, 0) / f"{view.segment_base:020}.log"
        stored = segment.read_bytes()[: view.position]
        assert [header.next_offset for _, header in batches_in(stored)][-1] == count
        segments = view.segment_count
    assert segments > 5
    wait_until(lambda: board.counter(Counter.RECORDS_IN) == 100)
    board.close()


def test_a_fetch_waits_for_records_and_ends_with_the_append(worker: ScriptedWorker) -> None:
    worker.grant()
    asked = worker.ask(Api.FETCH, fetch_body(0, max_wait_ms=60_000))
    assert worker.call(Api.FETCH, fetch_body(0)).as_(FetchReply).partitions[0].size_bytes == 0
    assert not worker.has_answer(asked)
    worker.produce([b"late"])
    assert values_of(worker.answer(asked)) == [b"late"]


def test_a_fetch_waits_until_min_bytes_are_there(worker: ScriptedWorker) -> None:
    worker.grant()
    worker.produce([b"x" * 300])
    asked = worker.ask(Api.FETCH, fetch_body(0, max_wait_ms=60_000, min_bytes=1_200))
    for _ in range(2):
        worker.produce([b"x" * 300])
        assert not worker.has_answer(asked)
    worker.produce([b"x" * 300])
    assert len(values_of(worker.answer(asked))) == 4


def test_a_fetch_is_answered_at_its_time_with_what_there_is(worker: ScriptedWorker) -> None:
    worker.grant()
    worker.produce([b"a"])
    began = time.monotonic()
    asked = worker.ask(Api.FETCH, fetch_body(0, max_wait_ms=150, min_bytes=10_000))
    assert values_of(worker.answer(asked)) == [b"a"]
    assert time.monotonic() - began >= 0.15, "what is not enough is waited for"
    empty = worker.call(Api.FETCH, fetch_body(1, max_wait_ms=1)).as_(FetchReply).partitions[0]
    assert (empty.error, empty.size_bytes, empty.high_watermark) == (0, 0, 1)


def test_every_partition_of_a_fetch_has_its_own_error(worker: ScriptedWorker) -> None:
    worker.grant(1, 0)
    worker.grant(1, 1)
    worker.produce([b"a"])
    wanted = [FetchPartition(1, 0, 0, 1 << 20), FetchPartition(1, 1, 5, 1 << 20), FetchPartition(1, 2, 0, 1 << 20)]
    answer = worker.call(Api.FETCH, encode(FetchRequest(60_000, 1, 1 << 20, wanted)))
    errors = [one.error for one in answer.as_(FetchReply).partitions]
    assert errors == [0, OffsetOutOfRangeError.code, NotLeaderForPartitionError.code]
    assert values_of(answer) == [b"a"]


def test_a_fetch_gives_whole_batches_within_its_bound_and_at_least_one(worker: ScriptedWorker) -> None:
    worker.grant(1, 0)
    worker.grant(1, 1)
    for partition in (0, 1):
        for number in range(4):
            worker.produce([b"%d" % number * 300], partition=partition)
    small = worker.call(Api.FETCH, fetch_body(1, max_bytes=10))
    assert values_of(small) == [b"1" * 300]
    both = [FetchPartition(1, 0, 0, 1 << 20), FetchPartition(1, 1, 0, 1 << 20)]
    answer = worker.call(Api.FETCH, encode(FetchRequest(0, 1, 1_000, both)))
    found = answer.as_(FetchReply).partitions
    sizes = [one.size_bytes for one in found]
    data = answer.body[1]
    assert [one.crc for one in found] == [crc32c(data[: sizes[0]]), crc32c(data[sizes[0] :])]
    assert sum(sizes) == len(answer.body[1]) <= 1_000
    assert sizes[0] > 0


def test_offsets_by_time_and_by_name(worker: ScriptedWorker) -> None:
    worker.grant()
    now_ms = time.time_ns() // 1_000_000
    for number in range(5):
        worker.call(Api.PRODUCE, batch_of([b"x"], now_ms + 100 * number), topic_id=1, acks=1)
    worker.call(Api.DELETE_RECORDS, encode(DeleteRecords(1)), topic_id=1).as_(LowWatermark)
    times = [LATEST, EARLIEST, LOG_END, 0, now_ms + 250, now_ms + 400, now_ms + 401, -9]
    asked = ListOffsetsRequest([*(OffsetQuery(1, 0, time) for time in times), OffsetQuery(1, 7, LATEST)])
    answers = worker.call(Api.LIST_OFFSETS, encode(asked)).as_(ListOffsetsReply).partitions
    assert [one.offset for one in answers] == [5, 1, 5, 1, 3, 4, -1, -1, -1]
    assert [one.error for one in answers[-3:]] == [0, InvalidRequestError.code, NotLeaderForPartitionError.code]
    assert answers[4].timestamp_ms == now_ms + 300


def test_deleted_records_are_out_of_range_and_the_rest_stays(worker: ScriptedWorker) -> None:
    worker.grant()
    for _ in range(5):
        worker.produce([b"x"])
    deleted = worker.call(Api.DELETE_RECORDS, encode(DeleteRecords(3)), topic_id=1)
    assert deleted.as_(LowWatermark).log_start == 3
    assert worker.call(Api.FETCH, fetch_body(2)).as_(FetchReply).partitions[0].error == OffsetOutOfRangeError.code
    assert len(values_of(worker.call(Api.FETCH, fetch_body(3)))) == 2
    too_far = worker.call(Api.DELETE_RECORDS, encode(DeleteRecords(6)), topic_id=1)
    assert too_far.error == OffsetOutOfRangeError.code
    all_of_it = worker.call(Api.DELETE_RECORDS, encode(DeleteRecords(-1)), topic_id=1)
    assert all_of_it.as_(LowWatermark).log_start == 5
    assert worker.produce([b"y"]).produced() == (5, -1, 5)


def test_retention_lets_old_segments_go_by_itself_and_their_files_after_a_delay() -> None:
    config = {"storage": {"retention_check_interval_ms": 20}}
    with ScriptedWorker(config) as worker:
        worker.grant(config={"segment_bytes": "4096", "retention_bytes": "8192", "file_delete_delay_ms": "50"})
        directory = worker.copy_directory(1, 0)
        for _ in range(60):
            worker.produce([b"x" * 500])
        board = worker.board()
        slot = board.find_cell(1, 0)
        assert slot is not None
        wait_until(lambda: (view := board.read_cell(slot)) is not None and view.log_start > 20)
        worker.pump_until(lambda: len(list(directory.glob("*.log"))) <= 4 and not list(directory.glob("*.deleted")))
        board.close()
        early = worker.call(Api.FETCH, fetch_body(0)).as_(FetchReply).partitions[0]
        assert early.error == OffsetOutOfRangeError.code
        assert early.log_start > 20


def test_the_same_grant_again_is_the_same_as_once_and_an_older_one_is_fenced(worker: ScriptedWorker) -> None:
    assert worker.grant(epoch=3).results[0].error == 0
    worker.produce([b"a"])
    again = worker.grant(epoch=3).results[0]
    assert (again.error, again.log_end) == (0, 1)
    assert worker.grant(epoch=2).results[0].error == FencedLeaderEpochError.code
    assert worker.grant(epoch=4).results[0].error == 0
    worker.produce([b"b"])
    answer = worker.call(Api.FETCH, fetch_body(1))
    assert read_header(answer.body[1]).leader_epoch == 4


def test_revocation_closes_the_copy_ends_waits_and_can_delete_the_files(worker: ScriptedWorker) -> None:
    for partition in (0, 1):
        worker.grant(1, partition)
        worker.produce([b"a"], partition=partition)
    waiting = worker.ask(Api.FETCH, fetch_body(1, max_wait_ms=60_000))
    board = worker.board()
    revoked = Revoke([Revocation(1, 0, False), Revocation(1, 1, True), Revocation(1, 9, True)])
    worker.call(Api.REVOKE, encode(revoked)).as_(Done)
    assert worker.answer(waiting).as_(FetchReply).partitions[0].error == NotLeaderForPartitionError.code
    assert worker.produce([b"b"]).error == NotLeaderForPartitionError.code
    assert board.find_cell(1, 0) is None
    board.close()
    assert worker.copy_directory(1, 0).is_dir()
    assert not worker.copy_directory(1, 1).exists()
    assert worker.grant(1, 0, epoch=2).results[0].log_end == 1


def test_many_partitions_in_one_grant_are_all_led(worker: ScriptedWorker) -> None:
    grants = [
        PartitionGrant(1, number, "t", 1, str(worker.copy_directory(1, number)), 1, 0, {}) for number in range(64)
    ]
    first = worker.ask(Api.GRANT, encode(Grant(grants)))
    second = worker.ask(Api.GRANT, encode(Grant(grants)))
    for asked in (first, second):
        results = worker.answer(asked).as_(Granted).results
        assert [(one.partition, one.error) for one in results] == [(number, 0) for number in range(64)]
    for number in range(64):
        assert worker.produce([b"a"], partition=number).produced()[0] == 0


def test_a_new_coordinator_and_a_new_router_hear_what_the_worker_holds(worker: ScriptedWorker) -> None:
    worker.grant(epoch=5)
    worker.registered = None
    worker.call(Api.ANNOUNCE, encode(Announce(1))).as_(Done)
    worker.pump_until(lambda: worker.registered is not None)
    registered = worker.registered
    assert registered is not None
    assert [(held.topic_id, held.partition, held.copy_id, held.leader_epoch) for held in registered.holding] == [
        (1, 0, 1, 5)
    ]


def test_inner_requests_are_not_served_over_a_lane_nor_waits_over_a_socket(worker: ScriptedWorker) -> None:
    lane = worker.lane()
    for api in (Api.GRANT, Api.REVOKE, Api.RECONFIGURE, Api.ANNOUNCE, Api.REGISTER, Api.HELLO):
        assert lane.call(api, b"\x90").error == InvalidRequestError.code
    assert worker.call(Api.WAIT, b"\0" * 16).error == InvalidRequestError.code
    lane.close()
