"""A pipeline trains the model that one process trains, and copies of it what data parallelism does.

By the weights of their checkpoints after an epoch of 22 steps of SGD, stage after stage.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpi_train.runs.checkpoint_file import CheckpointFile
from mpi_train.runs.record import read_run
from tests.programs import assert_one_message, start

pytestmark = [pytest.mark.mpi_skip, pytest.mark.timeout(240)]

# Without kinks, as in test_parity, whose models these are.
MODEL = "tests.parity.test_parity:smooth_cnn"
TOLERANCE = 1e-5


def weights(job: str, ranks: int, flags: list[str], shards: Path, out: Path) -> list[np.ndarray]:
    """Of each rank, after the epoch."""
    result = start(
        job, "--dataset", "synthetic", "--data", shards, "--model", MODEL, "--batch-size", "24", "--epochs",
        "1", "--optimizer", "sgd", "--learning-rate", "0.05", "--out", out, *flags, ranks=ranks,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    file = CheckpointFile(out / "checkpoints/epoch-0002-step-0000000.safetensors")
    return [file.read("weights", rank) for rank in range(ranks)]


@pytest.mark.parametrize("copies", [1, 2])
def test_stages_hold_the_weights_of_one_process(copies: int, tiny_shards: Path, tmp_path: Path) -> None:
    (whole, *_) = weights("mpi", copies, ["--average", "gradients"], tiny_shards, tmp_path / "mpi")
    # 24 examples a step: 5 micro-batches are of unequal sizes.
    for num_stages, micro_batches in ((2, "4"), (3, "5")):
        out = tmp_path / str(num_stages)
        flags = ["--stages", str(num_stages), "--micro-batches", micro_batches]
        ranks = weights("pipeline", num_stages * copies, flags, tiny_shards, out)
        for copy in range(copies):
            together = np.concatenate(ranks[copy * num_stages : (copy + 1) * num_stages])
            assert np.abs(together - whole).max() < TOLERANCE
        record = read_run(out / "run.json")
        assert len(record.details["cut"]) == num_stages - 1
        shares = record.details["stage_weights"]
        assert len(shares) == num_stages
        assert sum(shares) == 225_034
        assert max(len(stage) for stage in ranks) < len(whole)
        assert record.details["bubble_in_theory"] == pytest.approx(
            (num_stages - 1) / (int(micro_batches) + num_stages - 1)
        )
        assert 0 < record.details["bubble"] < 1
        # The same loss and accuracy of the same examples, each counted once.
        alone = read_run(tmp_path / "mpi/run.json")
        assert record.epochs[0].train_loss == pytest.approx(alone.epochs[0].train_loss, rel=1e-4)
        assert record.epochs[0].test_loss == pytest.approx(alone.epochs[0].test_loss, rel=1e-4)
        assert record.epochs[0].test_accuracy == pytest.approx(alone.epochs[0].test_accuracy, abs=0.01)


def test_activations_and_gradients_are_what_is_sent(tiny_shards: Path, tmp_path: Path) -> None:
    weights("pipeline", 2, ["--cut", "flatten"], tiny_shards, tmp_path)
    # Between the stages 1600 numbers of 4 bytes an example, there and back.
    (first, last) = read_run(tmp_path / "run.json").epochs[0].by_rank
    assert (first.sent_bytes, last.sent_bytes) == (509 * 1600 * 4, 509 * 1600 * 4)


def test_what_does_not_go_round_is_one_message(tiny_shards: Path, tmp_path: Path) -> None:
    result = start(
        "pipeline", "--dataset", "synthetic", "--data", tiny_shards, "--model", "mlp", "--out", tmp_path,
        "--batch-size", "7", ranks=4,
    )  # fmt: skip
    expected = "at least one example for each of the 8 micro-batches of a step. Got: 7"
    assert_one_message(result, 2, expected, "fewer --micro-batches")
