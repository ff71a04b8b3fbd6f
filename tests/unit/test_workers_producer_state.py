"""A copy's knowledge of producers: after a start, a death, a cut, it is that of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage_logs import kill
from tests.unit.test_storage_copied_log import open_copy
from tests.unit.test_storage_producer_snapshot import add
from zbroker.clock import ManualClock
from zbroker.config.schema import TopicConfig
from zbroker.record.batch import batches_in
from zbroker.storage.copied_log import CopiedLog
from zbroker.storage.files import Files
from zbroker.storage.layout import PRODUCERS
from zbroker.workers.producer_state import ProducerState

CONFIG = TopicConfig()


def state_of(log: CopiedLog, clock: ManualClock | None = None) -> ProducerState:
    return ProducerState(log, Files(), clock or ManualClock(), CONFIG, expiration_ms=86_400_000)


def known(state: ProducerState) -> dict[int, str]:
    return {producer_id: repr(found) for producer_id, found in state.sequences.producers()}


def append(log: CopiedLog, state: ProducerState, count: int) -> None:
    """As a follower does: the log first, then the state."""
    for _ in range(count):
        begin = log.log_end
        add(log, begin)
        data = log.read(begin, 1 << 16, log.log_end)
        state.note_all(header for _, header in batches_in(data))


@pytest.mark.parametrize("saved_after", [0, 4, 10])
@pytest.mark.parametrize("is_clean", [True, False])
def test_a_start_comes_to_the_state_that_was_there(tmp_path: Path, saved_after: int, is_clean: bool) -> None:
    log = open_copy(tmp_path)
    state = state_of(log)
    append(log, state, saved_after)
    state.save()
    append(log, state, 10 - saved_after)
    before = known(state)
    log.close(clean=is_clean)
    again = open_copy(tmp_path)
    assert known(state_of(again)) == before
    assert len(before) == 1
    kill(again)


def test_t27_a_lost_snapshot_changes_no_decision(tmp_path: Path) -> None:
    log = open_copy(tmp_path)
    state = state_of(log)
    append(log, state, 10)
    state.save()
    assert (tmp_path / PRODUCERS).exists()
    (tmp_path / PRODUCERS).unlink()
    assert known(state_of(log)) == known(state)
    kill(log)


def test_a_cut_takes_back_what_it_cut(tmp_path: Path) -> None:
    log = open_copy(tmp_path)
    state = state_of(log)
    append(log, state, 4)
    wanted = known(state)
    append(log, state, 6)
    state.save()
    log.truncate_to(12)
    state.reload(CONFIG)
    assert known(state) == wanted
    kill(log)


def test_nothing_new_is_not_saved_again_and_a_full_disk_is_no_error(tmp_path: Path) -> None:
    log = open_copy(tmp_path)
    state = state_of(log)
    append(log, state, 2)
    state.save()
    (tmp_path / PRODUCERS).unlink()
    state.save()
    assert not (tmp_path / PRODUCERS).exists()
    append(log, state, 1)
    (tmp_path / (PRODUCERS + ".tmp")).mkdir()
    state.save()
    assert not (tmp_path / PRODUCERS).exists()
    (tmp_path / (PRODUCERS + ".tmp")).rmdir()
    state.save()
    assert (tmp_path / PRODUCERS).exists()
    kill(log)


def test_it_says_whether_all_is_saved(tmp_path: Path) -> None:
    log = open_copy(tmp_path)
    state = state_of(log)
    assert state.is_saved, "nothing was ever appended"
    append(log, state, 1)
    assert not state.is_saved
    state.save()
    assert state.is_saved
    kill(log)


def test_who_was_silent_for_too_long_is_forgotten(tmp_path: Path) -> None:
    log, clock = open_copy(tmp_path), ManualClock()
    state = ProducerState(log, Files(), clock, CONFIG, expiration_ms=1_000)
    append(log, state, 1)
    state.tick()
    assert len(state.sequences) == 1
    clock.advance(2_000)
    state.tick()
    assert len(state.sequences) == 0
    kill(log)
