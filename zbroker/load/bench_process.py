"""One producer or consumer of a benchmark, as a process of its own.

    python -m zbroker.load.bench_process TASK_AS_JSON PID

It connects, makes its values, warms up, and writes the line `ready`. After the line `go` on stdin it works, writes its
progress, and at the end its `Outcome`, each as one line of JSON.
"""

from __future__ import annotations

import os

from zbroker.load import bench_rates, bench_stamps
from zbroker.load.bench_task import Task, say
from zbroker.load.child import own_task

WORK = {
    "producer": bench_rates.produce,
    "consumer": bench_rates.consume,
    "stamp_producer": bench_stamps.produce,
    "stamp_consumer": bench_stamps.consume,
}


def main() -> None:
    """Do the task that the command line holds."""
    task = own_task(Task)
    if task.core is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[task.core % len(cores)]})
    outcome = WORK[task.role](task)
    outcome.cores = sorted(os.sched_getaffinity(0))
    say(outcome)


if __name__ == "__main__":
    main()
