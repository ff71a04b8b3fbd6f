"""The figures of docs/copies.md follow from the model that it states."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "copies.md").read_text(encoding="utf-8")
MIB, PIECES = 1 << 20, 256


def test_the_disk_table_is_seek_and_half_a_turn_and_transfer() -> None:
    rows = re.findall(
        r"\| ([\d,]+) rpm, (\d+) MB/s, seek (\d+) ms \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|", PAGE
    )
    assert len(rows) == 3
    for rpm, rate, seek_ms, arm_ms, one_piece_ms, pieces_ms, ratio in rows:
        arm = int(seek_ms) + 60_000 / int(rpm.replace(",", "")) / 2
        transfer = MIB / int(rate) / 1_000
        assert float(arm_ms) == round(arm, 2)
        assert float(one_piece_ms) == round(arm + transfer, 1)
        assert float(pieces_ms) == round(PIECES * arm + transfer, 1)
        assert int(ratio) == int((PIECES * arm + transfer) / (arm + transfer))


def test_the_delays_of_half_a_turn_are_those_of_the_model() -> None:
    found = re.search(r"half a turn, ([\d.]+) ms at 7,200 and ([\d.]+) ms at 15,000", PAGE)
    assert found is not None
    assert [float(text) for text in found.groups()] == [round(30_000 / 7_200, 2), round(30_000 / 15_000, 2)]
