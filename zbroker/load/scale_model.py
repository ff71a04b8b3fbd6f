"""Where throughput bends, as a formula of measured constants, and what it would be on more cores.

A record costs CPU time in its producer, its worker, its consumer and in the rest; each of those processes is one thread
that can do no more than one second of work in a second. With W workers (a producer and a consumer each), P partitions
and N cores the rate is the least of

    min(W, P) / worker      a worker is one thread, a partition is led by one worker
    W / producer            a producer is one thread
    N / (producer + worker + consumer + other)
    N * copied / (copies * bytes)      what the cores together copy from memory to memory
    N * written / bytes                what they check and write, bare

The first two bend with workers, the third with cores. What the formula leaves out: cores that share an execution unit,
a memory bus that does not grow with the cores, and preemption once there are more runnable processes than cores.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, Self

from msgspec import Struct

from zbroker.load.results import Plot, Series, Table

COPIES: Final = 4  # of a record on its way by lane; docs/copies.md
OVERHEAD_BYTES: Final = 4  # of a record in a batch of columns: its length, and next to nothing of the header
PAPER_CORES: Final = (2, 4, 8, 16, 32, 64)


class Constants(Struct, kw_only=True):
    """CPU microseconds for each record by role; bytes a second of one core."""

    producer_us: float
    worker_us: float
    consumer_us: float
    other_us: float
    copied_per_s: float
    written_per_s: float
    size_bytes: int

    @classmethod
    def of(cls, rounds: Sequence[dict[str, float]], copied_per_s: float, written_per_s: float, size_bytes: int) -> Self:
        """From the rounds of the run with the fewest processes: what a role costs when nobody is in its way."""
        median = {
            role: statistics.median(one[role] for one in rounds) for role in ("producer", "worker", "consumer", "other")
        }
        return cls(
            producer_us=median["producer"],
            worker_us=median["worker"],
            consumer_us=median["consumer"],
            other_us=median["other"],
            copied_per_s=copied_per_s,
            written_per_s=written_per_s,
            size_bytes=size_bytes,
        )

    @property
    def all_us(self) -> float:
        """What a record costs all processes together."""
        return self.producer_us + self.worker_us + self.consumer_us + self.other_us

    def memory_limit(self, cores: int) -> float:
        """Records a second whose copies the cores can make."""
        return cores * self.copied_per_s / (COPIES * (self.size_bytes + OVERHEAD_BYTES))

    def write_limit(self, cores: int) -> float:
        """Records a second that the cores can check and write when they do nothing else."""
        return cores * self.written_per_s / (self.size_bytes + OVERHEAD_BYTES)

    def bounds(self, workers: int, partitions: int, cores: int) -> dict[str, float]:
        """Records a second by each of the five bounds."""
        return {
            "workers": min(workers, partitions) / self.worker_us * 1e6,
            "producers": workers / self.producer_us * 1e6,
            "cores": cores / self.all_us * 1e6,
            "memory": self.memory_limit(cores),
            "pwrite": self.write_limit(cores),
        }

    def rate(self, workers: int, partitions: int, cores: int) -> float:
        """Records a second by the formula."""
        return min(self.bounds(workers, partitions, cores).values())

    def bend(self, cores: int) -> int:
        """The fewest workers, with as many producers, that the cores bound."""
        workers = 1
        while True:
            bounds = self.bounds(workers, workers, cores)
            if min(bounds["workers"], bounds["producers"]) >= bounds["cores"]:
                return workers
            workers += 1


def model_tables(constants: Constants, cores: int) -> list[Table]:
    """The constants, and what the formula says for machines of more cores."""
    shown = [
        ["producer, us a record", round(constants.producer_us, 4)],
        ["worker, us a record", round(constants.worker_us, 4)],
        ["consumer, us a record", round(constants.consumer_us, 4)],
        ["other processes, us a record", round(constants.other_us, 4)],
        ["copied by one core, GB/s", round(constants.copied_per_s / 1e9, 2)],
        ["checked and written by one core, GB/s", round(constants.written_per_s / 1e9, 2)],
    ]
    rows = []
    for number in sorted({cores, *PAPER_CORES}):
        workers = constants.bend(number)
        bounds = constants.bounds(workers, workers, number)
        least = min(bounds, key=lambda name: bounds[name])
        rows.append([number, workers, round(min(bounds.values()) / 1e6, 2), least])
    columns = ["CORES", "WORKERS", "M RECORDS/S", "BOUND BY"]
    return [
        Table(title="the model's constants, measured", columns=["CONSTANT", "VALUE"], rows=shown),  # type: ignore[arg-type]  # rows of both kinds
        Table(title="on paper: the fewest workers that use all cores", columns=columns, rows=rows),  # type: ignore[arg-type]
    ]


def paper_plot(constants: Constants) -> Plot:
    """The formula over cores, with its limits."""
    cores = [float(number) for number in PAPER_CORES]
    rates = [constants.rate(constants.bend(number), constants.bend(number), number) for number in PAPER_CORES]
    return Plot(
        name="paper",
        title=f"On paper: records of {constants.size_bytes} bytes a second, by the model",
        x_label="cores",
        y_label="records/s",
        series=[
            Series(name="the model", x=cores, y=rates),
            Series(
                name="memory, if it grew with the cores",
                x=cores,
                y=[constants.memory_limit(number) for number in PAPER_CORES],
                is_limit=True,
            ),
            Series(
                name="bare CRC and pwrite",
                x=cores,
                y=[constants.write_limit(number) for number in PAPER_CORES],
                is_limit=True,
            ),
        ],
        is_log_x=True,
        is_log_y=True,
    )
