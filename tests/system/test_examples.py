"""Each example runs as its docstring says, as processes of their own, and ends with what it promises."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conditions import wait_until
from zbroker.testing import Broker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=2) as found:
        yield found


def command(broker: Broker, name: str, *arguments: object) -> list[str]:
    path = ROOT / "examples" / f"{name}.py"
    return [sys.executable, str(path), *map(str, arguments), "--bootstrap-servers", broker.bootstrap_servers]


def run(broker: Broker, name: str, *arguments: object) -> str:
    return subprocess.run(
        command(broker, name, *arguments), check=True, capture_output=True, text=True, timeout=90
    ).stdout


@contextmanager
def running(broker: Broker, name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command(broker, name, *arguments), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, timeout=30)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []  # the table is still to be made
    finally:
        connection.close()


def test_word_count_by_a_group_counts_each_word_however_many_members_there_are(broker: Broker) -> None:
    path = ROOT / "ARCHITECTURE.md"
    run(broker, "word_count", "write", path)
    members = [
        subprocess.Popen(command(broker, "word_count", "count", "--idle-ms", "3000"), text=True) for _ in range(2)
    ]
    try:
        assert [member.wait(90) for member in members] == [0, 0]
    finally:
        for member in members:
            member.kill()
            member.wait(10)
    shown = {word: int(number) for number, word in map(str.split, run(broker, "word_count", "show").splitlines())}
    assert shown == Counter(re.findall(r"\w+", path.read_text().lower()))


def test_the_metrics_pipeline_publishes_each_window_once_though_its_middle_is_killed(broker: Broker) -> None:
    averaging = ("metrics_pipeline", "average", "--window-ms", 200)
    with running(broker, "metrics_pipeline", "measure", "--interval-ms", 10):
        with running(broker, *averaging):
            assert len(run(broker, "metrics_pipeline", "watch", "--count", 6).splitlines()) == 6
        with running(broker, *averaging):
            lines = run(broker, "metrics_pipeline", "watch", "--count", 30).splitlines()
    windows = [(line.split()[0], re.findall(r"from_ms\": (\d+)", line)[0]) for line in lines]
    assert len(set(windows)) == 30
    assert {metric for metric, _ in windows} == {"load", "free_bytes"}


def test_the_totals_in_sqlite_are_right_though_the_booking_is_killed(broker: Broker, tmp_path: Path) -> None:
    path = tmp_path / "totals.db"
    total = int(run(broker, "exactly_once_sqlite", "pay", 3_000))
    query = "SELECT coalesce(sum(payments), 0), sum(cents) FROM accounts"
    for target in (500, 1_500, 3_000):

        def booked() -> int:
            found = rows(path, query)
            return int(str(found[0][0])) if found else 0

        with running(broker, "exactly_once_sqlite", "book", path):
            wait_until(lambda: booked() >= target, timeout_s=60, what=f"{target} payments")  # noqa: B023
    assert rows(path, query) == [(3_000, total)]


def test_the_outbox_ships_each_order_once(broker: Broker, tmp_path: Path) -> None:
    shop, depot = tmp_path / "shop.db", tmp_path / "depot.db"
    run(broker, "outbox", "order", shop, 200)
    with running(broker, "outbox", "ship", depot):
        with running(broker, "outbox", "relay", shop):
            wait_until(lambda: rows(depot, "SELECT 1 FROM shipments"), timeout_s=60, what="the first shipment")
        run(broker, "outbox", "order", shop, 50)
        with running(broker, "outbox", "relay", shop):
            query = "SELECT count(*) FROM shipments"
            wait_until(lambda: rows(depot, query) == [(250,)], timeout_s=60, what="all shipments")
    assert rows(shop, "SELECT count(*) FROM zbroker_outbox") == [(0,)]
