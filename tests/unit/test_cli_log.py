"""`zbroker log` on real files: dump, verify, recover; exit codes of each."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from zbroker.cli.main import main
from zbroker.clock import HostClock
from zbroker.config.schema import TopicConfig
from zbroker.record.batch import check_batch, stamp
from zbroker.record.columns import encode_columns
from zbroker.storage.files import Files
from zbroker.storage.log import Log

NOW_MS = 1_795_435_200_000


def fill(log: Log, batches: int) -> None:
    for number in range(batches):
        values = [b"value %d-%d" % (number, index) for index in range(10)]
        batch = encode_columns(values, [b"k"] * 10, timestamp_ms=NOW_MS + number)
        stamp(batch, log.log_end, 3)
        log.append(batch, check_batch(batch, size_bytes_max=1 << 20, records_max=100))
    log.save_high_watermark(log.log_end)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of 20 batches of 10 records, cleanly closed."""
    directory = tmp_path / "data" / "copies" / "1" / "t00000001-0"
    directory.mkdir(parents=True)
    log = Log.open(directory, TopicConfig(), Files(), HostClock())
    fill(log, 20)
    log.close()
    return directory


def damage(copy: Path, batch: int) -> None:
    """Change one byte of a batch's values."""
    path = next(copy.glob("*.log"))
    position = 0
    with path.open("r+b") as file:
        for _ in range(batch):
            file.seek(position + 8)
            position += 12 + struct.unpack(">i", file.read(4))[0]
        file.seek(position + 200)
        byte = file.read(1)
        file.seek(position + 200)
        file.write(bytes([byte[0] ^ 1]))


def test_dump_prints_a_line_for_every_batch(copy: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["log", "dump", str(copy)]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines[0] == str(copy)
    assert len(lines) == 21
    assert lines[2].startswith("baseOffset: 10 lastOffset: 19 count: 10 baseSequence: -1 producerId: -1")
    assert "partitionLeaderEpoch: 3" in lines[2]
    assert f"CreateTime: {NOW_MS + 1}" in lines[2]
    assert lines[2].endswith("isvalid: true")
    assert "magic: 67 compresscodec: none" in lines[2]


def test_dump_begins_at_an_offset_and_shows_records_in_a_format(
    copy: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["log", "dump", str(copy.parent), "-o", "95", "-n", "1", "-r", "-f", "%o=%k:%v\\n"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert lines[1].startswith(b"baseOffset: 90 ")
    assert lines[2:] == [b"%d=k:value 9-%d" % (90 + index, index) for index in range(10)]


def test_dump_takes_a_single_file_and_gives_json(copy: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = next(copy.glob("*.log"))
    assert main(["log", "dump", str(path), "--json", "-r"]) == 0
    found = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert len(found) == 20
    assert (found[3]["file"], found[3]["baseOffset"], found[3]["isvalid"]) == (str(path), 30, True)
    assert found[3]["records"][2] == {"offset": 32, "timestamp": NOW_MS + 3, "key": "k", "value": "value 3-2"}


def test_dump_shows_a_damaged_batch_as_not_valid_and_ends_with_4(
    copy: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    damage(copy, 5)
    assert main(["log", "dump", str(copy)]) == 4
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.rpartition(" ")[2] for line in lines[1:]] == ["true"] * 5 + ["false"] + ["true"] * 14


def test_verify_of_a_sound_copy_ends_with_0(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "verify", str(copy.parent.parent.parent)]) == 0
    shown = capsys.readouterr().out
    assert "sound; offsets 0 to 200, 20 batches in 1 segments" in shown
    assert "closed cleanly" in shown


def test_verify_names_the_damage_and_ends_with_4(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(copy, 5)
    assert main(["log", "verify", str(copy)]) == 4
    shown = capsys.readouterr().out
    assert "DAMAGED; offsets 0 to 50" in shown
    assert "offset 50" in shown
    assert main(["log", "verify", str(copy), "--json"]) == 4
    found = json.loads(capsys.readouterr().out)[0]
    assert found["is_sound"] is False
    assert found["high_watermark"] == 200
    assert found["segments"][0]["next_offset"] == 50


def test_recover_cuts_at_the_damage_and_says_what_is_lost(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(copy, 5)
    assert main(["log", "recover", str(copy), "-y"]) == 0
    assert "offsets 0 to 50; 150 acknowledged records are gone" in capsys.readouterr().out
    assert main(["log", "verify", str(copy)]) == 0
    log = Log.open(copy, TopicConfig(), Files(), HostClock())
    try:
        assert (log.log_start, log.log_end) == (0, 50)
        fill(log, 1)
        assert log.log_end == 60
    finally:
        log.close()


def test_recover_leaves_sound_copies_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in copy.iterdir()}
    assert main(["log", "recover", str(copy), "-y"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in copy.iterdir()} == before


def test_recover_refuses_with_75_while_a_process_has_the_copy_open(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log.open(copy, TopicConfig(), Files(), HostClock())
    try:
        assert main(["log", "recover", str(copy), "-y"]) == 75
        error = capsys.readouterr().err
        assert "DirectoryLockedError" in error
        assert "stop the broker" in error
        assert main(["log", "verify", str(copy)]) == 0
        assert "in use" in capsys.readouterr().out
    finally:
        log.close()


@pytest.mark.parametrize("command", ["dump", "verify", "recover"])
def test_a_path_without_logs_is_an_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", command, str(tmp_path)]) == 1
    assert "no log files" in capsys.readouterr().err
    assert main(["log", command, os.fspath(tmp_path / "absent")]) == 2


@pytest.mark.parametrize("command", ["dump", "verify", "recover"])
def test_a_file_that_is_none_of_a_log_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "access.log"
    other.write_bytes(b"GET /\n")
    assert main(["log", command, str(other)]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert f"{other}: not a file of a log (they are named by an offset" in found.err
