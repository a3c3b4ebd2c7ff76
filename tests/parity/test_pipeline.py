"""A pipeline trains the model that one process trains, and copies of it what data parallelism does.

Compared are the weights of their checkpoints after an epoch of 22 steps of SGD, stage after stage.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpi_train.runs.checkpoint_file import CheckpointFile
from mpi_train.runs.record import read_run
from mpi_train.runtime.world import World
from tests.in_process import TrainJob, refused

pytestmark = pytest.mark.timeout(240)

# Without kinks, as in test_parity, whose models these are.
MODEL = "tests.parity.test_parity:smooth_cnn"
FLAGS = [
    "--model", MODEL, "--batch-size", "24", "--epochs", "1", "--optimizer", "sgd", "--learning-rate", "0.05",
]  # fmt: skip
TOLERANCE = 1e-5


def weights(out: Path, ranks: int) -> list[np.ndarray]:
    """Return the weights of each rank after the epoch."""
    file = CheckpointFile(out / "checkpoints/epoch-0002-step-0000000.safetensors")
    return [file.read("weights", rank) for rank in range(ranks)]


def assert_equal(folder: Path, num_stages: int, copies: int, micro_batches: int) -> None:
    """Compare the pipeline and the data parallelism that were trained below ``folder``."""
    (whole, *_) = weights(folder / "mpi", copies)
    ranks = weights(folder / "pipeline", num_stages * copies)
    for copy in range(copies):
        together = np.concatenate(ranks[copy * num_stages : (copy + 1) * num_stages])
        assert np.abs(together - whole).max() < TOLERANCE
    record, alone = read_run(folder / "pipeline/run.json"), read_run(folder / "mpi/run.json")
    assert len(record.details["cut"]) == num_stages - 1
    shares = record.details["stage_weights"]
    assert len(shares) == num_stages
    assert sum(shares) == 225_034
    assert max(len(stage) for stage in ranks) < len(whole)
    assert record.details["bubble_in_theory"] == pytest.approx(
        (num_stages - 1) / (micro_batches + num_stages - 1)
    )
    assert 0 < record.details["bubble"] < 1
    # The same loss and accuracy of the same examples, each counted once.
    assert record.epochs[0].train_loss == pytest.approx(alone.epochs[0].train_loss, rel=1e-4)
    assert record.epochs[0].test_loss == pytest.approx(alone.epochs[0].test_loss, rel=1e-4)
    assert record.epochs[0].test_accuracy == pytest.approx(alone.epochs[0].test_accuracy, abs=0.01)


# 24 examples a step: 5 micro-batches are of unequal sizes.
@pytest.mark.parametrize(
    ("num_stages", "copies", "micro_batches"),
    [
        pytest.param(2, 1, 4, marks=pytest.mark.mpi(min_size=2)),
        pytest.param(3, 1, 5, marks=pytest.mark.mpi(min_size=4)),
        pytest.param(2, 2, 5, marks=pytest.mark.mpi(min_size=4)),
    ],
)
def test_stages_hold_the_weights_of_one_process(
    num_stages: int, copies: int, micro_batches: int, train_job: TrainJob, world: World
) -> None:
    train_job("mpi", *FLAGS, "--average", "gradients", ranks=copies, out="mpi")
    cut = ["--stages", str(num_stages), "--micro-batches", str(micro_batches)]
    train_job("pipeline", *FLAGS, *cut, ranks=num_stages * copies, out="pipeline")
    if world.is_root:
        assert_equal(train_job.folder, num_stages, copies, micro_batches)


@pytest.mark.slow
def test_six_programs_hold_the_weights_of_two(
    launch: Callable[..., subprocess.CompletedProcess[str]], tiny_shards: Path, tmp_path: Path
) -> None:
    data = ["--dataset", "synthetic", "--data", tiny_shards]
    cut = ["--stages", "3", "--micro-batches", "5"]
    for job, ranks, flags in (("mpi", 2, ["--average", "gradients"]), ("pipeline", 6, cut)):
        result = launch(job, *data, *FLAGS, *flags, "--out", tmp_path / job, ranks=ranks)
        assert result.returncode == 0, result.stdout + result.stderr
    assert_equal(tmp_path, 3, 2, 5)


@pytest.mark.mpi(min_size=2)
def test_activations_and_gradients_are_what_is_sent(train_job: TrainJob) -> None:
    record = train_job("pipeline", *FLAGS, "--cut", "flatten", ranks=2)
    # Between the stages 1600 numbers of 4 bytes an example, there and back.
    (first, last) = record.epochs[0].by_rank
    assert (first.sent_bytes, last.sent_bytes) == (509 * 1600 * 4, 509 * 1600 * 4)


@pytest.mark.mpi(min_size=2)
def test_what_does_not_divide_is_one_message(train_job: TrainJob) -> None:
    expected = "at least one example for each of the 4 micro-batches of a step. Got: 3"
    with refused(2, expected, "fewer --micro-batches"):
        train_job("pipeline", "--batch-size", "3", ranks=2)
