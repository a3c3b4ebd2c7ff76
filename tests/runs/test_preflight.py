"""What a job looks at before it loads TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.runs import preflight
from mpi_train.runtime import launch
from mpi_train.runtime.errors import DataError, PlatformError, UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig

ROOT = Path(__file__).parents[2]


def config(tiny_shards: Path, tmp_path: Path) -> MpiConfig:
    return MpiConfig(dataset="synthetic", data=tiny_shards, out=tmp_path)


def test_a_machine_that_is_well_passes(tiny_shards: Path, tmp_path: Path) -> None:
    preflight.check(config(tiny_shards, tmp_path), World())
    assert preflight.free_mib() > 100
    assert abs(preflight.clock_skew_s(World())) < 1e-6


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_mib", lambda: 1000.0)
    preflight.check_memory(World(), 900)
    with pytest.raises(PlatformError, match=r"expected 1,800 MiB .* 2 ranks on a\. Got: 1,000"):
        preflight.check_memory(World(local_size=2, size=2, hosts=("a", "a")), 900)


def test_a_job_that_had_finished_is_not_trained_again(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = config(tiny_shards, tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not preflight.is_finished(mine, World())
    words = [sys.executable, "jobs/custom.py", "--dataset", "synthetic", "--data", str(tiny_shards)]
    words += ["--model", "mlp", "--epochs", "1", "--out", str(tmp_path)]
    first = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert "epoch 1/1" in first.stdout
    assert preflight.is_finished(mine, World())
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert "this job had come to its end before it was queued again" in again.stdout
    assert "epoch" not in again.stdout
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not preflight.is_finished(mine, World())


def test_what_a_job_needs_is_looked_for(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        preflight.check(MpiConfig(dataset="synthetic", data=tmp_path, out=tmp_path), World())
    with pytest.raises(UsageError, match="--out"):
        preflight.check(MpiConfig(dataset="synthetic", data=tiny_shards, out=Path("/proc/results")), World())


@pytest.mark.mpi_skip
def test_a_job_that_cannot_work_says_so_before_tensorflow_is_loaded(tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "jobs/mpi.py", "--data", str(tmp_path / "none")]
    done = subprocess.run(
        launch.mpiexec(2, words),
        cwd=ROOT,
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3
    assert done.stderr.count("\nerror: ") == 1
    assert " tensorflow" not in done.stderr
