"""Checks before TensorFlow is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.runs import coordinator, preflight
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.job import run_job
from mpi_train.runtime import launch
from mpi_train.runtime.errors import DataError, PlatformError, UsageError
from mpi_train.runtime.world import World
from mpi_train.strategies.mpi.config import MpiConfig
from tests.report.conftest import write_run

ROOT = Path(__file__).parents[2]


def config(tiny_shards: Path, tmp_path: Path) -> MpiConfig:
    return MpiConfig(dataset="synthetic", data=tiny_shards, out=tmp_path)


def test_a_healthy_machine_passes(tiny_shards: Path, tmp_path: Path) -> None:
    preflight.check(config(tiny_shards, tmp_path), World())
    assert preflight.free_mib() > 100
    assert abs(preflight.clock_skew_s(World())) < 1e-6


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_mib", lambda: 1000.0)
    preflight.check_memory(World(), 900)
    with pytest.raises(PlatformError, match=r"expected 1,800 MiB .* 2 ranks on a\. Got: 1,000"):
        preflight.check_memory(World(local_size=2, size=2, hosts=("a", "a")), 900)


def train(config: TrainConfig, world: World, threads: int) -> None:
    """Stand in for a strategy."""
    assert config.out is not None
    write_run(config.out, "", environment={"slurm_job_id": os.environ["SLURM_JOB_ID"]})
    print("trained")


@pytest.mark.mpi_skip
def test_a_finished_job_that_is_requeued_does_not_train_again(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinator, "listen", lambda: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    argv = ["--dataset", "synthetic", "--data", str(tiny_shards), "--out", str(tmp_path)]

    def printed() -> str:
        run_job("custom", TrainConfig, f"{__name__}:train", text="", argv=argv)
        return capsys.readouterr().out

    assert printed() == "trained\n"
    again = printed()
    assert "this job had finished before it was requeued" in again
    assert "trained" not in again
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert printed() == "trained\n"


def test_missing_data_and_a_read_only_folder_are_refused(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        preflight.check(MpiConfig(dataset="synthetic", data=tmp_path, out=tmp_path), World())
    with pytest.raises(UsageError, match="--out"):
        preflight.check(MpiConfig(dataset="synthetic", data=tiny_shards, out=Path("/proc/results")), World())


@pytest.mark.launches
def test_a_job_that_cannot_work_ends_before_tensorflow_is_loaded(tmp_path: Path) -> None:
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
