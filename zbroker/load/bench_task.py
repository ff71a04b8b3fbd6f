"""What one process of a benchmark is told, and what it tells: its task, `ready`, progress, its outcome.

Values are made before `ready`, from the seed and none of them twice the same object: making them is not measured, and a
reused object would flatter by the cache.

With a `rate` the loop is open: a record is due at a fixed moment, and its latency begins then, whether the process came
to send it or not. What a late producer leaves out is so no gap in the figures (no coordinated omission).
"""

from __future__ import annotations

import random
import sys
import time
from typing import Literal

import msgspec

from zbroker.load.inputs import standard_library_files
from zbroker.load.usage import Usage

Mode = Literal["send", "sender", "send_many", "wait", "records", "batches"]
Content = Literal["random", "text"]
WARM_UP_RECORDS = 1_000
STAMP_BYTES = 8
_BLOCK_VALUES = 1_000


class Task(msgspec.Struct, kw_only=True):
    """What one process of a benchmark has to do. Times in ns on the host's monotonic clock, `rate` in records a second.

    `stop_after_s` ends a consumer that got nothing for so long. The mode "wait" is that of a stamp_producer which waits
    for each acknowledgement before it sends what is due next.
    """

    role: Literal["producer", "consumer", "stamp_producer", "stamp_consumer"]
    name: str
    bootstrap_servers: str
    topic: str
    partitions: list[int]
    records: int
    size_bytes: int = 100
    mode: Mode = "send_many"
    settings: dict[str, int | float | str | bool] = {}
    call_records: int = 10_000
    rate: float = 0.0
    seed: int = 1
    core: int | None = None
    boards_dir: str = ""
    content: Content = "random"
    warm_up_records: int = WARM_UP_RECORDS
    stop_after_s: float = 30.0


class Outcome(msgspec.Struct, kw_only=True):
    """What one process did between its first and its last record. Histograms by `Histogram.as_counts`.

    `latency`: to the acknowledgement, or to the reader's hands; `lateness`: from when a record was due to when it was
    sent; `appended`: from when it was due to when it lay in the log. `cores`: those that it may run on.
    """

    name: str
    records: int
    bytes: int
    began_ns: int
    ended_ns: int
    usage: Usage
    cores: list[int] = []
    latency: dict[int, int] = {}
    lateness: dict[int, int] = {}
    appended: dict[int, int] = {}

    @property
    def seconds(self) -> float:
        """How long it worked."""
        return max(1, self.ended_ns - self.began_ns) / 1e9


class Progress(msgspec.Struct):
    """Records done since the last line."""

    progress: int


def fresh_values(count: int, size_bytes: int, seed: int, content: Content = "random") -> list[bytes]:
    """`count` value objects drawn from the seed, none of them shared: random bytes, or pieces of Python's standard
    library, which compress as text does."""
    if content == "random":
        block = random.Random(seed).randbytes(size_bytes * min(count, _BLOCK_VALUES))
    else:
        block = _text(random.Random(seed), size_bytes * min(count, _BLOCK_VALUES))
    pieces = len(block) // size_bytes
    return [block[(n % pieces) * size_bytes : (n % pieces + 1) * size_bytes] for n in range(count)]


def _text(rng: random.Random, size_bytes: int) -> bytes:
    files = standard_library_files()
    rng.shuffle(files)
    found = bytearray()
    for path in files:
        found += path.read_bytes()
        if len(found) >= size_bytes:
            break
    return bytes(found[:size_bytes])


class Reporter:
    """Tells the parent how far it is, five times a second at most."""

    INTERVAL_NS = 200_000_000

    def __init__(self) -> None:
        self._untold = 0
        self._next_ns = 0

    def advance(self, records: int) -> None:
        """Count, and tell when it is time."""
        self._untold += records
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self.INTERVAL_NS
            say(Progress(self._untold))
            self._untold = 0


def say(message: msgspec.Struct | str) -> None:
    """Write one line to the parent."""
    line = message.encode() if isinstance(message, str) else msgspec.json.encode(message)
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def wait_for_go() -> Usage:
    """Say that all is ready and wait for the parent; give what was used so far. Ends the process when the parent is
    gone."""
    say("ready")
    if sys.stdin.readline() != "go\n":
        sys.exit(1)
    return Usage.of()
