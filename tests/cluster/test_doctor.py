"""The doctor finds what is wrong: each check against a machine that lacks the thing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpi_train.cluster import doctor, probes
from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.runtime import launch
from mpi_train.runtime.errors import PlatformError

pytestmark = pytest.mark.mpi_skip

ROOT = Path(__file__).parents[2]


def command(folder: Path, name: str, script: str) -> Path:
    """A program of that name in ``folder``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


@pytest.mark.launches
def test_ring_over_two_real_ranks() -> None:
    finding = doctor.check_mpiexec()
    assert finding.level == "ok"
    assert "ring over 2 ranks" in finding.text


@pytest.mark.launches
def test_library_is_named_with_its_file() -> None:
    finding = doctor.check_mpi_library()
    assert "/libmpi" in finding.text


@pytest.mark.launches
def test_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPI4PY_LIBMPI", "/nowhere/libmpi.so")
    with pytest.raises(PlatformError, match=r"did not start.*MPI4PY_LIBMPI=/nowhere/libmpi.so") as caught:
        doctor.check_mpi_library()
    assert "make setup MPI=wheel" in str(caught.value.remedy)


@pytest.mark.launches
@pytest.mark.parametrize("tells", [True, False], ids=["known launcher", "unknown launcher"])
def test_launcher_of_another_mpi(path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    # It starts two processes that cannot find each other: two worlds of size 1, exit code 0.
    variables = "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=$rank" if tells else ""
    mpiexec = command(path, "mpiexec", f'shift 2\nfor rank in 0 1; do env {variables} "$@" || exit; done')
    monkeypatch.setattr(launch, "find_mpiexec", lambda: str(mpiexec))
    with pytest.raises(PlatformError, match="world of 1") as caught:
        doctor.check_mpiexec()
    assert "make setup MPI=wheel" in str(caught.value.remedy)


@pytest.mark.launches
def test_probe_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "LIMIT_S", 0.5)
    with pytest.raises(PlatformError, match="no answer after"):
        probes.run("ring", launcher=["sh", "-c", "sleep 60"])


@pytest.mark.launches
def test_probe_that_crashes_is_explained() -> None:
    with pytest.raises(PlatformError, match="exit code -6"):
        probes.run("ring", launcher=["sh", "-c", "kill -ABRT $$"])


def test_gpu_that_tensorflow_does_not_see(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {"tensorflow": "2.21.0", "keras": "3.15.1", "gpus": []}
    monkeypatch.setattr(probes, "run", lambda name: found)
    command(path, "nvidia-smi", "echo 'GPU 0: H200'")
    finding = doctor.check_tensorflow()
    assert (finding.level, finding.remedy) == ("warning", "make setup GPU=1")
    found["gpus"] = ["H200"]
    assert doctor.check_tensorflow().level == "ok"


def test_one_core_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: None)
    finding = doctor.check_cores()
    assert finding.level == "warning"
    assert finding.text.startswith("1 in the affinity mask; threads a rank: 1")


def test_quota_below_the_affinity_mask_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 2.0)
    finding = doctor.check_cores()
    assert finding.level == "warning"
    assert "8 on 2 ranks, 4 on 4 ranks; but the container's quota is 2 cores" in finding.text


def test_data_none_sound_and_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [finding.level for finding in doctor.check_data()] == ["warning"]
    folder = Path("data/synthetic")
    write_shards(synthetic.draw(seed=1, num_train=32, num_test=16), folder, num_shards=2, seed=1)
    (finding,) = doctor.check_data()
    assert (finding.level, finding.text) == (
        "ok",
        "data/synthetic: 32 train, 16 test examples, checksums match",
    )
    shard = folder / "train-00001-of-00002.h5"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (finding,) = doctor.check_data()
    assert finding.level == "fail"
    assert shard.name in finding.text
    assert "make data" in str(finding.remedy)


def test_results_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")  # refuses root too
    with pytest.raises(PlatformError, match="/proc cannot be written"):
        doctor.check_results()


@pytest.mark.parametrize(
    ("default", "level", "remedy"),
    [("none", "warning", "export SLURM_MPI_TYPE=pmi2"), ("pmi2", "ok", None), ("cray_shasta", "ok", None)],
)
def test_srun_that_does_not_speak_to_the_library(
    path: Path, monkeypatch: pytest.MonkeyPatch, default: str, level: str, remedy: str | None
) -> None:
    monkeypatch.delenv("SLURM_MPI_TYPE", raising=False)
    monkeypatch.setattr(probes, "run", lambda name: {"vendor": "MPICH"})
    command(path, "sbatch", "exit 0")
    command(path, "sinfo", "echo 'main*'")
    command(path, "scontrol", f"echo 'MpiDefault = {default}'; echo 'SLURM_VERSION = 22.05.8'")
    finding = doctor.check_slurm()
    assert (finding.level, finding.remedy) == (level, remedy)
    assert finding.text.startswith(f"Slurm 22.05.8, partitions main*, srun uses {default}")


def test_slurm_without_a_controller(path: Path) -> None:
    command(path, "sbatch", "exit 0")
    command(path, "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert doctor.check_slurm().level == "warning"


@pytest.mark.launches
def test_job_exits_with_the_platform_code_and_goes_on_after_a_failed_check(tmp_path: Path) -> None:
    environ = {**os.environ, "MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    result = subprocess.run(
        [sys.executable, ROOT / "jobs" / "doctor.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert result.returncode == PlatformError.exit_code
    assert "error: training will not work here: MPI library, mpiexec" in result.stderr
    levels = {line[8:20].strip(): line.split()[0] for line in result.stdout.splitlines() if line[0] != " "}
    assert levels["MPI library"] == levels["mpiexec"] == "fail"
    assert levels["TensorFlow"] == levels["HDF5"] == levels["results"] == "ok"
    assert "Traceback" not in result.stdout + result.stderr
