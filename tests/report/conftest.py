"""Run records as the training jobs leave them, with figures that a test chooses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpi_train.runs.record import EpochRecord, RunRecord, median_rate
from mpi_train.runtime import files
from mpi_train.training.totals import RankTimes

MakeRun = Callable[..., RunRecord]

NUM_TRAIN = 60_000
ENVIRONMENT: dict[str, Any] = {
    "hosts": ["n1"],
    "cpu": "A processor with two cores",
    "cores": 2,
    "gpus": [],
    "mpi": None,
    "python": "3.11.2",
    "tensorflow": "2.21.0",
    "keras": "3.15.1",
    "git_commit": "0123456789ab",
    "slurm_job_id": None,
}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``write_run`` below ``tmp_path``."""
    return functools.partial(write_run, tmp_path)


def write_run(
    below: Path,
    folder: str,
    *,
    epoch_s: tuple[float, ...] = (8.0, 6.0, 6.0),
    scores: tuple[float, ...] = (0.86, 0.88, 0.90),
    stalled: tuple[int, ...] = (),
    by_rank: tuple[RankTimes, ...] = (),
    environment: dict[str, Any] | None = None,
    **fields: Any,
) -> RunRecord:
    """Writes ``FOLDER/run.json`` below a folder and returns the record.

    Its epochs take ``epoch_s`` seconds each and end at the test accuracies ``scores``; other keywords
    replace fields of the record.
    """
    epochs = [
        EpochRecord(
            epoch=number,
            train_s=train_s,
            eval_s=0.5,
            images_per_s=NUM_TRAIN / train_s,
            sync_s=0.0,
            train_loss=0.5,
            train_accuracy=score - 0.01,
            test_loss=0.4,
            test_accuracy=score,
            stalled=number in stalled,
            by_rank=list(by_rank),
        )
        for number, (train_s, score) in enumerate(zip(epoch_s, scores, strict=True), start=1)
    ]
    strategy = fields.pop("strategy", "baseline")
    record = RunRecord(
        **{
            "strategy": strategy,
            "command": f"python jobs/{strategy}.py",
            "model": "cnn",
            "dataset": "fashion_mnist",
            "dataset_sha256": "ab" * 32,
            "world_size": 1,
            "threads_per_rank": 1,
            "global_batch_size": 64,
            "optimizer": "adam",
            "learning_rate": 0.001,
            "seed": 1,
            "dtype": "float32",
            "sync": {},
            "epochs": epochs,
            "train_s": sum(epoch_s),
            "images_per_s": median_rate(epochs),
            "test_accuracy": scores[-1],
            "weights_sha256": "cd" * 32,
            "startup_s": 4.0,
            "peak_rss_mib": 700.0,
            "environment": {**ENVIRONMENT, **(environment or {})},
            **fields,
        }
    )
    out = below / folder
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "run.json", dataclasses.asdict(record))
    return record
