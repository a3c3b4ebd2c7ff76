"""The rules of CONTRIBUTING.md that a program can check: layers, imports, module sizes, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mpi_train"

FLOORS = [
    {"runtime"},
    {"models", "data", "monitor"},
    {"collectives"},
    {"training"},
    {"runs"},
    {"strategies"},
    {"report"},
    {"benchmarks", "cluster"},
    {"cli"},
    {"__main__", "__init__"},
]
"""Rooms from the ground floor up; a room imports only from lower floors."""

MAX_LINES = 350
MAX_ENTRIES = 14

DEPENDENT = "Of|What|Which|Whether|How|Where|As|Who|Whose|Whom|When|That|Its|Their|It|They|Those|To be"
"""Words that lean on another sentence; a docstring or a parameter entry must stand by itself."""


def modules(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that ``tree`` imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(dotted: str) -> str:
    """The room of ``mpi_train.room.module``."""
    return dotted.split(".")[1] if dotted.startswith("mpi_train.") else ""


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_rooms_import_from_lower_floors_only() -> None:
    rooms = {room for floor in FLOORS for room in floor}
    upward = []
    for path in modules("mpi_train"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(tree_of(path)):
            there = room_of(name)
            if there in rooms - {here} and floor_of(there) >= floor_of(here):
                upward.append(f"{name_of(path)} -> {name}")
    assert not upward


def test_the_package_has_few_entries_and_every_one_has_a_floor() -> None:
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")
    assert len(entries) <= MAX_ENTRIES, entries
    assert {entry.removesuffix(".py") for entry in entries} == {room for floor in FLOORS for room in floor}


def test_no_module_imports_itself_through_others() -> None:
    names = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path
             for path in modules("mpi_train")}  # fmt: skip
    needs = {name: {other for other in _at_start(path) if other in names and other != name}
             for name, path in names.items()}  # fmt: skip
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        assert name not in chain, " -> ".join((*chain[chain.index(name) :], name))
        if name not in done:
            for other in sorted(needs[name]):
                visit(other, (*chain, name))
            done.add(name)

    for name in names:
        visit(name, ())


def _at_start(path: Path) -> set[str]:
    """Modules that are imported when ``path`` is: not inside a function, not for type checkers."""
    tree = tree_of(path)
    kept = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return set(imports(ast.Module(kept, [])))


@pytest.mark.parametrize("library", ["tensorflow", "keras", "torch"])
def test_light_modules_import_no_tensorflow(library: str) -> None:
    light = [*modules("mpi_train/runtime", "jobs"), PACKAGE / "cli.py",
             *PACKAGE.rglob("registry.py"), *PACKAGE.rglob("config.py")]  # fmt: skip
    heavy = [
        name_of(path) for path in light if any(name.split(".")[0] == library for name in _at_start(path))
    ]
    assert not heavy


def test_mpi4py_is_imported_where_ranks_exchange_only() -> None:
    allowed = ("mpi_train/runtime/world.py", "mpi_train/collectives/", "mpi_train/strategies/pipeline/")
    others = [
        name_of(path)
        for path in modules("mpi_train", "jobs", "examples")
        if not name_of(path).startswith(allowed)
        and any(name.split(".")[0] == "mpi4py" for name in imports(tree_of(path)))
    ]
    assert not others


def test_modules_are_short() -> None:
    long = {name_of(path): count for path in modules("mpi_train", "jobs", "examples")
            if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}  # fmt: skip
    assert not long


def documented(tree: ast.Module) -> Iterator[tuple[str, str, ast.AST]]:
    """Name, docstring and node of the module and of each class and function in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield getattr(node, "name", "module"), ast.get_docstring(node) or "", node


def test_docstrings_stand_by_themselves() -> None:
    leaning = [
        f"{name_of(path)}: {name}: {text.splitlines()[0]}"
        for path in modules("mpi_train", "jobs", "examples")
        for name, text, _ in documented(tree_of(path))
        if re.match(rf"({DEPENDENT})\b", text)
    ]
    assert not leaning, "\n".join(leaning)


def test_entries_of_docstrings_stand_by_themselves() -> None:
    leaning = [
        f"{name_of(path)}: {name}: {entry[0].strip()}"
        for path in modules("mpi_train", "jobs", "examples")
        for name, text, _ in documented(tree_of(path))
        for entry in re.finditer(rf"^ +[\w, *]+: ({DEPENDENT})\b.*$", text, re.MULTILINE)
    ]
    assert not leaning, "\n".join(leaning)


def test_modules_and_public_classes_have_a_summary_line() -> None:
    bare = [
        f"{name_of(path)}: {name}"
        for path in modules("mpi_train", "jobs", "examples")
        for name, text, node in documented(tree_of(path))
        if not isinstance(node, ast.FunctionDef) and re.match(r"$|(Args|Attributes|Raises):?", text)
    ]
    assert not bare, "\n".join(bare)
