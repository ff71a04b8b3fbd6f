"""`zbroker cluster` and the bad inputs of copies, against a broker with two workers and two replica processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conditions import wait_until
from zbroker import AdminClient, NewTopic, Producer
from zbroker.cli.main import main
from zbroker.testing import Broker

Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker(workers=2, replicas=2) as broker:
        yield broker


@pytest.fixture
def run(broker: Broker, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command on the broker: (exit code, stdout, stderr)."""
    monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", broker.bootstrap_servers)

    def call(*arguments: str) -> tuple[int, bytes, str]:
        code = main(list(arguments))
        sys.stdout.flush()
        output = capfdbinary.readouterr()
        return code, output.out, output.err.decode()

    return call


@pytest.fixture
def topic(broker: Broker, request: pytest.FixtureRequest) -> str:
    """A topic of one partition and two copies, both in sync, with a hundred records."""
    name = f"cli-{abs(hash(request.node.nodeid)) % 10**8}"
    with AdminClient(bootstrap_servers=broker.bootstrap_servers) as admin:
        admin.create_topics([NewTopic(name, 1, replication_factor=2)])
        with Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
            producer.send_many(name, [b"value"] * 100).result()
        wait_until(lambda: len(admin.describe_topics([name])[name].partitions[0].isr) == 2)
    return name


def described(run: Run, topic: str) -> dict[str, object]:
    code, out, _ = run("topics", "describe", topic, "--json")
    assert code == 0
    found: dict[str, object] = json.loads(out)[0]["partitions"][0]
    return found


def places(run: Run, topic: str) -> list[str]:
    copies = described(run, topic)["copies"]
    assert isinstance(copies, list)
    return [copy["process"] for copy in copies]


def absent(run: Run, topic: str) -> str:
    return next(name for name in ("worker-0", "worker-1", "replica-0", "replica-1") if name not in places(run, topic))


def test_describe_counts_the_copies_of_each_process(run: Run, topic: str) -> None:
    code, out, _ = run("cluster", "describe", "--json")
    assert code == 0
    rows = {row["process"]: row for row in json.loads(out)}
    for name in places(run, topic):
        assert rows[name]["copies"] >= 1
        assert rows[name]["copies"] == rows[name]["in_sync"] + rows[name]["behind"]
    topics = json.loads(run("topics", "describe", "--json")[1])
    assert sum(row["leads"] for row in rows.values()) == sum(len(one["partitions"]) for one in topics)


def test_topics_describe_shows_copies_by_the_name_of_their_process(run: Run, topic: str) -> None:
    _, out, _ = run("topics", "describe", topic)
    head, row = (line.split("\t") for line in out.decode().splitlines()[-2:])
    shown = dict(zip(head, row, strict=True))
    assert shown["REPLICAS"].split(",") == places(run, topic)
    assert sorted(shown["ISR"].split(",")) == sorted(places(run, topic))
    assert (shown["END-OFFSET"], shown["HIGH-WATERMARK"]) == ("100", "100")
    assert shown["PID"].isdecimal()


def test_a_copy_moves_and_its_old_place_is_free_again(run: Run, topic: str) -> None:
    target, (first, second) = absent(run, topic), places(run, topic)
    code, _, error = run("cluster", "move", f"{topic}:0", "--to", target, "--from", second)
    assert code == 0, error
    assert sorted(places(run, topic)) == sorted([first, target])
    assert described(run, topic)["high_watermark"] == 100


def test_a_move_that_is_not_waited_for_says_in_json_whether_it_is_done(run: Run, topic: str) -> None:
    target = absent(run, topic)
    code, out, error = run("cluster", "move", f"{topic}:0", "--to", target, "--no-wait", "--json")
    assert code == 0, error
    found = json.loads(out)
    assert found["moved"] == ([{"topic": topic, "partition": 0}] if found["is_done"] else [])
    wait_until(lambda: target in places(run, topic))


def test_preferred_leaders_are_elected_or_it_is_said_why_not(run: Run, topic: str) -> None:
    code, out, _ = run("cluster", "elect-leaders", "--topic", topic)
    assert (code, out.splitlines()[1:]) == (0, [f"{topic}\t0\tdone".encode()])
    code, _, error = run("cluster", "elect-leaders", "--topic", "nothing-here")
    assert code == 1
    assert "nothing-here" in error


def test_a_drained_process_has_no_copy_left(run: Run, topic: str) -> None:
    name = places(run, topic)[0]
    code, _, error = run("cluster", "drain", name)
    assert code == 0, error
    rows = {row["process"]: row for row in json.loads(run("cluster", "describe", "--json")[1])}
    assert rows[name]["copies"] == 0
    assert name not in places(run, topic)
    assert described(run, topic)["high_watermark"] == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("topics", "create", "wide", "-r", "5"), ("5", "zbroker")),
        (("topics", "create", "wide", "-r", "2", "--config", "min.insync.replicas=3"), ("min.insync.replicas", "2")),
        (("cluster", "drain", "worker-9"), ("worker-9", "zbroker")),
        (("cluster", "move", "nothing-here:0", "--to", "worker-0"), ("nothing-here",)),
    ],
)
def test_what_cannot_be_is_refused_with_the_command_that_shows_the_state(
    run: Run, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, error = run(*arguments)
    assert (code, out) == (1, b"")
    assert all(word in error for word in words), error
    assert "wide" not in run("topics", "list")[1].decode().split()


def test_a_move_to_where_a_copy_is_already_is_refused(run: Run, topic: str) -> None:
    first, second = places(run, topic)
    code, _, error = run("cluster", "move", f"{topic}:0", "--to", second, "--from", first)
    assert code == 1
    assert second in error
    assert f"zbroker topics describe {topic}" in error
    assert places(run, topic) == [first, second]


def test_a_move_of_a_partition_that_is_not_there_is_refused(run: Run, topic: str) -> None:
    code, _, error = run("cluster", "move", f"{topic}:77", "--to", absent(run, topic))
    assert code == 1
    assert "77" in error


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("cluster", "elect-leaders", "--unclean"), "--yes"),
        (("cluster", "elect-leaders", "--partition", "0"), "--topic"),
        (("cluster", "move", "pay", "--to", "worker-0"), "TOPIC:PARTITION"),
    ],
)
def test_a_command_that_is_typed_wrong_ends_with_2(run: Run, arguments: tuple[str, ...], word: str) -> None:
    code, out, error = run(*arguments)
    assert (code, out) == (2, b"")
    assert word in error


def test_the_last_process_is_not_drained(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with Broker(workers=1) as alone:
        monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", alone.bootstrap_servers)
        assert main(["topics", "create", "pay"]) == 0
        capfd.readouterr()
        assert main(["cluster", "drain", "worker-0"]) == 1
        error = capfd.readouterr().err
        assert "worker-0" in error
        assert "zbroker cluster describe" in error
