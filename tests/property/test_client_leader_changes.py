"""Consumers across leader changes in any order: no error, no record twice, none skipped, none uncommitted."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.leader_changes import COPIES, Group, Reader

Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6), st.integers(0, 400)),
        st.tuples(st.just("replicate"), st.integers(0, COPIES - 1), st.just(0)),
        st.tuples(st.just("all"), st.just(0), st.just(0)),
        st.tuples(st.just("die"), st.integers(0, COPIES - 1), st.integers(0, 3)),
        st.tuples(st.just("move"), st.integers(0, COPIES - 1), st.integers(0, 3)),
        st.tuples(st.just("poll"), st.integers(1, 50), st.just(0)),
        st.tuples(st.just("batch"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.just(0)),
    ),
    min_size=5,
    max_size=50,
)
DEADLINE_S = 20.0


def read(reader: Reader, kind: str, count: int) -> None:
    if kind == "poll":
        reader.poll(count)
    elif kind == "batch":
        reader.batch()
    else:
        reader.wait()


def play(group: Group, readers: list[Reader], steps: list[Step]) -> None:
    written = 0
    for kind, number, size in steps:
        if kind == "append":
            group.append([b"%d@%d:" % (written + index, group.epoch) + b"x" * size for index in range(number)])
            written += number
        elif kind == "replicate":
            group.replicate(number)
        elif kind == "all":
            for index in range(COPIES):
                group.replicate(index)
        elif kind in ("die", "move"):
            looks = ("wait", "poll", "batch", "nothing")[size]

            def between(looks: str = looks) -> None:
                for reader in readers:
                    if looks != "nothing":
                        read(reader, looks, 5)

            group.change_leader(number, dies=kind == "die", between=between)
        else:
            read(readers[written % len(readers)], kind, number)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
@example(
    # A leader that was read from follows, is cut and written anew while its old file is mapped.
    steps=[
        ("append", 5, 100), ("all", 0, 0), ("wait", 0, 0), ("wait", 0, 0), ("poll", 50, 0), ("append", 3, 100),
        ("move", 1, 3), ("append", 3, 200), ("all", 0, 0), ("poll", 50, 0), ("append", 3, 50), ("all", 0, 0),
        ("move", 0, 3), ("poll", 50, 0), ("batch", 0, 0),
    ],
)  # fmt: skip
def test_consumers_read_exactly_what_is_committed_whoever_leads(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        group = Group(Path(directory))
        readers = [
            Reader(group),
            Reader(group, fetch_min_bytes=300, fetch_max_wait_ms=0),
            Reader(group, is_local=False, max_partition_fetch_bytes=1024),
        ]
        try:
            play(group, readers, steps)
            for index in range(COPIES):
                group.replicate(index)
            deadline_s = time.monotonic() + DEADLINE_S
            for reader in readers:
                while reader.offset < group.high_watermark:
                    assert time.monotonic() < deadline_s, f"{reader.offset} of {group.high_watermark}"
                    if not reader.poll(100):
                        reader.wait()
                assert reader.poll(100) == 0
        finally:
            for reader in readers:
                reader.close()
            group.close()
