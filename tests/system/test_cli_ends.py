"""How commands end that are cut short: signals, closed and full outputs, missing files, wishes only half possible."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.conditions import wait_until
from zbroker.cli.main import main
from zbroker.testing import Broker

COMMAND = [sys.executable, "-m", "zbroker"]
YES = [sys.executable, "-c", "import sys\nwhile True: sys.stdout.buffer.write(b'line\\n' * 10_000)"]


@pytest.fixture
def environment(zbroker_server: Broker) -> dict[str, str]:
    return {**os.environ, "ZBROKER_BOOTSTRAP_SERVERS": zbroker_server.bootstrap_servers}


@pytest.fixture
def endless() -> Iterator[IO[bytes]]:
    """A pipe of lines without an end."""
    with subprocess.Popen(YES, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
        assert source.stdout is not None
        yield source.stdout
        source.kill()


def run(environment: dict[str, str], *arguments: str, **rest: Any) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **rest}
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **settings,
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_produce_cut_short_says_how_much_is_safe(
    environment: dict[str, str], endless: IO[bytes], zbroker_topic: str, number: int, code: int
) -> None:
    command = [*COMMAND, "produce", zbroker_topic]
    with subprocess.Popen(command, env=environment, stdin=endless, stderr=subprocess.PIPE, text=True) as process:

        def stored() -> int:
            return sum(
                row["records"] for row in json.loads(run(environment, "offsets", zbroker_topic, "--json").stdout)
            )

        wait_until(lambda: stored() > 100_000, what="many records")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in said
    safe = int(said.split(" records were acknowledged")[0].replace(",", ""))
    assert 100_000 < safe <= stored()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (("bench", "produce", "-n", "100000000"), signal.SIGINT),
        (("bench", "latency"), signal.SIGHUP),
        (("demo",), signal.SIGINT),
        (("demo",), signal.SIGTERM),
    ],
)
def test_what_a_command_has_started_ends_with_it(arguments: tuple[str, ...], number: int, tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        mine = f"zbt-{process.pid}-"
        wait_until(lambda: any(Path("/dev/shm").glob(f"{mine}*/run/front.sock")), what="a broker of its own")
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}[signal.Signals(number)]
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith(mine)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "child"),
    [(("demo",), "demo_process"), (("bench", "rebalance"), "group_client"), (("bench", "latency"), "bench_process")],
)
def test_ctrl_c_on_a_terminal_is_for_the_command_which_ends_the_rest_in_order(
    arguments: tuple[str, ...], child: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        process_group=0,
    ) as process:
        command = psutil.Process(process.pid)

        def is_at_work() -> bool:  # with a client, which has threads
            found = [one for one in command.children() if f"zbroker.load.{child}" in one.cmdline()]
            return any(one.num_threads() > 1 for one in found)

        wait_until(is_at_work, what=child)
        started = command.children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, "")
    assert not any(one.is_running() for one in started)
    assert not list(Path("/dev/shm").glob(f"zbt-{process.pid}-*"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("topics", "list"), ("consume", "TOPIC", "-o", "start", "-n", "1"), ("status",)])
@pytest.mark.parametrize("output", ["closed", "full"])
def test_output_that_cannot_be_written_is_one_line_and_exit_1(
    environment: dict[str, str], zbroker_topic: str, arguments: tuple[str, ...], output: str
) -> None:
    run(environment, "produce", zbroker_topic, stdin=None, input="one\n")
    words = [zbroker_topic if word == "TOPIC" else word for word in arguments]
    if output == "closed":
        found = run(environment, *words, stdout=None, preexec_fn=lambda: os.close(1))
    else:
        with open("/dev/full", "wb") as full:
            found = run(environment, *words, stdout=full)
    reason = "Bad file descriptor" if output == "closed" else "No space left on device"
    assert (found.returncode, found.stderr) == (1, f"zbroker: OSError: standard output: {reason}\n")


@pytest.mark.parametrize("output", ["closed", "full"])
def test_a_stderr_that_cannot_be_written_changes_no_exit_code(environment: dict[str, str], output: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "-b", "nowhere", "topics", "list"],
            env=environment,
            stderr=full,
            stdout=subprocess.PIPE,
            preexec_fn=(lambda: os.close(2)) if output == "closed" else None,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_closed_standard_input_is_not_taken_for_an_empty_one(environment: dict[str, str], zbroker_topic: str) -> None:
    found = run(environment, "produce", zbroker_topic, stdin=None, preexec_fn=lambda: os.close(0))
    assert found.returncode == 1
    assert "zbroker: OSError: standard input: Bad file descriptor" in found.stderr


def test_a_line_that_is_too_long_is_named(environment: dict[str, str], zbroker_topic: str) -> None:
    found = run(environment, "produce", zbroker_topic, stdin=None, input=f"short\n{'x' * 1_100_000}\nshort\n")
    assert found.returncode == 1
    assert "MessageSizeTooLargeError: line 2: a record of " in found.stderr


@pytest.mark.parametrize("closed", [1, 2])
def test_a_broker_whose_starter_has_closed_an_output_runs_all_the_same(closed: int) -> None:
    with tempfile.TemporaryDirectory(prefix=f"zbt-{os.getpid()}-", dir="/dev/shm") as directory:
        serve = [
            *COMMAND,
            "serve",
            "--data-dir",
            f"{directory}/data",
            "--run-dir",
            f"{directory}/run",
            "--workers",
            "1",
        ]
        with (
            open(f"{directory}/log", "wb") as log,
            subprocess.Popen(serve, stderr=log, stdout=log, preexec_fn=lambda: os.close(closed)) as broker,
        ):
            try:
                where = {**os.environ, "ZBROKER_BOOTSTRAP_SERVERS": f"ipc://{directory}/run"}
                wait_until(lambda: run(where, "topics", "create", "t", "--if-not-exists").returncode == 0)
                assert run(where, "produce", "t", stdin=None, input="kept\n").returncode == 0
                assert run(where, "consume", "t", "-o", "start", "-e").stdout == "kept\n"
            finally:
                broker.send_signal(signal.SIGTERM)
                assert broker.wait(20) == 0


def test_head_ends_every_printer_without_a_word(environment: dict[str, str], zbroker_topic: str) -> None:
    run(environment, "produce", zbroker_topic, stdin=None, input="line\n" * 100_000)
    for words in (("consume", zbroker_topic, "-o", "start"), ("consume", zbroker_topic, "-o", "start", "--json")):
        with subprocess.Popen(
            [*COMMAND, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(20) == 141
            assert process.stderr.read() == b""


def test_a_file_that_is_not_there_is_named_plainly(environment: dict[str, str], zbroker_topic: str) -> None:
    found = run(environment, "produce", zbroker_topic, "/no/such/file")
    assert (found.returncode, found.stderr) == (
        1,
        "zbroker: FileNotFoundError: /no/such/file: No such file or directory\n",
    )


def test_an_offset_behind_the_end_is_waited_for(environment: dict[str, str], zbroker_topic: str) -> None:
    run(environment, "produce", zbroker_topic, "-p", "0", stdin=None, input="0\n1\n2\n")
    found = run(environment, "consume", zbroker_topic, "-p", "0", "-o", "5", "-e")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    command = [*COMMAND, "consume", zbroker_topic, "-p", "0", "-o", "5", "-n", "2"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{zbroker_topic}:0 ends at offset 3: waiting for 5\n"
        run(environment, "produce", zbroker_topic, "-p", "0", stdin=None, input="3\n4\n5\n6\n7\n")
        out, _ = process.communicate(timeout=20)
    assert out == "5\n6\n"


def test_a_truncation_that_is_not_possible_everywhere_is_done_nowhere(
    environment: dict[str, str], zbroker_topic: str
) -> None:
    run(environment, "topics", "partitions", zbroker_topic, "--to", "2")
    run(environment, "produce", zbroker_topic, "-p", "0", stdin=None, input="0\n1\n2\n")
    found = run(environment, "topics", "truncate", zbroker_topic, "--before", "2")
    assert found.returncode == 1
    assert f"{zbroker_topic}:1 ends at 0, before 2; nothing was deleted" in found.stderr
    assert run(environment, "consume", zbroker_topic, "-o", ":end").stdout == "0\n1\n2\n"
    assert run(environment, "topics", "truncate", zbroker_topic, "--before", "2", "-p", "0", "-y").returncode == 0
    assert run(environment, "consume", zbroker_topic, "-o", ":end").stdout == "2\n"


COMMANDS = (
    "topics list", "topics describe", "topics describe TOPIC", "topics alter TOPIC", "topics partitions TOPIC --to 4",
    "topics truncate TOPIC --before end", "offsets TOPIC", "offsets TOPIC --time latest", "status", "doctor",
    "config show", "config explain", "completion zsh", "bench produce -n 100 --topic TOPIC",
    "bench consume -n 100 --topic TOPIC", "bench latency -n 20 --topic TOPIC",
)  # fmt: skip


def test_json_of_every_command_is_json(
    zbroker_server: Broker, zbroker_topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in COMMANDS:
        arguments = ["-b", zbroker_server.bootstrap_servers, *words.replace("TOPIC", zbroker_topic).split(), "--json"]
        assert main(arguments) in (0, 4), words
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, list | dict), words


@pytest.mark.parametrize(
    ("words", "name", "code"),
    [
        (["--json", "nocommand"], "UsageError", 2),
        (["-b", "ipc:///nowhere", "status", "--json"], "BrokerNotAvailableError", 3),
    ],
)
def test_errors_of_json_are_json(words: list[str], name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    error = json.loads(capsys.readouterr().err)
    assert error["error"] == name
    assert error["message"]
