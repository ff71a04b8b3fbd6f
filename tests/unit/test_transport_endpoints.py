"""What a user may write as `bootstrap_servers`, and what is refused with a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from zbroker.errors import ConfigError
from zbroker.transport.endpoints import ENVIRONMENT_VARIABLE, parse


def test_a_run_directory_names_the_front_socket_in_it() -> None:
    found = parse("ipc:///dev/shm/zbroker-1000/abc")
    assert found.address == "ipc:///dev/shm/zbroker-1000/abc/front.sock"
    assert found.run_dir == Path("/dev/shm/zbroker-1000/abc")
    assert found.is_local


def test_a_list_of_one_address_is_that_address() -> None:
    assert parse(["ipc:///run/z"]) == parse("ipc:///run/z")


def test_a_home_directory_may_be_abbreviated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse("ipc://~/run").run_dir == Path("/home/somebody/run")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9190", "tcp://127.255.0.9:1", "tcp://localhost:65535",
                                     "tcp://[::1]:80"])  # fmt: skip
def test_loopback_addresses_are_taken_as_they_are(address: str) -> None:
    found = parse(address)
    assert (found.address, found.is_local) == (address, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost:9092", "ipc://RUN_DIR"),
        ("tcp://192.168.0.1:9190", "on this host"),
        ("tcp://0.0.0.0:9190", "on this host"),
        ("tcp://127.0.0.1", "on this host"),
        ("tcp://127.0.0.1:0", "on this host"),
        ("tcp://127.0.0.1:65536", "on this host"),
        ("tcp://127.0.0.256:80", "on this host"),
        ("tcp://127.0.0.1:٨٠", "on this host"),
        ("tcp://127.0.0.1:80 ", "on this host"),
        ("tcp://127.0.0.1:80\n", "on this host"),
        ("ipc://relative/path", "absolute"),
        ("ipc://", "absolute"),
        ("ipc:///run/\0", "NUL"),
        ("ipc://~nobody-of-this-name/run", "home"),
        ("ipc:///" + "x" * 96, "108 bytes"),
        ("kafka://127.0.0.1:9092", "kafka://"),
        ("", "ipc://RUN_DIR"),
    ],
)
def test_anything_else_is_refused_and_says_what_to_write(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=words):
        parse(text)


def test_the_longest_path_that_the_kernel_takes_is_taken() -> None:
    assert len(parse("ipc:///" + "x" * 95).address) == len("ipc://") + 107


@pytest.mark.parametrize("addresses", [[], ["ipc:///a", "ipc:///b"]])
def test_a_broker_is_one_address(addresses: list[str]) -> None:
    with pytest.raises(ConfigError, match="one address"):
        parse(addresses)


def test_without_an_address_the_environment_or_the_default_directory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "tcp://127.0.0.1:9190")
    assert parse(None).address == "tcp://127.0.0.1:9190"
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    assert parse(None).is_local
