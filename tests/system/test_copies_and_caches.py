"""How often bytes are copied, and where they are read from: the kernel's own counts, for every process of a broker.

The traditional path reads a file into a process and writes it into a socket. Here a reader maps the file, so that what
it reads costs no process a read; the same records by messages (transport="zmq") are each test's counter-example.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from tests.consuming import make_topic, settings_for
from zbroker.client.admin import AdminClient
from zbroker.client.consumer import Consumer
from zbroker.client.producer import Producer
from zbroker.testing import Broker

RECORDS = 200_000
RECORD = b"x" * 100
DATA_BYTES = RECORDS * len(RECORD)
NOISE_BYTES = DATA_BYTES // 50  # logs, boards, /proc, the file system's own blocks
PAGE = resource.getpagesize()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker whose data lie where pytest's files lie: on a disk, where there is one."""
    with Broker(workers=1, directory=tmp_path_factory.mktemp("broker")) as found:
        yield found


@dataclass(frozen=True)
class Counts:
    """What the kernel has counted for some processes: bytes and calls of read and write, bytes from the device."""

    read: int
    written: int
    calls: int
    from_disk: int
    sleeps: int

    @classmethod
    def of(cls, *pids: int) -> Self:
        io: dict[str, int] = {}
        sleeps = 0
        for pid in pids:
            for name, value in re.findall(r"(\w+): (\d+)", Path(f"/proc/{pid}/io").read_text()):
                io[name] = io.get(name, 0) + int(value)
            status = Path(f"/proc/{pid}/status").read_text()
            sleeps += sum(map(int, re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)))
        return cls(io["rchar"], io["wchar"], io["syscr"] + io["syscw"], io["read_bytes"], sleeps)

    def since(self, older: Self) -> Counts:
        return Counts(
            self.read - older.read,
            self.written - older.written,
            self.calls - older.calls,
            self.from_disk - older.from_disk,
            self.sleeps - older.sleeps,
        )


def pids_of(broker: Broker) -> list[int]:
    return [broker.pid_of(name) for name in broker.process_names()]


def produce(broker: Broker, topic: str, records: int = RECORDS, **settings: Any) -> None:
    with Producer(bootstrap_servers=broker.bootstrap_servers, **settings) as producer:
        producer.send_many(topic, [RECORD] * records).result(60)


def read_all(broker: Broker, topic: str, way: str = "shm", records: int = RECORDS) -> None:
    """Read every value's bytes."""
    settings = settings_for(way, broker, "")
    with Consumer(topic, auto_offset_reset="earliest", consumer_timeout_ms=20_000, **settings) as consumer:
        seen = 0
        for batch in consumer.batches():
            assert bytes(batch.values().data).count(b"x") == batch.record_count * len(RECORD)
            seen += batch.record_count
            if seen == records:
                return
    raise AssertionError(f"only {seen} of {records} records came")


def log_file(broker: Broker, topic: str) -> Path:
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        directory = admin.describe_topics([topic])[topic].partitions[0].directory
    return Path(directory) / f"{0:020}.log"


class ResidentPages:
    """Which pages of a file the page cache holds: mincore(2) on a mapping that nobody touches."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)

    def count(self, path: Path, size_bytes: int) -> tuple[int, int]:
        """(resident pages, pages) of the first `size_bytes` bytes."""
        pages = -(-size_bytes // PAGE)
        found = ctypes.create_string_buffer(pages)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), pages * PAGE, flags=mmap.MAP_SHARED) as mapped:
            first = ctypes.c_char.from_buffer(mapped)
            address = ctypes.addressof(first)
            result = self._libc.mincore(address, pages * PAGE, found)
            del first
            assert result == 0, os.strerror(ctypes.get_errno())
        return sum(byte & 1 for byte in found.raw), pages


def drop_from_cache(path: Path, size_bytes: int) -> None:
    """Take a file's pages out of the page cache, or skip the test where the kernel keeps them (tmpfs)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    resident, pages = ResidentPages().count(path, size_bytes)
    if resident > pages // 10:
        pytest.skip(f"{path} stays in memory ({resident} of {pages} pages): not on a disk")


def test_reading_by_mapping_copies_nothing_through_any_process_and_messages_do(broker: Broker) -> None:
    make_topic(settings_for("shm", broker, ""), "copies")
    produce(broker, "copies")
    found = {}
    for way in ("shm", "zmq"):
        before, own = Counts.of(*pids_of(broker)), Counts.of(os.getpid())
        read_all(broker, "copies", way)
        found[way] = (Counts.of(*pids_of(broker)).since(before), Counts.of(os.getpid()).since(own))
    mapped, own = found["shm"]
    assert mapped.read + mapped.written < NOISE_BYTES, "the broker read or wrote what only a consumer wanted"
    assert own.read < NOISE_BYTES, "the consumer read what it has mapped"
    assert mapped.from_disk + own.from_disk < NOISE_BYTES
    assert found["zmq"][0].read > DATA_BYTES, "the counter-example: a fetch reads the file into the worker"


def test_reading_by_mapping_needs_few_system_calls_and_sleeps_whoever_counts(broker: Broker) -> None:
    make_topic(settings_for("shm", broker, ""), "calls")
    produce(broker, "calls")
    before = Counts.of(*pids_of(broker), os.getpid())
    read_all(broker, "calls")
    found = Counts.of(*pids_of(broker), os.getpid()).since(before)
    # A read and a write for each 64 KiB, the least that a socket would take, and a sleep on each side.
    assert found.calls < 2 * DATA_BYTES / 65_536, found
    assert found.sleeps < 2 * DATA_BYTES / 65_536, found


def test_a_record_is_written_once_on_its_way_to_the_log_and_never_read_back(broker: Broker) -> None:
    make_topic(settings_for("shm", broker, ""), "written")
    before = Counts.of(*pids_of(broker))
    produce(broker, "written")
    found = Counts.of(*pids_of(broker)).since(before)
    assert DATA_BYTES <= found.written < DATA_BYTES * 1.1
    assert found.read < NOISE_BYTES


def test_compression_saves_disk_and_what_is_sent(broker: Broker) -> None:
    sizes = {}
    for codec in ("none", "lz4"):
        make_topic(settings_for("shm", broker, ""), f"packed-{codec}")
        before = Counts.of(*pids_of(broker))
        produce(broker, f"packed-{codec}", compression_type=codec)
        written = Counts.of(*pids_of(broker)).since(before).written
        with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
            sizes[codec] = (
                admin.describe_topics([f"packed-{codec}"])[f"packed-{codec}"].partitions[0].size_bytes,
                written,
            )
        read_all(broker, f"packed-{codec}")
    assert sizes["none"][0] is not None
    assert sizes["lz4"][0] is not None
    assert sizes["none"][0] > DATA_BYTES > 10 * sizes["lz4"][0]
    assert sizes["none"][1] > 10 * sizes["lz4"][1]


def test_what_was_just_written_is_read_from_the_page_cache(broker: Broker) -> None:
    make_topic(settings_for("shm", broker, ""), "tail")
    before = Counts.of(*pids_of(broker), os.getpid())
    with (
        Producer(bootstrap_servers=broker.bootstrap_servers) as producer,
        Consumer("tail", auto_offset_reset="earliest", bootstrap_servers=broker.bootstrap_servers) as consumer,
    ):
        batches = consumer.batches(timeout_ms=20_000)
        for _ in range(50):
            producer.send_many("tail", [RECORD] * 4_000).result(20)
            seen = 0
            while seen < 4_000:
                seen += next(batches).record_count
    found = Counts.of(*pids_of(broker), os.getpid()).since(before)
    assert found.written >= DATA_BYTES
    assert found.from_disk < NOISE_BYTES, "produced as fast as consumed, and yet the disk was read"
    resident, pages = ResidentPages().count(log_file(broker, "tail"), DATA_BYTES)
    assert resident > 0.9 * pages, "a copy stays in the page cache for the next reader"


def test_what_left_the_page_cache_is_read_from_the_disk_and_its_neighbours_with_it(broker: Broker) -> None:
    make_topic(settings_for("shm", broker, ""), "cold")
    produce(broker, "cold")
    path = log_file(broker, "cold")
    drop_from_cache(path, DATA_BYTES)
    before = Counts.of(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[16] in (2, 67)
    resident, _ = ResidentPages().count(path, DATA_BYTES)
    assert resident > 1, "one byte was touched, and nothing around it was read ahead"
    drop_from_cache(path, DATA_BYTES)
    read_all(broker, "cold")
    found = Counts.of(os.getpid()).since(before)
    assert found.from_disk >= DATA_BYTES, "the counter-example: a cold log comes from the disk"
    before = Counts.of(os.getpid())
    read_all(broker, "cold")
    assert Counts.of(os.getpid()).since(before).from_disk < NOISE_BYTES, (
        "the second reader finds what the first one loaded"
    )
