"""Everything that a document shows exists: make targets and variables, commands and flags, paths, links."""

from __future__ import annotations

import io
import pkgutil
import re
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest

from examples import reinforcement
from mpi_train.cli import COMMANDS
from mpi_train.runtime.flags import parse
from mpi_train.strategies import registry

pytestmark = pytest.mark.mpi_skip

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^#? *((?:make|mpiexec|python|sbatch) .*)$", re.MULTILINE)
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "jobs/*.py", "examples/*.py", "slurm/*.sh")
    for path in ROOT.glob(pattern)
)
MARKDOWN = [path for path in DOCUMENTS if path.suffix == ".md"]


def code_lines(document: Path) -> list[str]:
    """Return the code of a document: blocks and spans of Markdown, commands in the header of a script."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".md":
        lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    else:
        header = re.match(r'"""(?s:.*?)"""|(?:#.*\n)*', text)
        lines = COMMAND.findall(header.group() if header else "")
    # Text after three spaces or a # explains the command.
    return [command.strip() for line in lines for command in re.split(r"&&|;", re.split(r" {3}| #", line)[0])]


def commands(pattern: str) -> list[object]:
    """Return each distinct match of ``pattern`` in the documents, as a parameter of a test."""
    found = {
        match.group(): document.name
        for document in DOCUMENTS
        for line in code_lines(document)
        for match in re.finditer(pattern, line)
    }
    return [pytest.param(command, id=f"{name}: {command}") for command, name in sorted(found.items())]


@cache
def help_of(name: str, *words: str) -> str:
    """Return the help of a command, with ``words`` before ``--help``."""
    strategy, command = registry.commands().get(name), COMMANDS.get(name)
    kind = strategy.config if strategy else command.config if command else reinforcement.Config
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        if kind is not None:
            parse(kind, ["--help"], description="", prog=name)
        elif command is not None:
            pkgutil.resolve_name(command.function)([*words, "--help"])
    return text.getvalue()


def assert_flags(name: str, words: list[str]) -> None:
    """Check that a command exists and has all flags among ``words``."""
    assert name in {*registry.commands(), *COMMANDS, "reinforcement"}, f"no command {name}"
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    known = re.findall(r"--[a-z][a-z-]*", help_of(name, *(words[:1] if name == "submit" else [])))
    assert flags <= set(known), f"{name} has no {flags - set(known)}"


@pytest.mark.parametrize("command", commands(r"(?<!\S)make [a-z][a-z_-]*(?: +[A-Z]+=\S+)*"))
def test_make_target_and_variables_exist(command: str) -> None:
    _, target, *settings = command.split()
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE), "no such target in make help"
    for setting in settings:
        name = setting.partition("=")[0]
        assert re.search(rf"^#: {name}=", MAKEFILE, re.MULTILINE), f"no variable {name} in make help"


@pytest.mark.parametrize(
    "command", commands(r"python3? (?:-m mpi4py )?(?:(?:jobs|examples)/\w+\.py|-m mpi_train [a-z_]+)[^|>`)]*")
)
def test_command_and_its_flags_exist(command: str) -> None:
    name, flags = re.findall(r"(?:/|mpi_train )(\w+)(?:\.py)?(.*)", command)[0]
    assert_flags(name, flags.split())


@pytest.mark.parametrize("command", commands(r"(?<!\S)sbatch [^|>`)]*slurm/\w+\.sh[^|>`)]*"))
def test_job_script_and_its_flags_exist(command: str) -> None:
    script, flags = re.findall(r"(slurm/\w+\.sh)(.*)", command)[0]
    last = (ROOT / script).read_text(encoding="utf-8").splitlines()[-1]
    assert re.fullmatch(r'(?:ranks|process)(?: \w+)? "\$@"', last), "the script runs no command"
    name, *words = [*last.split()[1:-1], *flags.split()]
    if name != "NAME":
        assert_flags(name, words)


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: path.name)
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:mpi_train|tests|docs|slurm|jobs|examples|requirements)/[\w./-]*)`", text)
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        other = document.parent / target if target else document
        assert other.is_file(), f"{target} does not exist"
        titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", other.read_text(encoding="utf-8")), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, f"{target} has no section {anchor}"
