"""Every command that a document shows exists: make targets and variables, jobs and their flags."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi_skip

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^#? *((?:make|mpiexec|python|sbatch) .*)$", re.MULTILINE)
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "jobs/*.py", "slurm/*.sh") for path in ROOT.glob(pattern)
)


def code_lines(document: Path) -> list[str]:
    """What a document shows as code: blocks and spans of Markdown, commands in a script's header."""
    text = document.read_text(encoding="utf-8")
    if document.suffix == ".md":
        lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    else:
        header = re.match(r'"""(?s:.*?)"""|(?:#.*\n)*', text)
        lines = COMMAND.findall(header.group() if header else "")
    # What stands three spaces or a # away explains the command.
    return [command.strip() for line in lines for command in re.split(r"&&|;", re.split(r" {3}| #", line)[0])]


def commands(pattern: str) -> list[object]:
    """Each distinct match of ``pattern`` in the documents as a test parameter."""
    found = {
        match.group(): document.name
        for document in DOCUMENTS
        for line in code_lines(document)
        for match in re.finditer(pattern, line)
    }
    return [pytest.param(command, id=f"{name}: {command}") for command, name in sorted(found.items())]


@cache
def help_of(*job: str) -> str:
    result = subprocess.run(
        [sys.executable, f"jobs/{job[0]}.py", *job[1:], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


def assert_flags(job: str, words: list[str]) -> None:
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    known = set(re.findall(r"--[a-z][a-z-]*", help_of(job, *words[:1]) if job == "submit" else help_of(job)))
    assert flags <= known, f"jobs/{job}.py has no {flags - known}"


@pytest.mark.parametrize("command", commands(r"(?<!\S)make [a-z][a-z_-]*(?: +[A-Z]+=\S+)*"))
def test_make_target_and_variables_exist(command: str) -> None:
    _, target, *settings = command.split()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), "no such target in make help"
    for setting in settings:
        name = setting.partition("=")[0]
        assert re.search(rf"^#: {name}=", makefile, re.MULTILINE), f"no variable {name} in make help"


@pytest.mark.launches
@pytest.mark.parametrize("command", commands(r"python3? (?:-m mpi4py )?jobs/\w+\.py[^|>`)]*"))
def test_job_and_its_flags_exist(command: str) -> None:
    job, flags = re.split(r"jobs/(\w+)\.py", command)[1:]
    assert_flags(job, flags.split())


@pytest.mark.launches
@pytest.mark.parametrize("command", commands(r"(?<!\S)sbatch [^|>`)]*slurm/\w+\.sh[^|>`)]*"))
def test_job_script_and_its_flags_exist(command: str) -> None:
    script, flags = re.split(r"slurm/(\w+)\.sh", command)[1:]
    jobs = re.findall(r"jobs/(\w+)\.py", (ROOT / "slurm" / f"{script}.sh").read_text(encoding="utf-8"))
    if script in ("ranks", "process"):
        jobs = flags.split()[:1]
    assert jobs, "the script runs no job"
    assert_flags(jobs[-1], flags.split())
