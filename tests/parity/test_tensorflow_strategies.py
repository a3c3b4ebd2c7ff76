"""The strategies that leave the averaging to TensorFlow train the model that our own averaging trains.

With SGD, from the same seed and on the same batches: their losses, epoch by epoch, are the same but for
rounding.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_train.data import synthetic
from mpi_train.data.shards import write_shards
from mpi_train.runs.record import RunRecord, read_run
from tests.programs import start

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(240)]


def losses(job: str, flags: list[str], ranks: int, shards: Path, out: Path) -> list[float]:
    result = start(
        job, "--dataset", "synthetic", "--data", shards, "--model", "mlp", "--batch-size", "12",
        "--epochs", "3", "--optimizer", "sgd", "--learning-rate", "0.05", "--out", out, *flags, ranks=ranks,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    record: RunRecord = read_run(out / "run.json")
    return [loss for epoch in record.epochs for loss in (epoch.train_loss, epoch.test_loss)]


# 509 examples in batches of 12: the last one has 5, which neither 2 nor 3 divide.
@pytest.mark.parametrize(
    ("job", "flags", "ranks", "like", "like_flags"),
    [
        ("multiworker", [], 3, "mpi", ["--average", "gradients"]),
        ("custom_dataset", ["--devices", "3"], 1, "custom", ["--devices", "3"]),
        ("tpu", [], 1, "custom", ["--devices", "1"]),
    ],
)
def test_as_our_own_averaging(
    job: str,
    flags: list[str],
    ranks: int,
    like: str,
    like_flags: list[str],
    tiny_shards: Path,
    tmp_path: Path,
) -> None:
    theirs = losses(job, flags, ranks, tiny_shards, tmp_path / job)
    ours = losses(like, like_flags, ranks, tiny_shards, tmp_path / like)
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_one_federated_client_with_sgd_is_one_process(tmp_path: Path) -> None:
    write_shards(synthetic.draw(seed=1, num_train=109, num_test=31), tmp_path / "one", num_shards=1, seed=1)
    alone = losses("mpi", [], 1, tmp_path / "one", tmp_path / "mpi")
    assert losses("federated", [], 1, tmp_path / "one", tmp_path / "fed") == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("job", "ranks", "flags"),
    [
        # Its weights and statistics are compared over the ranks after the epoch.
        ("multiworker", 2, ["--batch-size", "25"]),
        # 4 examples over 3 devices would leave one of them none, and BatchNorm a NaN.
        ("custom_dataset", 1, ["--devices", "3", "--batch-size", "4"]),
    ],
)
def test_batchnorm_has_something_in_every_part(
    job: str, ranks: int, flags: list[str], tmp_path: Path
) -> None:
    write_shards(synthetic.draw(seed=1, num_train=109, num_test=31), tmp_path / "data", num_shards=2, seed=1)
    result = start(
        job, "--dataset", "synthetic", "--data", tmp_path / "data", "--model", "resnet", "--epochs", "1",
        "--out", tmp_path / "out", *flags, ranks=ranks,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
