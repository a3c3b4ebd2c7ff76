"""The prepare_data command, most of it inside the test process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpi_train.data import sources, synthetic
from mpi_train.data.prepare import main, prepare
from mpi_train.data.shards import ShardSet
from mpi_train.data.sources import MissingRawDataError
from mpi_train.runtime import launch
from mpi_train.runtime.errors import DataError, UsageError

# The command is one process, and refuses to be started as ranks.
pytestmark = pytest.mark.mpi_skip

JOB = Path(__file__).parents[2] / "jobs" / "prepare_data.py"

# Proxies that refuse at once: no test may reach a real mirror.
OFFLINE = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "no_proxy": ""}


def start(*flags: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOB), *flags]
    environment = {**launch.environment(), **OFFLINE, **environ}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def explained(result: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the message of a run that must fail with one message and without a traceback."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without a network."""
    monkeypatch.chdir(tmp_path)
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small synthetic data; returns a list to which each drawing appends its seed."""
    seeds: list[int] = []
    draw = synthetic.draw

    def small(seed: int, *, name: str) -> object:
        seeds.append(seed)
        return draw(seed, 100, 20, name)

    monkeypatch.setattr(synthetic, "draw", small)
    return seeds


@pytest.mark.launches
def test_the_script_makes_a_stand_in_of_full_size(tmp_path: Path) -> None:
    result = start("--or-synthetic", "--data", "somewhere/fashion", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no Fashion-MNIST found" in result.stdout
    assert "using the synthetic stand-in synthetic" in result.stdout
    assert result.stdout.splitlines()[-1] == "somewhere/synthetic"
    shards = ShardSet.open(tmp_path / "somewhere" / "synthetic", "synthetic")
    assert (shards.num_examples("train"), shards.num_examples("test")) == (60_000, 10_000)


@pytest.mark.launches
def test_the_script_explains_an_error_and_exits_with_its_code(tmp_path: Path) -> None:
    message = explained(start("--dataset", "fashion_mnist", cwd=tmp_path), 3)
    assert "no Fashion-MNIST found" in message
    assert "make data DATASET=fashion_mnist" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.launches
def test_several_processes_would_write_over_each_other(tmp_path: Path) -> None:
    result = start(cwd=tmp_path, PMI_RANK="0", PMI_SIZE="4")
    assert "prepare_data is one process. Got: 4" in explained(result, 4)


def test_shards_are_made_once(folder: Path, drawings: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--dataset", "synthetic", "--shards", "3"])
    assert capsys.readouterr().out.splitlines() == ["synthetic: 3 shards written", "data/synthetic"]
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "data" / "synthetic").iterdir()}
    main(["--dataset", "synthetic", "--shards", "3"])
    first, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("synthetic: 3 shards exist already, and are sound", "data/synthetic")
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "data" / "synthetic").iterdir()} == times
    assert drawings == [1]


@pytest.mark.usefixtures("folder", "drawings")
def test_a_data_set_without_a_stand_in_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.OFFICIAL, "other", sources.OFFICIAL["fashion_mnist"])
    monkeypatch.setattr(sources, "DATASETS", (*sources.DATASETS, "other"))
    with pytest.raises(MissingRawDataError):
        main(["--dataset", "other", "--or-synthetic"])


def test_corrupt_raw_data_is_never_replaced_by_synthetic(
    folder: Path, idx_files: Path, drawings: list[int]
) -> None:
    path = idx_files / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"truncated or altered\. Expected SHA-256"):
        main(["--or-synthetic", "--source", str(idx_files)])
    assert not (folder / "data").exists()
    assert not drawings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "fashionmnist"], "--dataset fashion_mnist"),
        (["--shard", "3"], "Did you mean --shards"),
        (["--shards", "0"], "--shards: expected at least 1"),
        (["--shards", "many"], "invalid int value"),
        (["--partition", "even"], "choose from"),
        (["--alpha", "0.3"], "applies to --partition dirichlet only"),
        (["--partition", "dirichlet", "--alpha", "0"], "--alpha: expected a number above 0"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--dataset", "synthetic", "--source", "."], "drawn from --seed"),
        (
            ["--dataset", "synthetic", "--data", "/dev/null/data"],
            "--data: expected a folder that can be written",
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_usage_errors(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        main(flags)
    assert message in str(caught.value)


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


@pytest.mark.usefixtures("folder")
def test_the_official_files_become_shards(official_files: Path) -> None:
    main(["--source", str(official_files), "--data", "shards"])
    shards = ShardSet.open(Path("shards"), "fashion_mnist")
    assert (shards.num_examples("train"), shards.num_examples("test")) == (60_000, 10_000)
    assert len(shards.read("train", 3, 4)) == 15_000
