"""docs/features.md has every row that is due, and it and docs/failures.md name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DUE = (
    "S-098..S-102 S-110..S-127 S-160..S-163 F-01 F-02 F-04 F-06 F-07 F-62 F-73 U-04 U-07 U-13 U-14 U-17 "
    "T01 T02 T06..T10 T13..T25 T27 T28 "
    "S-001..S-009 S-015..S-019 S-030..S-057 S-060..S-073 S-080..S-102 S-124..S-127 S-130 S-138..S-140 S-142 S-143 "
    "S-163 S-183 S-191..S-197 F-08 F-15 F-29 F-30 F-35..F-37 F-41 F-45 F-46 F-54 F-59 F-60 F-65 F-66 F-68 F-71 F-75 "
    "U-01 U-08 U-12 U-16 U-22 T03..T05 T10..T12 T18 T29..T42 T45..T48"
)
DUE_IN_GROUPS = (
    "S-010..S-020 S-130..S-151 S-164 S-166..S-173 S-190 S-191 S-193..S-198 F-16 F-21..F-23 F-31 F-33 F-34 F-36 F-42 "
    "U-04 U-08 U-09 U-19 T20 T26"
)
FEATURES = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


def due(text: str = DUE) -> list[str]:
    found: list[str] = []
    for first, last in re.findall(r"([SFUT]-?\d+)(?:\.\.([SFUT]-?\d+))?", text):
        kind, digits = re.fullmatch(r"([SFUT]-?)(\d+)", first).groups()  # type: ignore[union-attr]  # found by the same
        for number in range(int(digits), int(last.lstrip("SFUT-") or digits if last else digits) + 1):
            found.append(f"{kind}{number:0{len(digits)}}")
    return sorted(set(found))


@cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def named_in(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)


def exists(path: str, function: str) -> bool:
    return (ROOT / path).is_file() and (not function or function in functions_of(ROOT / path))


def test_every_test_that_the_documents_name_exists() -> None:
    named = []
    for page in ("features.md", "failures.md"):
        named += named_in((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) > 200
    assert [f"{path}::{function}" for path, function in named if not exists(path, function)] == []


def test_every_test_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) >= 8
    known = frozenset().union(*(functions_of(path) for path in (ROOT / "tests").rglob("test_*.py")))
    assert named <= known, named - known


def test_every_row_that_is_due_has_a_place_and_a_test_of_its_own() -> None:
    rows = {cells[0]: cells for line in FEATURES.splitlines() if len(cells := line.strip("| ").split(" | ")) == 4}
    assert len(due()) == 195
    assert len(due(DUE_IN_GROUPS)) == 65
    missing = [
        name
        for name in [*due(), *due(DUE_IN_GROUPS)]
        if name not in rows
        or not rows[name][2]
        or not any(function.startswith("test_") for _, function in named_in(rows[name][3]))
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("path", "function"),
    [("tests/unit/test_docs_features.py", "test_nothing_of_the_kind"), ("tests/no_such_file.py", "")],
)
def test_a_test_that_does_not_exist_is_noticed(path: str, function: str) -> None:
    named = named_in(f"| T99 | x | y | `{path}{'::' if function else ''}{function}` |")
    assert named == [(path, function)]
    assert not exists(*named[0])
