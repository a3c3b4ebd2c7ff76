"""``jobs/prepare_data.py`` as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.data import synthetic
from mpi_train.data.prepare import prepare
from mpi_train.data.shards import ShardSet
from mpi_train.runtime import launch

JOB = Path(__file__).parents[2] / "jobs" / "prepare_data.py"

# Proxies that refuse at once: these runs must reach nothing, wherever the tests run.
OFFLINE = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}


def run(*flags: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *flags]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**launch.environment(), **OFFLINE, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def explained(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a run that must fail: one, without a traceback."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def test_synthetic_shards_are_made_once(tmp_path: Path) -> None:
    first = run("--dataset", "synthetic", "--shards", "3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "data/synthetic"
    folder = tmp_path / "data" / "synthetic"
    assert ShardSet.open(folder, "synthetic").num_examples("train") == 60_000
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = run("--dataset", "synthetic", "--shards", "3", cwd=tmp_path)
    assert "were there already, and are sound" in second.stdout
    assert second.stdout.splitlines()[-1] == "data/synthetic"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_no_raw_data_is_an_error_with_the_mend(tmp_path: Path) -> None:
    message = explained(run("--dataset", "fashion_mnist", cwd=tmp_path), 3)
    assert "no Fashion-MNIST found" in message
    assert "make data DATASET=fashion_mnist" in message
    assert not (tmp_path / "data").exists()


def test_no_raw_data_or_synthetic(tmp_path: Path) -> None:
    result = run("--or-synthetic", "--data", "somewhere/fashion", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no Fashion-MNIST found" in result.stdout
    assert "going on with the synthetic stand-in" in result.stdout
    assert result.stdout.splitlines()[-1] == "somewhere/synthetic"
    assert ShardSet.open(tmp_path / "somewhere" / "synthetic", "synthetic").num_examples("test") == 10_000


def test_corrupt_raw_data_is_never_replaced_by_synthetic(tmp_path: Path, idx_files: Path) -> None:
    # The official hashes count in the job, so that the small files are corrupt to it.
    message = explained(run("--or-synthetic", "--source", str(idx_files), cwd=tmp_path), 3)
    assert "truncated or altered. Expected SHA-256" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "fashionmnist"], "--dataset fashion_mnist"),
        (["--shard", "3"], "Did you mean --shards"),
        (["--shards", "0"], "--shards: expected at least 1"),
        (["--shards", "many"], "invalid int value"),
        (["--partition", "even"], "choose from"),
        (["--alpha", "0.3"], "only --partition dirichlet has one"),
        (["--partition", "dirichlet", "--alpha", "0"], "--alpha: expected a number above 0"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--dataset", "synthetic", "--source", "."], "drawn from --seed"),
        (
            ["--dataset", "synthetic", "--data", "/dev/null/data"],
            "--data: expected a folder that can be written",
        ),
    ],
)
def test_usage_errors(tmp_path: Path, flags: list[str], message: str) -> None:
    assert message in explained(run(*flags, cwd=tmp_path), 2)


def test_several_processes_would_write_over_each_other(
    tmp_path: Path,
) -> None:
    result = run(cwd=tmp_path, PMI_RANK="0", PMI_SIZE="4")
    assert "prepare_data is one process. Got: 4" in explained(result, 4)


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small synthetic data; a list of the seeds that were drawn."""
    seeds: list[int] = []
    draw = synthetic.draw

    def small(seed: int, *, name: str) -> object:
        seeds.append(seed)
        return draw(seed, 100, 20, name)

    monkeypatch.setattr(synthetic, "draw", small)
    return seeds


def test_only_what_differs_or_is_damaged_is_made_again(tmp_path: Path, drawings: list[int]) -> None:
    assert prepare("synthetic", tmp_path, num_shards=2)
    assert not prepare("synthetic", tmp_path, num_shards=2)
    assert prepare("synthetic", tmp_path, num_shards=3)
    assert prepare("synthetic", tmp_path, num_shards=3, seed=2)
    (tmp_path / "train-00001-of-00003.h5").unlink()
    assert prepare("synthetic", tmp_path, num_shards=3, seed=2)
    path = tmp_path / "test-00000-of-00001.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert prepare("synthetic", tmp_path, num_shards=3, seed=2)
    assert not prepare("synthetic", tmp_path, num_shards=3, seed=2)
    assert drawings == [1, 1, 2, 2, 2]


def test_the_official_files_become_shards(tmp_path: Path, official_files: Path) -> None:
    folder = tmp_path / "shards"
    result = run("--source", str(official_files), "--data", str(folder), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shards = ShardSet.open(folder, "fashion_mnist")
    assert (shards.num_examples("train"), shards.num_examples("test")) == (60_000, 10_000)
    assert len(shards.read("train", 3, 4)) == 15_000
