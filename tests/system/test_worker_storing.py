"""What a real worker makes of batches of every kind, and when it brings them to the disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import msgspec
import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.scripted_worker import ScriptedWorker, batch_of, fetch_body, values_of
from zbroker.errors import InvalidRecordError
from zbroker.record.batch import write_crc
from zbroker.record.columns import encode_columns
from zbroker.record.layout import CONTROL, POSITION_ATTRIBUTES
from zbroker.record.rows import Row, encode_rows
from zbroker.shm.layout import Counter
from zbroker.wire.codec import encode
from zbroker.wire.inner_messages import Announce, Grant, Granted, PartitionGrant
from zbroker.wire.layout import Api
from zbroker.wire.messages import Done


@pytest.fixture
def worker() -> Iterator[ScriptedWorker]:
    with ScriptedWorker() as started:
        yield started


def durable_offset(worker: ScriptedWorker) -> int:
    board = worker.board()
    try:
        slot = board.find_cell(1, 0)
        assert slot is not None
        view = board.read_cell(slot)
        assert view is not None
        return view.durable
    finally:
        board.close()


def test_flush_by_count_brings_records_to_the_disk_beside_the_loop(worker: ScriptedWorker) -> None:
    worker.grant(config={"flush_messages": "10"})
    worker.grant(1, 1)
    worker.produce([b"x"] * 9)
    worker.produce([b"x"], partition=1, acks=2).produced()  # synced after whatever was to be synced before
    assert durable_offset(worker) == 0
    worker.produce([b"x"])
    wait_until(lambda: durable_offset(worker) == 10)


def test_flush_by_time_brings_the_last_record_to_the_disk(worker: ScriptedWorker) -> None:
    worker.grant(config={"flush_ms": "50"})
    for count in range(1, 4):
        worker.produce([b"x"])
        wait_until(lambda count=count: durable_offset(worker) == count)  # type: ignore[misc] # no default in a lambda


def test_a_topic_without_flush_settings_is_left_to_the_kernel(worker: ScriptedWorker) -> None:
    worker.grant()
    for _ in range(20):
        worker.produce([b"x"])
    assert worker.produce([b"x"], acks=2).produced()[0] == 20
    board = worker.board()
    assert board.counter(Counter.FSYNCS) == 1, "only for the record whose sender asked for it"
    board.close()


def test_a_copy_on_shared_memory_is_served_like_any_other(worker: ScriptedWorker) -> None:
    grant = PartitionGrant(
        1, 0, "t", 1, str(worker.paths.memory_dir / "1" / "t00000001-0"), 1, 0, {"storage": "memory"}
    )
    assert worker.call(Api.GRANT, encode(Grant([grant]))).as_(Granted).results[0].error == 0
    assert worker.produce([b"a"], acks=2).produced()[0] == 0
    assert values_of(worker.call(Api.FETCH, fetch_body(0))) == [b"a"]


def test_a_batch_of_kafkas_rows_is_stored_as_it_came(worker: ScriptedWorker) -> None:
    worker.grant()
    now_ms = time.time_ns() // 1_000_000
    rows: list[Row] = [(now_ms, None, b"v1", ()), (now_ms + 1, b"k2", None, ())]
    sent = bytes(encode_rows(rows))
    assert worker.call(Api.PRODUCE, sent, topic_id=1, acks=1).produced()[0] == 0
    body = worker.call(Api.FETCH, fetch_body(0)).checked()[1]
    assert body[16:] == sent[16:]


def test_compressed_batches_are_stored_as_they_came(worker: ScriptedWorker) -> None:
    worker.grant()
    sent = bytes(encode_columns([b"x" * 1_000] * 20, timestamp_ms=time.time_ns() // 1_000_000, compression="lz4"))
    assert len(sent) < 2_000
    assert worker.call(Api.PRODUCE, sent, topic_id=1, acks=1).produced()[0] == 0
    answer = worker.call(Api.FETCH, fetch_body(0))
    assert answer.body[1][16:] == sent[16:]
    assert values_of(answer) == [b"x" * 1_000] * 20


def test_control_batches_are_not_for_clients(worker: ScriptedWorker) -> None:
    worker.grant()
    batch = bytearray(batch_of([b"x"]))
    batch[POSITION_ATTRIBUTES + 1] |= CONTROL
    write_crc(batch)
    assert worker.call(Api.PRODUCE, bytes(batch), topic_id=1, acks=1).error == InvalidRecordError.code


def grant_before_the_election_is_on_the_disk(worker: ScriptedWorker) -> PartitionGrant:
    return PartitionGrant(
        topic_id=1,
        partition=0,
        topic="topic-1",
        copy_id=1,
        directory=str(worker.copy_directory(1, 0)),
        leader_epoch=1,
        coordinator_cell=0,
        config={},
        is_epoch_durable=False,
    )


def test_of_two_grants_that_wait_the_one_whose_election_is_on_the_disk_counts(worker: ScriptedWorker) -> None:
    first = grant_before_the_election_is_on_the_disk(worker)
    os.kill(worker.pid, signal.SIGSTOP)
    wait_until_stopped(worker.pid)
    try:
        grants = [first, msgspec.structs.replace(first, is_epoch_durable=True)]
        asked = [worker.ask(Api.GRANT, encode(Grant([grant]))) for grant in grants]
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    for correlation in asked:
        assert [result.error for result in worker.answer(correlation).as_(Granted).results] == [0]
    assert worker.produce([b"a"], acks=2).produced()[0] == 0


def test_a_coordinator_that_took_over_says_that_elections_are_on_the_disk(worker: ScriptedWorker) -> None:
    grant = grant_before_the_election_is_on_the_disk(worker)
    worker.call(Api.GRANT, encode(Grant([grant]))).as_(Granted)
    asked = worker.ask(Api.PRODUCE, batch_of([b"a"]), topic_id=1, acks=2)
    worker.call(Api.ANNOUNCE, encode(Announce(1))).as_(Done)
    wait_until(lambda: durable_offset(worker) == 1)
    worker.call(Api.FETCH, fetch_body(0)).checked()
    assert not worker.has_answer(asked), "this coordinator has not synced them"
    worker.are_elections_durable = True
    worker.call(Api.ANNOUNCE, encode(Announce(2))).as_(Done)
    assert worker.answer(asked).produced()[0] == 0
