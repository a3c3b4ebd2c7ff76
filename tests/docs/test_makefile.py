"""Recipes of make, by its dry run in a copy of the Makefile, and refusals of the set-up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.launches

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture
def clone(programs: None, tmp_path: Path) -> Path:
    """Make a folder with the Makefile and the set-up, without an environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def run(clone: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # A make that runs this test has put its own variables into the environment.
    others = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", *re.findall(r"^#: (\w+)=", MAKEFILE, re.MULTILINE)}
    environ = {name: value for name, value in os.environ.items() if name not in others}
    return subprocess.run(command, cwd=clone, env={**environ, **variables}, capture_output=True, text=True)


def recipe(clone: Path, *words: str) -> str:
    """Return the commands that ``make`` would run, in one line."""
    result = run(clone, "make", "-n", *words)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.replace("\\\n", " ").split())


def installed(clone: Path, what: str) -> None:
    """Leave the stamp of a set-up that has just ended."""
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "installed").write_text(f"{what} {clone}\n")


TARGETS = re.findall(r"^([a-z_-]+):.*## ", MAKEFILE, re.MULTILINE)


# The ids say "make", as pytest-mpi takes a test with the id "mpi" for one that carries its marker.
@pytest.mark.parametrize("target", TARGETS, ids="make {}".format)
def test_each_target_can_be_made_and_is_in_help(clone: Path, target: str) -> None:
    recipe(clone, target)
    assert f"\n  {target} " in run(clone, "make").stdout


def test_without_variables_no_flag_is_passed(clone: Path) -> None:
    installed(clone, "wheel cpu")
    assert recipe(clone, "baseline") == ".venv/bin/python jobs/baseline.py"
    assert recipe(clone, "mpi") == "mpiexec -n 2 .venv/bin/python jobs/mpi.py"


def test_variables_become_flags(clone: Path) -> None:
    installed(clone, "wheel cpu")
    (clone / ".venv" / "bin" / "mpiexec").touch()
    line = recipe(clone, "mpi", "NP=3", "EPOCHS=2", "BATCH=96", "ARGS=--average gradients")
    assert line == (
        ".venv/bin/mpiexec -n 3 .venv/bin/python jobs/mpi.py --epochs 2 --batch-size 96 --average gradients"
    )
    assert recipe(clone, "custom", "NP=3", "MODEL=mlp").endswith("jobs/custom.py --model mlp --devices 3")
    assert recipe(clone, "bench-step", "MODEL=mlp", "BATCH=32", "REPEATS=5") == (
        ".venv/bin/mpiexec -n 2 .venv/bin/python jobs/bench_step.py --repeats 5 --model mlp --batch-size 32"
    )
    assert recipe(clone, "reinforcement", "SEED=2", "OUT=r", "EPOCHS=3").endswith(
        "examples/reinforcement.py --seed 2 --out r"
    )
    assert recipe(clone, "data", "SHARDS=8").endswith("jobs/prepare_data.py --shards 8")


def test_bench_falls_back_only_when_no_dataset_was_asked_for(clone: Path) -> None:
    installed(clone, "wheel cpu")
    assert "--or-synthetic" in recipe(clone, "bench")
    asked = recipe(clone, "bench", "DATASET=fashion_mnist", "REPEATS=1")
    assert "--or-synthetic" not in asked
    assert "--repeats 1" in asked


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        ("wheel cpu", (), None),
        ("site gpu", (), None),
        ("wheel cpu", ("MPI=site",), "site cpu"),
        ("site gpu", ("MPI=wheel",), "wheel gpu"),
        ("site gpu", ("GPU=0",), "site cpu"),
        ("wheel cpu", ("GPU=1",), "wheel gpu"),
    ],
)
def test_setup_runs_again_only_for_another_choice(
    clone: Path, before: str, words: tuple[str, ...], after: str | None
) -> None:
    installed(clone, before)
    line = recipe(clone, "setup", *words)
    assert (f"requirements/setup.sh {after} " in line) if after else ("setup.sh" not in line)


def test_setup_runs_again_for_new_pins_and_in_a_moved_clone(clone: Path) -> None:
    installed(clone, "wheel cpu")
    stamp = clone / ".venv" / "installed"
    os.utime(clone / "requirements" / "cpu.txt", (0, stamp.stat().st_mtime + 10))
    assert "setup.sh" in recipe(clone, "setup")
    moved = clone / "elsewhere"
    shutil.copytree(clone, moved)
    assert "setup.sh" in recipe(moved, "setup")


@pytest.mark.parametrize(
    ("mpi", "python", "message"),
    [
        ("openmpi", "", "MPI: expected wheel or site. Got: openmpi"),
        ("wheel", "/nowhere/python3", "expected Python 3.10 to 3.13. Got: /nowhere/python3 (none)"),
    ],
)
def test_setup_refuses_with_a_remedy(clone: Path, mpi: str, python: str, message: str) -> None:
    result = run(clone, "requirements/setup.sh", mpi, "cpu", str(clone), PYTHON=python)
    assert result.returncode == 4
    assert message in result.stderr
    assert "Fix: " in result.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_set_up_for_real_with_and_without_the_mpi_wheel(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    unwanted = shutil.ignore_patterns(".*", "data", "results", "logs", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=unwanted)

    def make(*words: str) -> str:
        result = run(clone, "make", *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def has(module: str) -> bool:
        return run(clone, ".venv/bin/python", "-c", f"import {module}").returncode == 0

    mpiexec = clone / ".venv" / "bin" / "mpiexec"
    assert "Making .venv" in make("setup")
    assert has("tensorflow")
    ring = run(clone, str(mpiexec), "-n", "2", ".venv/bin/python", "-m", "mpi4py.bench", "ringtest")
    assert "(2 processes" in ring.stdout, ring.stderr
    assert "Making .venv" not in make("setup")

    assert "Making .venv" in make("setup", "MPI=site")
    assert not mpiexec.exists()
    assert has("mpi_train, h5py")
    assert "Making .venv" not in make("setup")
