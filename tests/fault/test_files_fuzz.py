"""T46, the decoders of files: indexes, checkpoints, epochs, the metadata log; mutations of good ones, and noise."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from zbroker.core.entries import Booted, ClusterCreated, Elected, Placement, TopicConfigured, TopicCreated
from zbroker.errors import BrokerError
from zbroker.storage.epochs import Epochs
from zbroker.storage.files import Files
from zbroker.storage.index import OffsetIndex, TimeIndex
from zbroker.storage.layout import CleanMarker, SavedPositions, pack_marker, pack_saved, unpack_marker, unpack_saved
from zbroker.workers.metadata_log import frames, parse, was_synced

CASES = 2_000
DECODE_MAX_S = 0.05  # of CPU time, ten times the figure of the test programme
ENTRIES = (
    ClusterCreated("c" * 20),
    Booted("b" * 36),
    TopicCreated(1, "orders", {"segment.bytes": "65536"}, [Placement(0, 1, "data", 16), Placement(1, 2, "data", 18)]),
    TopicConfigured(1, {"retention.ms": "-1"}),
    Elected(16, 1 << 40, [(1, 0, 3), (1, 1, 1 << 20)]),
)


def mutated(chance: random.Random, good: bytes) -> bytes:
    """A valid file with some of its bytes changed, cut, doubled or followed by noise; or noise alone."""
    data = bytearray(good)
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(2 * len(good) + 1))
    if kind == 1:
        return bytes(data[: chance.randrange(len(data) + 1)])
    if kind == 2:
        at = chance.randrange(len(data))
        data[at:at] = chance.choice([b"\xff" * 8, b"\x00" * 8, data[at : at + 16], chance.randbytes(4)])
        return bytes(data)
    for _ in range(chance.randrange(1, 5)):
        data[chance.randrange(len(data))] = chance.choice([0, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    return bytes(data) + (chance.randbytes(20) if kind == 3 else b"")


def through_a_file(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return read()

    return decode


def decoders(directory: Path) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """By name: the bytes of a good file, and what reads them."""
    files = Files()
    offsets, times = directory / f"{0:020}.index", directory / f"{0:020}.timeindex"
    offset_index, time_index = OffsetIndex(offsets, files), TimeIndex(times, files)
    for number in range(1, 100):
        offset_index.add(number * 10, number * 4_096)
        time_index.add_if_later(1_000 * number, number * 10)
    offset_index.save()
    time_index.save()
    epochs = directory / "leader-epoch-checkpoint"
    saved = pack_saved(SavedPositions(3, 100, 90, 5, b"b" * 16)).ljust(512, b"\0")
    saved += pack_saved(SavedPositions(4, 200, 90, 5, b"b" * 16))
    return {
        "offset index": (
            offsets.read_bytes(),
            through_a_file(offsets, lambda: OffsetIndex(offsets, files).load(1 << 20)),
        ),
        "last entry": (offsets.read_bytes(), through_a_file(offsets, OffsetIndex(offsets, files).last_in_file)),
        "time index": (times.read_bytes(), through_a_file(times, lambda: TimeIndex(times, files).load())),
        "epochs": (b"0\n3\n1 0\n2 100\n7 105\n", through_a_file(epochs, lambda: Epochs(directory, files))),
        "saved positions": (saved, unpack_saved),
        "clean marker": (pack_marker(CleanMarker(5, 200, 100, 8_192)), unpack_marker),
        "metadata log": (frames(ENTRIES, 0), parse),
        "metadata tail": (frames(ENTRIES, 0), lambda data: was_synced(data, 16)),
    }


NAMES = (
    "offset index",
    "last entry",
    "time index",
    "epochs",
    "saved positions",
    "clean marker",
    "metadata log",
    "metadata tail",
)


@pytest.mark.parametrize("name", NAMES)
def test_t46_mutated_files_raise_only_the_declared_errors(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("ZBROKER_SEED", random.randrange(1 << 32)))
    request.node.add_report_section("call", "seed", str(seed))
    chance = random.Random(seed)
    found = decoders(tmp_path)
    assert tuple(found) == NAMES
    good, decode = found[name]
    decode(good)
    tracemalloc.start()
    try:
        for _ in range(CASES):
            data = mutated(chance, good)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            started = time.process_time()
            try:
                decode(data)
            except BrokerError:
                pass
            assert time.process_time() - started < DECODE_MAX_S, data
            assert tracemalloc.get_traced_memory()[1] - before < 64 * len(data) + (64 << 10), data
    finally:
        tracemalloc.stop()
