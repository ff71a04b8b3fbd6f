"""`zbroker groups` and `zbroker consume --group`, on a real broker that is up, half dead, dead and started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conditions import wait_until, wait_until_stopped
from tests.consuming import broker_with_tcp, fill, make_topic, numbers, read_values, settings_for
from zbroker import AdminClient, Consumer, Producer
from zbroker.cli.main import main
from zbroker.errors import GroupIdNotFoundError, NonEmptyGroupError
from zbroker.ids import TopicPartition
from zbroker.record.records import OffsetAndMetadata
from zbroker.testing import Broker

Run = Callable[..., tuple[int, str, str]]
START_MS = time.time_ns() // 1_000_000 - 1_000_000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Broker, str]]:
    broker, address = broker_with_tcp(workers=2)
    with broker:
        yield broker, address


@pytest.fixture
def way(served: tuple[Broker, str]) -> dict[str, Any]:
    return settings_for("shm", *served)


@pytest.fixture
def run(served: tuple[Broker, str], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command on the broker: (exit code, stdout, stderr)."""
    monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", served[0].bootstrap_servers)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        sys.stdout.flush()
        output = capfdbinary.readouterr()
        return code, output.out.decode(), output.err.decode()

    return call


@pytest.fixture
def topic(way: dict[str, Any], request: pytest.FixtureRequest) -> str:
    """A topic of two partitions of 100 records, a second apart; the group of its name has committed 40 and 100."""
    name = re.sub(r"[^a-zA-Z0-9]", "-", request.node.name)
    make_topic(way, name, 2)
    with Producer(way) as producer:
        for partition in range(2):
            times = [START_MS + 1_000 * index for index in range(100)]
            producer.send_many(name, numbers(100), partition=partition, timestamps_ms=times).result(20)
    with AdminClient(way) as admin:
        admin.alter_group_offsets(name, {(name, 0): 40, (name, 1): 100})
    return name


def described(run: Run, group: str, *more: str) -> dict[str, Any]:
    code, out, err = run("groups", "describe", group, "--json", *more)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)[0]
    return found


def lags(document: dict[str, Any]) -> list[tuple[int, ...]]:
    return [
        (one["partition"], one["current_offset"], one["log_end_offset"], one["lag"], one["lag_ms"])
        for one in document["partitions"]
    ]


BEHIND = [(0, 40, 100, 60, 59_000), (1, 100, 100, 0, 0)]


def test_describe_shows_lag_in_records_and_in_time(run: Run, topic: str) -> None:
    found = described(run, topic)
    assert lags(found) == BEHIND
    assert (found["state"], found["total_lag"], found["members"]) == ("Empty", 60, [])
    code, out, _ = run("groups", "describe", topic)
    head, *rows = (line.split("\t") for line in out.splitlines())
    assert code == 0
    assert [dict(zip(head, row, strict=True))["LAG"] for row in rows] == ["60", "0"]
    assert dict(zip(head, rows[0], strict=True))["LAG-TIME"] == "59.0 s"


def test_a_lag_above_the_limit_fails_the_check(run: Run, topic: str) -> None:
    assert run("groups", "describe", topic, "--max-lag", "60")[0] == 0
    code, _, err = run("groups", "describe", topic, "--max-lag", "59")
    assert code == 4
    assert f"{topic}:0 is 60 records behind" in err


def test_a_member_that_has_committed_nothing_is_behind_by_everything(
    run: Run, topic: str, way: dict[str, Any], served: tuple[Broker, str]
) -> None:
    group = f"{topic}-new"
    settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False, **way}
    with Consumer(topic, group_id=group, **settings) as consumer:
        read_values(consumer, 10)
        for more in ((), ("-b", served[1])):
            found = described(run, group, *more)["partitions"]
            assert [(one["current_offset"], one["lag"]) for one in found] == [(None, 100), (None, 100)]
            assert run("groups", "describe", group, "--max-lag", "99", *more)[0] == 4
        assert lags(described(run, group))[0][4] == 99_000


def test_members_are_shown_with_what_they_read(run: Run, topic: str, way: dict[str, Any]) -> None:
    with Consumer(topic, group_id=topic, client_id="app-1", **way) as consumer:
        assert len(read_values(consumer, 10)) == 10
        consumer.commit({(topic, 0): 90})
        found = described(run, topic)
        member = consumer.group_metadata().member_id
        assert lags(found) == [(0, 90, 100, 10, 9_000), (1, 100, 100, 0, 0)]
        assert [one["member_id"] for one in found["partitions"]] == [member, member]
        assert found["members"][0]["owned"] == {topic: [0, 1]}
        assert found["state"] == "Stable"
        _, out, _ = run("groups", "describe", topic, "--members")
        assert out.splitlines()[1].split("\t")[1:4:2] == [member, "app-1"]
        _, out, _ = run("groups", "describe", topic, "--state")
        assert out.splitlines()[1].split("\t") == [topic, "Stable", "1", "sticky", "10"]
        rows = json.loads(run("groups", "list", "--json")[1])
        assert {"group": topic, "state": "Stable", "members": 1} == {
            key: value
            for one in rows
            if one["group"] == topic
            for key, value in one.items()
            if key in ("group", "state", "members")
        }
        listed = run("groups", "list", "--state", "Stable")[1]
        assert listed.splitlines()[1:] == [line for line in listed.splitlines() if line.startswith(topic)]


def test_lag_is_right_with_the_coordinator_or_everything_dead(
    topic: str, run: Run, served: tuple[Broker, str], way: dict[str, Any]
) -> None:
    broker = served[0]
    consumer: Consumer[Any, Any] = Consumer(topic, group_id=topic, enable_auto_commit=False, **way)
    with consumer:
        read_values(consumer, 10)
        consumer.commit({(topic, 0): 75})
        wanted = [(0, 75, 100, 25, 24_000), (1, 100, 100, 0, 0)]
        member = consumer.group_metadata().member_id
        pid = broker.signal("coordinator", signal.SIGSTOP)
        try:
            wait_until_stopped(pid)
            found = described(run, topic)
            assert (lags(found), found["state"]) == (wanted, "Unknown")
            assert {one["member_id"] for one in found["partitions"]} == {member}
            assert [one["group"] for one in json.loads(run("groups", "list", "--json")[1]) if one["group"] == topic]
        finally:
            broker.signal("coordinator", signal.SIGCONT)
        broker.kill_all()
        try:
            assert lags(described(run, topic)) == wanted
            assert run("groups", "describe", "no-such-group")[0] == 1
            for path in broker.paths.boards_dir.iterdir():
                path.unlink()
            assert lags(described(run, topic)) == wanted, "the files say the same"
        finally:
            broker.start()
        assert lags(described(run, topic)) == wanted


def test_lag_over_tcp_is_asked_for(run: Run, topic: str, served: tuple[Broker, str]) -> None:
    found = described(run, topic, "-b", served[1])
    assert [row[:4] for row in lags(found)] == [row[:4] for row in BEHIND]


@pytest.mark.parametrize(
    ("option", "offsets"),
    [
        (["--to-earliest"], [0, 0]),
        (["--to-latest"], [100, 100]),
        (["--to-offset", "7"], [7, 7]),
        (["--to-offset", "1000"], [100, 100]),
        (["--shift-by", "-30"], [10, 70]),
        (["--shift-by", "5"], [45, 100]),
        (["--to-datetime", str(START_MS + 20_500)], [21, 21]),
        (["--to-datetime", "2099-01-01"], [100, 100]),
        (["--to-latest", "-p", "0"], [100, 100]),
    ],
)
def test_reset_offsets(run: Run, topic: str, option: list[str], offsets: list[int]) -> None:
    code, out, err = run("groups", "reset-offsets", topic, "--topic", topic, *option, "--json")
    assert (code, [row["new_offset"] for row in json.loads(out)]) == (0, offsets[: len(json.loads(out))])
    assert "nothing was changed" in err
    assert lags(described(run, topic)) == BEHIND
    assert run("groups", "reset-offsets", topic, "--topic", topic, *option, "--execute")[0] == 0
    assert [row[1] for row in lags(described(run, topic))] == offsets


def test_an_active_group_is_neither_reset_nor_deleted(run: Run, topic: str, way: dict[str, Any]) -> None:
    with Consumer(topic, group_id=topic, enable_auto_commit=False, **way) as consumer:
        read_values(consumer, 1)
        for words in (
            ("reset-offsets", topic, "-t", topic, "--to-earliest", "--execute"),
            ("delete", topic, "--yes"),
        ):
            code, _, err = run("groups", *words)
            assert code == 1
            assert "NonEmptyGroup" in err
        assert lags(described(run, topic)) == BEHIND


def test_wrong_words_are_refused(run: Run, topic: str) -> None:
    assert run("groups", "reset-offsets", topic, "-t", topic)[0] == 2
    assert run("groups", "reset-offsets", topic, "-t", topic, "--to-latest", "--to-earliest")[0] == 2
    assert run("groups", "reset-offsets", topic, "-t", "no-such-topic", "--to-latest")[0] == 1
    assert run("groups", "describe", "no-such-group")[0] == 1
    assert run("groups", "delete", "no-such-group", "--yes")[0] == 1
    assert run("groups", "import", "/no/such/file")[0] == 2


def test_export_and_import(run: Run, topic: str, tmp_path: Path) -> None:
    code, out, _ = run("groups", "export", topic)
    assert (code, out) == (0, f"group,topic,partition,offset\n{topic},{topic},0,40\n{topic},{topic},1,100\n")
    for text in (out, run("groups", "export", topic, "--json")[1]):
        file = tmp_path / "offsets"
        file.write_text(text)
        assert run("groups", "import", str(file), "--group", f"{topic}-2", "--dry-run")[0] == 0
        assert run("groups", "describe", f"{topic}-2")[0] == 1
        assert run("groups", "import", str(file), "--group", f"{topic}-2")[0] == 0
        assert lags(described(run, f"{topic}-2")) == BEHIND
        assert run("groups", "delete", f"{topic}-2", "--yes")[0] == 0
    file.write_text("what,is,this\n")
    code, _, err = run("groups", "import", str(file))
    assert (code, "not what" in err) == (2, True)


def test_consume_as_a_member(run: Run, topic: str) -> None:
    code, out, _ = run("consume", topic, "--group", topic, "-n", "15")
    assert (code, out.split()) == (0, [str(index) for index in range(40, 55)])
    assert lags(described(run, topic))[0][1] == 55
    code, out, _ = run("consume", topic, "--group", topic, "-e", "-f", "%o\n")
    assert (code, out.split()) == (0, [str(index) for index in range(55, 100)])
    assert run("consume", topic, "--group", f"{topic}-new", "-o", "start", "-e", "--json")[1].count("\n") == 200
    assert run("consume", topic, "--group", topic, "-p", "0")[0] == 2
    assert run("consume", topic, "--group", topic, "-o", "5")[0] == 2


def test_watch_goes_on_until_ctrl_c(topic: str, served: tuple[Broker, str], way: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "zbroker", "groups", "describe", topic, "--watch", "--interval", "20ms"]
    command += ["--json", "-b", served[0].bootstrap_servers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert lags(json.loads(process.stdout.readline())[0]) == BEHIND
        with AdminClient(way) as admin:
            admin.alter_group_offsets(topic, {(topic, 0): 50})
        wait_until(lambda: lags(json.loads(process.stdout.readline())[0])[0][3] == 50)  # type: ignore[union-attr]
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130


def test_the_admin_client_knows_groups(topic: str, way: dict[str, Any]) -> None:
    with AdminClient(way) as admin:
        assert admin.list_group_offsets(topic) == {
            TopicPartition(topic, 0): OffsetAndMetadata(40), TopicPartition(topic, 1): OffsetAndMetadata(100),
        }  # fmt: skip
        admin.alter_group_offsets(topic, {(topic, 0): None, (topic, 1): OffsetAndMetadata(3, "why", 0)})
        assert admin.list_group_offsets(topic) == {TopicPartition(topic, 1): OffsetAndMetadata(3, "why", 0)}
        assert admin.reset_group_offsets(topic, {(topic, 0): "latest"}) == {TopicPartition(topic, 0): 100}
        with Consumer(topic, group_id=topic, **way) as consumer:
            read_values(consumer, 1)
            with pytest.raises(NonEmptyGroupError):
                admin.alter_group_offsets(topic, {(topic, 0): 1})
            with pytest.raises(NonEmptyGroupError):
                admin.delete_groups([topic])
            assert [one.pid for one in admin.describe_groups([topic])[topic].members] == [consumer._connection._pid]
            assert admin.remove_group_members(topic)
        assert admin.delete_groups([topic]) == {topic: ""}
        with pytest.raises(GroupIdNotFoundError):
            admin.describe_groups([topic])
        assert topic not in [one.group_id for one in admin.list_groups()]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["list", "--state", "empty"], 2, "is not one of 'Empty', 'Assigning', 'Reconciling', 'Stable'"),
        (["export", "nobody"], 1, "group 'nobody' has committed nothing, or does not exist"),
        (["import", "BINARY"], 2, "not what `zbroker groups export` writes"),
        (["import", "HUGE"], 2, f"g: {1 << 64} is no offset of in:0"),
        (
            ["reset-offsets", "two words", "-t", "reset", "--to-latest", "--execute"],
            1,
            "'two words' is not 1 to 249 of",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, served: tuple[Broker, str], tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    files = {"BINARY": b"\xac\x00\xff", "HUGE": b"group,topic,partition,offset\ng,in,0,%d\n" % (1 << 64)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with AdminClient(bootstrap_servers=served[0].bootstrap_servers) as admin:
        if "reset" not in admin.list_topics():
            admin.create_topics(["reset"])
    found = run("groups", *(str(tmp_path / word) if word in files else word for word in words))
    assert found[:2] == (code, "")
    assert said in found[2]


def test_what_was_committed_in_a_deleted_topic_is_not_shown_beside_its_successor(run: Run, way: dict[str, Any]) -> None:
    for committed in (3, 1):
        make_topic(way, "again")
        fill(way, "again", numbers(5))
        assert run("consume", "again", "-g", "of-again", "-o", "start", "-n", str(committed))[0] == 0
        found = described(run, "of-again")["partitions"]
        assert [(one["topic"], one["current_offset"], one["lag"]) for one in found] == [
            ("again", committed, 5 - committed)
        ]
        assert run("topics", "delete", "again", "-y")[0] == 0
        assert described(run, "of-again")["partitions"] == []
