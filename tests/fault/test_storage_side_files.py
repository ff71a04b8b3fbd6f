"""T05: every side file, and every pair of them, deleted, cut or filled with garbage: the records stay the same, and so
does what is known of producers.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.storage_logs import append, batches_of, kill, open_log
from tests.unit.test_storage_copied_log import open_copy
from tests.unit.test_storage_producer_snapshot import add
from tests.unit.test_workers_producer_state import known, state_of
from zbroker.record.batch import batches_in
from zbroker.storage.layout import CLEAN_MARKER, EPOCHS, HIGH_WATERMARK, PRODUCERS

SEED = 7


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(SEED).randbytes(max(24, path.stat().st_size)))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: tuple[Callable[[Path], None], ...] = (delete, cut, garbage)
SIDE_FILES = (
    "first.index",
    "first.timeindex",
    "last.index",
    "last.timeindex",
    EPOCHS,
    HIGH_WATERMARK,
    CLEAN_MARKER,
    PRODUCERS,
)


class Sound:
    """A copy that was closed cleanly, and what a reader finds in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        log = open_copy(directory)
        for number in range(150):
            append(log, 1 + number % 5, epoch=1 + number // 40, timestamp_ms=1_000 + (number * 37) % 300 + number)
            if number in (20, 90, 140):
                add(log, number, epoch=1 + number // 40)
            if number == 100:
                state_of(log).save()
        self.producers = known(state_of(log))
        assert self.producers
        log.save_high_watermark(log.log_end)
        self.batches = batches_of(log)
        self.epochs = list(log.epochs.starts)
        self.log_end = log.log_end
        self.positions = [log.position_of(offset) for offset in range(log.log_end)]
        self.times = {time: log.offset_for_time(time, log.log_end) for time in range(990, 1_460, 7)}
        log.close()
        self.bases = sorted(path.stem for path in directory.glob("*.log"))
        assert len(self.bases) >= 3
        assert (directory / f"{self.bases[-1]}.index").stat().st_size > 0

    def path(self, directory: Path, name: str) -> Path:
        which, _, suffix = name.partition(".")
        stem = {"first": self.bases[0], "last": self.bases[-1]}.get(which)
        return directory / (f"{stem}.{suffix}" if stem else name)

    def check(self, directory: Path) -> None:
        log = open_copy(directory)
        assert log.log_end == self.log_end
        assert known(state_of(log)) == self.producers
        assert batches_of(log) == self.batches
        assert log.epochs.starts == self.epochs
        assert [log.position_of(offset) for offset in range(0, self.log_end, 11)] == self.positions[::11]
        assert {time: log.offset_for_time(time, log.log_end) for time in self.times} == self.times
        append(log, 2, epoch=9)
        log.close()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tmp_path_factory.mktemp("sound") / "p")


def single_cases() -> Iterator[tuple[tuple[str, Callable[[Path], None]], ...]]:
    for name, damage in product(SIDE_FILES, (*DAMAGES, empty, zeros)):
        yield ((name, damage),)


def pair_cases() -> Iterator[tuple[tuple[str, Callable[[Path], None]], ...]]:
    for one, other in combinations(SIDE_FILES, 2):
        for first, second in product(DAMAGES, DAMAGES):
            yield (one, first), (other, second)


def check_case(sound: Sound, case: tuple[tuple[str, Callable[[Path], None]], ...]) -> None:
    directory = sound.directory.with_name("case")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound.directory, directory)
    for name, damage in case:
        damage(sound.path(directory, name))
    try:
        sound.check(directory)
    except Exception as error:
        raise AssertionError(f"after {[(name, damage.__name__) for name, damage in case]}") from error


def test_t05_each_side_file_alone(sound: Sound) -> None:
    for case in single_cases():
        check_case(sound, case)


def test_t05_each_pair_of_side_files(sound: Sound) -> None:
    cases = list(pair_cases())
    assert len(cases) == 252
    for case in cases:
        check_case(sound, case)


def test_t05_all_side_files_at_once(sound: Sound) -> None:
    check_case(sound, tuple((name, delete) for name in SIDE_FILES))
    check_case(sound, tuple((name, garbage) for name in SIDE_FILES))


def test_t05_orphans_and_leftovers_are_swept(sound: Sound) -> None:
    directory = sound.directory.with_name("case")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound.directory, directory)
    leftovers = [
        f"{sound.log_end + 5:020d}.index",
        f"{7:020d}.timeindex",
        f"{3:020d}.log.deleted",
        f"{EPOCHS}.tmp",
    ]
    for name in leftovers:
        (directory / name).write_bytes(b"leftover")
    (directory / "notes.txt").write_text("someone's own")
    sound.check(directory)
    assert not [name for name in leftovers if (directory / name).exists()]
    assert (directory / "notes.txt").exists(), "what is not ours is left alone"


def test_a_marker_that_does_not_name_the_log_end_is_not_believed(sound: Sound) -> None:
    directory = sound.directory.with_name("case")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound.directory, directory)
    stale = (directory / CLEAN_MARKER).read_bytes()
    log = open_log(directory)
    assert log.recovery.is_clean
    added = append(log, 2, epoch=9)
    kill(log)
    (directory / CLEAN_MARKER).write_bytes(stale)
    log = open_log(directory)
    assert not log.recovery.is_clean
    assert batches_of(log) == [*sound.batches, added]
    log.close()


def test_a_marker_is_not_believed_when_something_lies_behind_the_end(sound: Sound) -> None:
    directory = sound.directory.with_name("case")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(sound.directory, directory)
    path = sorted(directory.glob("*.log"))[-1]
    position, header = list(batches_in(path.read_bytes()))[-1]
    with path.open("r+b") as file:
        file.seek(position + header.size_bytes + 200)
        file.write(b"a batch whose beginning never reached the disk")
    log = open_log(directory)
    assert not log.recovery.is_clean
    assert log.recovery.was_torn
    assert batches_of(log) == sound.batches
    log.close()
    assert not any(path.read_bytes()[position + header.size_bytes :])
