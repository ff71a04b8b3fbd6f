"""The commands against a real broker: what a user types, and what comes out."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conditions import wait_until
from tests.consuming import broker_with_tcp
from zbroker.cli.main import main
from zbroker.testing import Broker

Run = Callable[..., tuple[int, bytes, str]]


class Stdin:
    """A standard input of bytes, that is no terminal."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def run(zbroker_server: Broker, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command on the broker: (exit code, stdout, stderr)."""
    monkeypatch.setenv("ZBROKER_BOOTSTRAP_SERVERS", zbroker_server.bootstrap_servers)

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin))
        code = main(list(arguments))
        sys.stdout.flush()
        output = capfdbinary.readouterr()
        return code, output.out, output.err.decode()

    return call


def table(out: bytes) -> list[dict[str, str]]:
    head, *lines = out.decode().splitlines()
    return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_a_topic_is_created_listed_described_altered_grown_and_deleted(run: Run) -> None:
    assert run("topics", "create", "cli-life", "-p", "2", "--config", "retention.ms=1d")[0] == 0
    assert b"cli-life" in run("topics", "list")[1].splitlines()
    _, out, _ = run("topics", "describe", "cli-life")
    head, _, rest = out.partition(b"\n")
    assert b"PartitionCount: 2  ReplicationFactor: 1  Configs: retention.ms=86400000" in head
    assert [row["PARTITION"] for row in table(rest)] == ["0", "1"]
    assert {row["LEADER"] for row in table(rest)} == {"worker-0"}
    _, out, _ = run("topics", "alter", "cli-life", "--set", "retention.bytes=1MiB", "--unset", "retention.ms")
    rows = {row["SETTING"]: row for row in table(out)}
    assert rows["retention.bytes"] == {"SETTING": "retention.bytes", "VALUE": "1048576", "ORIGIN": "topic"}
    assert rows["retention.ms"]["ORIGIN"] != "topic"
    assert (
        run("config", "show", "--topic", "cli-life", "retention.bytes")[1].splitlines()[1]
        == b"retention.bytes\t1048576"
    )
    assert run("topics", "partitions", "cli-life", "--to", "3")[0] == 0
    _, out, _ = run("topics", "describe", "cli-life", "--json")
    assert len(json.loads(out)[0]["partitions"]) == 3
    assert run("topics", "delete", "cli-life")[0] == 0
    assert b"cli-life" not in run("topics", "list")[1].splitlines()


def test_what_cannot_be_created_is_refused_by_name(run: Run, zbroker_topic: str) -> None:
    code, out, error = run("topics", "create", zbroker_topic)
    assert (code, out) == (1, b"")
    assert error.startswith("zbroker: TopicAlreadyExistsError: ")
    assert run("topics", "create", zbroker_topic, "--if-not-exists")[0] == 0
    assert "InvalidTopicError" in run("topics", "create", "no/slash")[2]
    assert "did you mean 'retention.ms'?" in run("topics", "create", "cli-x", "--config", "retention.msec=1")[2]
    assert run("topics", "create", "cli-x", "--dry-run")[0] == 0
    assert b"cli-x" not in run("topics", "list")[1].splitlines()
    code, _, error = run("topics", "describe", "cli-absent")
    assert (code, "UnknownTopicOrPartitionError" in error) == (1, True)
    assert run("topics", "delete", "cli-absent")[0] == 1
    assert run("topics", "delete", "cli-absent", "--if-exists")[0] == 0


def test_lines_of_a_file_come_back_in_order(run: Run, zbroker_topic: str, tmp_path: Path) -> None:
    lines = [b"line %d" % number for number in range(20_000)]
    file = tmp_path / "lines.txt"
    file.write_bytes(b"\n".join(lines) + b"\n")
    code, out, error = run("produce", zbroker_topic, str(file))
    assert (code, out) == (0, b"")
    assert error.startswith("20,000 records, ")
    code, out, _ = run("consume", zbroker_topic, "-o", ":end")
    assert (code, out.splitlines()) == (0, lines)
    assert run("consume", zbroker_topic, "-o", "-2", "-n", "2")[1] == b"line 19998\nline 19999\n"
    assert run("consume", zbroker_topic, "-o", "5:7")[1] == b"line 5\nline 6\n"
    assert run("consume", zbroker_topic, "-o", "@-1h", "-n", "1")[1] == b"line 0\n"
    assert run("consume", zbroker_topic, "-o", "end", "-e")[1] == b""
    assert run("consume", zbroker_topic, "-o", ":end", "--grep", "1999[89]$")[1] == b"line 19998\nline 19999\n"


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_keys_headers_and_nulls_go_through_a_pipe(run: Run, zbroker_topic: str, compression: str) -> None:
    code, out, _ = run(
        "produce", zbroker_topic, "-", "--key-sep", ":", "-H", "trace=7", "-Z", "--compress", compression, "--json",
        stdin=b"k1:v1\nplain\nk3:",
    )  # fmt: skip
    assert code == 0
    summary = json.loads(out)
    assert summary["records"] == 3
    assert summary["partitions"] == [{"partition": 0, "first_offset": 0, "last_offset": 2}]
    code, out, _ = run("consume", zbroker_topic, "-o", "start", "-n", "3", "-f", "%t %p %o [%k] [%v] %S %h\\n")
    topic = zbroker_topic.encode()
    assert out.splitlines() == [
        topic + b" 0 0 [k1] [v1] 2 trace=7",
        topic + b" 0 1 [] [plain] 5 trace=7",
        topic + b" 0 2 [k3] [] -1 trace=7",
    ]


def test_what_was_sent_compressed_is_stored_compressed_and_read_plain(
    run: Run, zbroker_server: Broker, zbroker_topic: str
) -> None:
    lines = b"the same line again\n" * 500
    assert run("produce", zbroker_topic, "--compress", "lz4", stdin=lines)[0] == 0
    assert run("consume", zbroker_topic, "-o", ":end")[1] == lines
    directory = json.loads(run("topics", "describe", zbroker_topic, "--json")[1])[0]["partitions"][0]["directory"]
    dumped = [json.loads(line) for line in run("log", "dump", directory, "--json")[1].splitlines()]
    assert {batch["compresscodec"] for batch in dumped} == {"lz4"}
    assert sum(batch["size"] for batch in dumped) < len(lines) // 2


def test_json_records_of_one_topic_can_be_sent_to_another(run: Run, zbroker_topic: str) -> None:
    lines = b'{"key":"k","value":"v","headers":{"a":"1"}}\n{"value_base64":"/w=="}\n{"key":"gone"}\n'
    assert run("produce", zbroker_topic, "--jsonl", stdin=lines)[0] == 0
    first = run("consume", zbroker_topic, "-o", ":end", "--json")[1]
    assert run("produce", zbroker_topic, "--jsonl", stdin=first)[0] == 0
    both = [json.loads(line) for line in run("consume", zbroker_topic, "-o", ":end", "--json")[1].splitlines()]
    assert len(both) == 6

    def content(record: dict[str, object]) -> dict[str, object]:
        return {key: value for key, value in record.items() if key not in ("offset", "timestamp")}

    assert list(map(content, both[:3])) == list(map(content, both[3:]))


def test_offsets_are_shown_as_range_and_by_time(run: Run, zbroker_topic: str) -> None:
    run("produce", zbroker_topic, stdin=b"a\nb\nc\n")
    assert table(run("offsets", zbroker_topic)[1]) == [
        {"TOPIC": zbroker_topic, "PARTITION": "0", "START-OFFSET": "0", "END-OFFSET": "3", "RECORDS": "3"}
    ]
    assert run("offsets", zbroker_topic, "--time", "latest")[1].decode() == f"{zbroker_topic}:0:3\n"
    assert run("offsets", zbroker_topic, "--time", "earliest")[1].decode() == f"{zbroker_topic}:0:0\n"
    assert run("offsets", zbroker_topic, "--time=-1h")[1].decode() == f"{zbroker_topic}:0:0\n"
    assert run("offsets", zbroker_topic, "--time", "2100-01-01")[1].decode() == f"{zbroker_topic}:0:\n"


def test_a_topic_can_be_truncated(run: Run, zbroker_topic: str) -> None:
    run("produce", zbroker_topic, stdin=b"a\nb\nc\n")
    code, out, _ = run("topics", "truncate", zbroker_topic, "--before", "2")
    assert (code, table(out)[0]["START-OFFSET"]) == (0, "2")
    assert run("consume", zbroker_topic, "-o", ":end")[1] == b"c\n"
    assert run("topics", "truncate", zbroker_topic, "--before", "99")[0] == 1
    assert table(run("topics", "truncate", zbroker_topic, "--before", "end")[1])[0]["START-OFFSET"] == "3"


def test_status_shows_every_process_of_the_broker(run: Run, zbroker_server: Broker) -> None:
    code, out, _ = run("status", "--interval", "10ms")
    rows = {row["PROCESS"]: row for row in table(out)}
    assert code == 0
    assert set(rows) == {"router", "coordinator", "worker-0"}
    assert {int(row["PID"]) for row in rows.values()} == {
        zbroker_server.pid_of(name) for name in zbroker_server.process_names()
    }
    assert {row["STATE"] for row in rows.values()} == {"running"}
    found = json.loads(run("status", "--interval", "10ms", "--json")[1])
    assert found["is_up"] is True
    assert found["run_dir"] == str(zbroker_server.paths.run_dir)
    assert found["boards_dir"] == str(zbroker_server.paths.boards_dir)


def test_a_topic_that_is_not_there_is_an_error_for_consumers(run: Run, zbroker_topic: str) -> None:
    assert run("consume", "cli-absent", "-n", "1")[0] == 1
    code, _, error = run("consume", zbroker_topic, "-p", "4", "-n", "1")
    assert (code, "partitions 0 to 0, not 4" in error) == (1, True)


@pytest.mark.parametrize(("command", "suffix"), [("topics describe", ""), ("cluster move", ":0")])
def test_names_of_topics_and_partitions_are_completed_from_the_broker(
    zbroker_server: Broker, zbroker_topic: str, command: str, suffix: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zbroker"],
        env={
            **os.environ,
            "_ZBROKER_COMPLETE": "bash_complete",
            "COMP_WORDS": f"zbroker {command} {zbroker_topic[:8]}",
            "COMP_CWORD": "3",
            "ZBROKER_BOOTSTRAP_SERVERS": zbroker_server.bootstrap_servers,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"plain,{zbroker_topic}{suffix}" in done.stdout.splitlines()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path("/dev/shm") / f"zbt-cli-{os.getpid()}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_a_broker_served_from_the_command_line_is_ready_stops_and_leaves_nothing(tmp_path: Path, run_dir: Path) -> None:
    command = [sys.executable, "-m", "zbroker"]
    serve = [*command, "serve", "--data-dir", str(tmp_path / "data"), "--run-dir", str(run_dir), "--workers", "1"]
    where = ["-b", f"ipc://{run_dir}"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log) as broker,
    ):
        assert broker.stdout is not None
        try:
            assert broker.stdout.readline() == f"zbroker ready ipc://{run_dir}\n".encode()
            subprocess.run([*command, *where, "produce", "t"], input=b"kept\n", check=True, capture_output=True)
            data_dir = str(tmp_path / "data")
            refused = subprocess.run([*command, "log", "recover", data_dir, "-y"], capture_output=True, check=False)
            assert refused.returncode == 75
        finally:
            broker.send_signal(signal.SIGTERM)
            code = broker.wait(20)
        assert code == 0, (tmp_path / "log").read_text()
    assert not run_dir.exists() or not list(run_dir.iterdir())
    done = subprocess.run([*command, *where, "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert subprocess.run([*command, "log", "verify", data_dir], capture_output=True, check=False).returncode == 0
    dumped = subprocess.run([*command, "log", "dump", data_dir, "-r", "-f", "%v\\n"], capture_output=True, check=True)
    assert dumped.stdout.splitlines().count(b"kept") == 1


def test_sighup_tells_which_settings_a_restart_would_change(tmp_path: Path, run_dir: Path) -> None:
    file, log = tmp_path / "zbroker.toml", tmp_path / "log.txt"
    file.write_text('[topics]\nretention_ms = "7d"\n')
    command = [sys.executable, "-m", "zbroker", "serve", "-c", str(file), "--data-dir", str(tmp_path / "data")]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*command, "--run-dir", str(run_dir), "--workers", "1"], stdout=subprocess.PIPE, stderr=errors
        ) as broker,
    ):
        try:
            assert broker.stdout is not None
            assert broker.stdout.readline().startswith(b"zbroker ready")
            file.write_text(
                '[topics]\nretention_ms = "8d"\n[broker]\nnum_partitions = 2\n[client.producer]\nacks = 1\n'
            )
            broker.send_signal(signal.SIGHUP)
            wait_until(lambda: "worker-0 INFO SIGHUP: settings read again" in log.read_text(), what="the settings read")
            assert "WARNING processes that run keep their topics.retention_ms: a restart" in log.read_text()
            assert "changed=broker.num_partitions" in log.read_text()
        finally:
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(20) == 0


def test_an_ephemeral_broker_leaves_nothing_behind(tmp_path: Path) -> None:
    serve = [sys.executable, "-m", "zbroker", "serve", "--ephemeral", "--workers", "1"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log) as broker,
    ):
        assert broker.stdout is not None
        try:
            line = broker.stdout.readline().decode()
        finally:
            broker.send_signal(signal.SIGINT)
            broker.wait(20)
    assert line.startswith("zbroker ready ipc:///dev/shm/zb-")
    assert not Path(line.split("ipc://")[1].strip()).parent.exists()


def test_a_consumer_that_waits_ends_at_ctrl_c_with_130(zbroker_server: Broker, zbroker_topic: str) -> None:
    command = [sys.executable, "-m", "zbroker", "-b", zbroker_server.bootstrap_servers]
    subprocess.run([*command, "produce", zbroker_topic], input=b"one\n", check=True, capture_output=True)
    consume = [*command, "consume", zbroker_topic, "-o", "start"]
    with subprocess.Popen(consume, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        wait_until(lambda: process.poll() is not None, what="the end of consume")
        assert process.returncode == 130
        assert b"Traceback" not in process.stderr.read()


def test_over_tcp_everything_works_but_the_boards(run: Run) -> None:
    broker, address = broker_with_tcp(workers=1)
    where = ("-b", address)
    with broker:
        assert run(*where, "topics", "create", "far", "-p", "2")[0] == 0
        assert run(*where, "produce", "far", "-p", "1", stdin=b"a\nb\n")[0] == 0
        assert run(*where, "consume", "far", "-o", ":end")[1] == b"a\nb\n"
        _, _, rest = run(*where, "topics", "describe", "far")[1].partition(b"\n")
        assert [(row["START-OFFSET"], row["END-OFFSET"]) for row in table(rest)] == [("0", "0"), ("0", "2")]
        code, out, _ = run(*where, "status")
        assert code == 0
        assert "worker-0" in {row["PROCESS"] for row in table(out)}


def test_the_doctor_looks_at_the_broker_that_answers(run: Run, zbroker_server: Broker) -> None:
    code, out, _ = run("doctor", "--json")
    assert code in (0, 4)
    said = {finding["rule"]: finding["message"] for finding in json.loads(out)}
    assert str(zbroker_server.paths.data_dir) in said["disk room"]
    assert str(zbroker_server.paths.data_dir) in said["file system"]
