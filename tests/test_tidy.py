"""The code base checks itself: layers, sizes, names, packages, and what must never be written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# From the ground up. A module may import its own layer and those before it; `wire`, `storage` and `shm` are three rooms
# of one layer that do not know each other.
LAYERS = (
    ("broker_error", "group_errors", "errors", "ids", "clock", "config"),
    ("record",),
    ("wire", "storage", "shm"),
    ("core",),
    ("transport",),
    ("client", "dump", "doctor"),
    ("aio", "patterns", "check"),
    ("workers",),
    ("testing",),
    ("load",),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOMS_APART = {"wire": {"storage", "shm"}, "storage": {"wire", "shm"}, "shm": {"wire", "storage"}}
FORBIDDEN_TO_CORE = {"storage", "shm", "transport"}
NAMES_AVOIDED = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc", "types", "queue", "signal"}
BANNED_CALLS = ("pickle", "marshal", "eval(", "yaml.load", "recv_pyobj", "send_pyobj", "shell=True")


def source_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def product_files() -> list[Path]:
    return [path for path in source_files() if path.relative_to(ROOT).parts[0] in ("zbroker", "workers", "shm")]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("workers", "shm"):
        parts.insert(0, "zbroker")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            if node.module == "zbroker":
                for alias in node.names:
                    yield node.lineno, f"zbroker.{alias.name}"


def parsed(paths: list[Path]) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))) for path in paths]


def test_no_file_and_no_function_is_too_long() -> None:
    found = []
    for path, tree in parsed(source_files()):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > FILE_LINES_MAX:
            found.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines")
    assert not found, "\n".join(found)


def test_imports_go_up_the_layers_only() -> None:
    found = []
    for path, tree in parsed(product_files()):
        own = layer_of(module_name(path))
        if own is None:
            continue
        assert own in RANK, f"{path}: layer {own!r} is not in LAYERS"
        for line, name in imports_of(tree):
            other = layer_of(name) if name.split(".")[0] == "zbroker" else None
            if other is None or other == own or other not in RANK:
                continue
            upward = RANK[other] > RANK[own]
            apart = other in ROOMS_APART.get(own, set()) or (own == "core" and other in FORBIDDEN_TO_CORE)
            if upward or apart:
                found.append(f"{path.relative_to(ROOT)}:{line}: {own} may not import {name}")
    assert not found, "\n".join(found)


def test_only_transport_imports_zmq() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, tree in parsed(product_files())
        for line, name in imports_of(tree)
        if name.split(".")[0] == "zmq" and layer_of(module_name(path)) != "transport"
    ]
    assert not found, "\n".join(found)


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    names = {module_name(path) for path in product_files()}
    for path, tree in parsed(product_files()):
        guarded = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        edges = graph.setdefault(module_name(path), set())
        for node in tree.body:
            if id(node) in guarded or not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            edges.update(name for _, name in imports_of(node) if name in names)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " -> ".join((*trail[trail.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_every_package_folder_is_declared_and_linked() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        tool = tomllib.load(file)["tool"]["setuptools"]
    folders = {module_name(path) for path in product_files() if path.name == "__init__.py"}
    assert set(tool["packages"]) == folders
    assert tool["package-dir"] == {"zbroker": "zbroker", "zbroker.shm": "shm", "zbroker.workers": "workers"}
    for name in ("workers", "shm"):
        link = ROOT / "zbroker" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_no_module_has_a_name_that_says_nothing() -> None:
    found = [str(path.relative_to(ROOT)) for path in source_files() if path.stem in NAMES_AVOIDED]
    assert not found, found


def test_every_product_module_says_what_it_is() -> None:
    found = [
        str(path.relative_to(ROOT)) for path, tree in parsed(product_files()) if len(ast.get_docstring(tree) or "") < 20
    ]
    assert not found, f"no module docstring: {found}"


def test_public_functions_and_classes_have_docstrings() -> None:
    found = []
    for path, tree in parsed(product_files()):
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}")
    assert not found, "\n".join(found)


def test_t48_nothing_in_the_product_can_run_bytes_from_outside() -> None:
    found = []
    for path in product_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            for banned in BANNED_CALLS:
                if re.search(rf"(?<![\w.]){re.escape(banned)}", code) and not re.search(
                    r"[\"'`].*" + re.escape(banned), code
                ):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
            if "0.0.0.0" in code:
                found.append(f"{path.relative_to(ROOT)}:{number}: listens beyond this host: {line.strip()}")
    assert not found, "\n".join(found)


def test_shared_words_are_never_stored_by_pack_into() -> None:
    """`struct.pack_into` zeroes its target first: readers of a shared word saw 0 in a fifth of their reads."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in parsed(product_files())
        if layer_of(module_name(path)) in ("shm", "workers", "client")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "pack_into"
    ]
    assert not found, found


def test_no_work_is_left_as_a_remark() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|raise NotImplemented" + "Error")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in source_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("heavy", ["psutil", "rich", "click", "numpy", "asyncio", "aiokafka", "multiprocessing"])
def test_a_worker_process_does_not_import(heavy: str) -> None:
    program = f"import sys, zbroker.workers.partition; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0, f"the worker imports {heavy}"
