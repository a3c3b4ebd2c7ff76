"""The strategies that leave the averaging to TensorFlow train the model that our own averaging trains.

With SGD, from the same seed and on the same batches: their losses, epoch by epoch, are the same but for
rounding.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.runs.record import RunRecord, read_run
from tests.in_process import TrainJob

pytestmark = pytest.mark.timeout(240)

# 509 examples in batches of 12: the last one has 5, which neither 2 nor 3 divide.
FLAGS = ["--batch-size", "12", "--epochs", "3", "--optimizer", "sgd", "--learning-rate", "0.05"]
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


def losses(record: RunRecord) -> list[float]:
    return [loss for epoch in record.epochs for loss in (epoch.train_loss, epoch.test_loss)]


@pytest.mark.mpi_skip
@pytest.mark.parametrize(("job", "devices"), [("custom_dataset", ["--devices", "3"]), ("tpu", [])])
def test_as_our_own_averaging(job: str, devices: list[str], train_job: TrainJob) -> None:
    theirs = losses(train_job(job, *FLAGS, *devices, out=job))
    ours = losses(train_job("custom", *FLAGS, *(devices or ["--devices", "1"]), out="custom"))
    assert theirs == pytest.approx(ours, rel=1e-5)


@pytest.mark.slow
def test_multiworker_averages_as_our_own_ranks(launch: Launch, tiny_shards: Path, tmp_path: Path) -> None:
    found = {}
    for job, flags in (("multiworker", []), ("mpi", ["--average", "gradients"])):
        result = launch(
            job, "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", *FLAGS, *flags,
            "--out", tmp_path / job, ranks=2,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        found[job] = losses(read_run(tmp_path / job / "run.json"))
    assert found["multiworker"] == pytest.approx(found["mpi"], rel=1e-5)


@pytest.fixture
def small_shards(tmp_path: Path) -> Callable[[int], Path]:
    """Give a function that writes 109 training and 31 test images into so many shards."""

    def write(num_shards: int) -> Path:
        images = synthetic.draw(seed=1, num_train=109, num_test=31)
        write_shards(images, tmp_path / "small", num_shards=num_shards, seed=1)
        return tmp_path / "small"

    return write


@pytest.mark.mpi_skip
def test_one_federated_client_with_sgd_is_one_process(
    train_job: TrainJob, small_shards: Callable[[int], Path]
) -> None:
    data = small_shards(1)
    alone = losses(train_job("mpi", *FLAGS, "--data", data, out="mpi"))
    federated = losses(train_job("federated", *FLAGS, "--data", data, out="federated"))
    assert federated == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.mpi_skip
def test_batchnorm_has_something_on_every_device(
    train_job: TrainJob, small_shards: Callable[[int], Path]
) -> None:
    # 4 examples over 3 devices would leave one of them none, and BatchNorm a NaN.
    flags = ["--devices", "3", "--batch-size", "4", "--model", "resnet", "--epochs", "1"]
    train_job("custom_dataset", "--data", small_shards(2), *flags)


@pytest.mark.slow
def test_batchnorm_of_multiworker_in_bfloat16(
    launch: Launch, small_shards: Callable[[int], Path], tmp_path: Path
) -> None:
    # The weights and statistics of the ranks are compared after the epoch.
    result = launch(
        "multiworker", "--dataset", "synthetic", "--data", small_shards(2), "--model", "resnet",
        "--epochs", "1", "--batch-size", "25", "--dtype", "bfloat16", "--out", tmp_path / "out", ranks=2,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert read_run(tmp_path / "out/run.json").dtype == "bfloat16"
