"""The root command: how it ends, what it says, what it imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zbroker import __version__, errors
from zbroker.cli import main as cli_main
from zbroker.cli.failures import exit_code_of
from zbroker.cli.main import COMMANDS, cli, main
from zbroker.errors import (
    BrokerError,
    BrokerNotAvailableError,
    ConfigError,
    DirectoryLockedError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)

NOWHERE = "ipc:///nonexistent/run"


def test_every_command_can_be_imported_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"Usage: zbroker {name}" in shown
        assert "--json" in shown or "Commands:" in shown, f"{name}: every command takes --json"


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in shown
        assert text in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["topisc", "list"], "did you mean 'topics'?"),
        (["topics", "create"], "Missing argument"),
        (["topics", "list", "--no-such-option"], "--no-such-option"),
        (["-C", "request_timeout_msec=1", "-b", NOWHERE, "topics", "list"], "did you mean 'request_timeout_ms'?"),
        (["-C", "nonsense", "-b", NOWHERE, "topics", "list"], "name=value"),
        (["-b", "localhost:9092", "topics", "list"], "ipc://RUN_DIR"),
        (["-c", "/nonexistent.toml", "topics", "list"], "/nonexistent.toml"),
        (["--timeout", "soon", "-b", NOWHERE, "topics", "list"], "--timeout"),
        (["--timeout", "-5s", "-b", NOWHERE, "topics", "list"], "--timeout"),
        (["--timeout", "9999999h", "-b", NOWHERE, "topics", "list"], "--timeout"),
        (["consume", "t", "-b", NOWHERE, "-o", "nowhere"], "start, end"),
        (["consume", "t", "-b", NOWHERE, "-o", "5:3"], "-o '5:3' ends before it begins"),
        (["status", "-b", NOWHERE, "--interval", "0"], "--interval"),
        (["groups", "describe", "g", "-b", NOWHERE, "--watch", "--interval", "-1s"], "--interval"),
        (["consume", "t", "-b", NOWHERE, "--grep", "("], "--grep"),
        (["produce", "t", "-b", NOWHERE, "-k", "a", "--key-sep", ":"], "one of"),
        (["produce", "t", "-b", NOWHERE, "--key-sep", ""], "--key-sep"),
        (["chaos", "--duration", "-3s"], "--duration"),
        (["chaos", "--copies", "3", "--replicas", "0"], "--copies 3"),
        (["soak", "kills", "--duration", "0s"], "--duration"),
        (["soak", "nonsense"], "'[PROFILE]'"),
        (["bench", "scale", "--workers", "1,65"], "1 to 64"),
        (["bench", "scale", "--logs", "99999999999"], "--logs 99999999999: /dev/shm has not so many megabytes left"),
        (["bench", "produce", "--dir", "/nonexistent"], "--dir"),
        (["bench", "produce", "--dir", "/proc"], "--dir"),
        (["bench", "produce", "-o", "/proc/results.json"], "--output"),
        (["-b", NOWHERE, "bench", "produce", "--workers", "2"], "--workers"),
        (["bench", "claims", "--disk", "/nonexistent"], "--disk"),
        (["bench", "compare", "--peers", ""], "--peers"),
        (["bench", "compare", "--peers", "redis,foo"], "no peer 'foo'; there are kafka, redis"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("zbroker: ")
    assert said in output.err


@pytest.mark.parametrize("words", [[], ["topics"], ["bench"]])
def test_a_group_without_a_command_is_its_help_and_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"Usage: {' '.join(['zbroker', *words])} [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    "command", [["topics", "list"], ["consume", "t"], ["produce", "t"], ["offsets", "t"], ["status"]]
)
def test_no_broker_ends_with_3_and_says_where_it_looked(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    assert main([*command, "-b", NOWHERE]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "/nonexistent/run" in error


def test_an_error_is_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "list", "--json", "-b", NOWHERE]) == 3
    found = json.loads(capsys.readouterr().err)
    assert found["error"] == "BrokerNotAvailableError"
    assert found["code"] == 8
    assert found["hint"]


def test_global_options_may_stand_before_or_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-b", NOWHERE, "--json", "topics", "list"], ["topics", "list", "-b", NOWHERE, "--json"]):
        assert main(arguments) == 3
        assert json.loads(capsys.readouterr().err)["error"] == "BrokerNotAvailableError"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerNotAvailableError(), 3),
        (RequestTimedOutError(), 3),
        (DirectoryLockedError(), 75),
        (ConfigError("x"), 2),
        (UnknownTopicOrPartitionError(), 1),
        (RuntimeError(), 1),
    ],
)
def test_the_exit_code_says_what_kind_of_error_it_was(error: Exception, code: int) -> None:
    assert exit_code_of(error) == code


def failing_with(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return click.Command("fail", callback=fail)


def run_failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> int:
    monkeypatch.setitem(cli_main.COMMANDS, "fail", ("never:imported", "Fails."))
    command = failing_with(error)
    monkeypatch.setattr(type(cli), "get_command", lambda self, ctx, name: command)
    return main([*arguments, "fail"])


def test_a_fault_is_one_line_and_a_traceback_only_with_v(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(monkeypatch, RuntimeError("two\nlines")) == 1
    assert capsys.readouterr().err == "zbroker: RuntimeError: two lines (a fault of zbroker: -v shows where)\n"
    assert run_failing(monkeypatch, RuntimeError("x"), "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_failing(monkeypatch, KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


INTERRUPTED_IMPORT = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "zbroker.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from zbroker.__main__ import run
sys.exit(run())
"""


def test_an_interrupt_of_the_first_imports_ends_with_130() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_python_m_zbroker_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "zbroker", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in done.stdout


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "zbroker", "config", "explain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(20) == 141


def test_help_imports_neither_the_client_nor_rich() -> None:
    code = (
        "import sys; from zbroker.cli.main import main; code = main(['--help']);"
        "heavy = {'zmq', 'rich', 'psutil', 'msgspec', 'zbroker.client.producer', 'zbroker.storage.log'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_zbroker(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"_ZBROKER_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_completes_commands_and_is_silent_without_a_broker(tmp_path: Path) -> None:
    def complete(words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from zbroker.cli.main import main; sys.exit(main())"],
            env={
                "_ZBROKER_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split(" ")) - 1),
                "ZBROKER_BOOTSTRAP_SERVERS": f"ipc://{tmp_path}/none",
                "PATH": "/usr/bin",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("zbroker to") == ["topics"]
    assert "describe" in complete("zbroker topics ")
    assert complete("zbroker topics describe o") == []


def hints() -> list[str]:
    """Every hint that stands in the table of errors."""
    found = [kind.hint for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BrokerError)]
    return sorted(set(found))


def test_every_command_that_a_hint_names_exists_with_its_options() -> None:
    seen = 0
    for hint in hints():
        for words in re.findall(r"zbroker ((?:-{0,2}[a-z][a-z-]*(?: |$)?)+)", hint):
            command: click.Command = cli
            for word in words.split():
                if word.startswith("-"):
                    names = {name for option in command.params for name in option.opts} | {"--version"}
                    assert word in names, f"{hint!r}: {command.name} has no {word!r}"
                    break
                if not isinstance(command, click.Group):
                    continue
                found = command.get_command(click.Context(cli), word)
                assert found is not None, f"{hint!r}: there is no command {word!r}"
                command, seen = found, seen + 1
    assert seen > 20


def test_lists_are_one_document_with_json_and_an_object_a_line_with_jsonl(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soak", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main(["soak", "--jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == whole
    assert "kills" in [one["profile"] for one in whole]
