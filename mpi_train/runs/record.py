"""Record of a run: the file ``run.json``, schema version 1.

The field names of the dataclasses are the file format; reports and users' scripts rely on them. Times are
wall-clock seconds of the slowest rank.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from mpi_train.runtime.errors import DataError
from mpi_train.training.totals import RankTimes

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One pass over the training set.

    Attributes:
        epoch: Number from 1.
        train_s: Time of the training steps, without evaluation.
        eval_s: Time of the evaluation on the test set.
        images_per_s: Training examples of all ranks, divided by ``train_s``.
        sync_s: Part of ``train_s`` in collectives, waiting included; 0 if none can be timed.
        train_loss, train_accuracy: Means over the epoch's examples, taken while training.
        test_loss, test_accuracy: Means over the whole test set, after the epoch.
        stalled: True if a single step took unusually long (see ``strategies/keras_fit``).
        by_rank: Parts of ``train_s`` on each rank, in rank order; empty if they are unknown.
    """

    epoch: int
    train_s: float
    eval_s: float
    images_per_s: float
    sync_s: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    stalled: bool = False
    by_rank: list[RankTimes] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one strategy: what was asked, what came out, where.

    Attributes:
        run_id: Id of the run (see ``runs/folder.py``), which a resumed run keeps; empty in older records,
            like ``started``.
        started: Time of the first start; UTC, ISO 8601.
        command: Command line that started it.
        train_s: Sum of the epochs' ``train_s``.
        images_per_s: Median over the epochs after the first, without stalled ones.
        sync: Synchronisation of the weights: ``average``, ``every``, ``devices``, depending on the strategy.
        weights_sha256: Digest of the final weights, in layer order.
        startup_s: Time from the start of the process to the first training step.
        startup: Seconds of the start-up by phase, each of its slowest rank: ``import`` of all libraries,
            ``load`` of the shards, ``build`` of the model and optimizer, ``trace`` of the graphs.
        details: Further measurements of the strategy, in which repeats differ.
        history: Events of the run, oldest first: ``kind`` (``resumed`` or ``rolled back``), ``epoch`` and
            ``step`` at which it continued, and ``world_size`` or ``learning_rate`` since then.
        bytes_per_step: Mean number of bytes per global batch, sent by the rank that sent most; None if
            another library sends them and does not count.
        checkpoint_s: Time of writing checkpoints since the last start; it is in no epoch's time.
        class_names: Name of each label, from label 0.
        confusion: Test examples by label (row) and prediction of the final model (column); None for a run
            that was interrupted between its last epoch and its record.
        peak_rss_mib: Peak memory of the rank with the most.
        environment: Hosts, processor, MPI, TensorFlow, commit, Slurm job (see ``runtime/machine.py``).
    """

    schema_version: int = SCHEMA_VERSION
    strategy: str
    command: str
    model: str
    dataset: str
    dataset_sha256: str
    world_size: int
    threads_per_rank: int
    global_batch_size: int
    optimizer: str
    learning_rate: float
    seed: int
    dtype: str
    sync: dict[str, Any]
    epochs: list[EpochRecord]
    train_s: float
    images_per_s: float
    test_accuracy: float
    weights_sha256: str
    startup_s: float
    peak_rss_mib: float
    environment: dict[str, Any]
    startup: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    bytes_per_step: float | None = None
    checkpoint_s: float = 0.0
    class_names: list[str] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    run_id: str = ""
    started: str = ""


def median_rate(epochs: list[EpochRecord]) -> float:
    """Return the median images/s of the epochs after the first, without stalled ones if others exist."""
    later = epochs[1:] or epochs
    clean = [epoch for epoch in later if not epoch.stalled] or later
    return statistics.median(epoch.images_per_s for epoch in clean)


def read_run(path: Path) -> RunRecord:
    """Read a ``run.json``.

    Raises:
        DataError: the file is missing, is not JSON, has another schema version, or lacks a field.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(f"{path}: expected schema version {SCHEMA_VERSION}. Got: {version}")
        record = msgspec.convert(raw, RunRecord)
        # A report divides by both.
        for name, value in (("train_s", record.train_s), ("images_per_s", record.images_per_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} {value}, not a number above 0")
        if not record.epochs:
            raise ValueError("no epoch")
        if record.started:
            datetime.fromisoformat(record.started.replace("Z", "+00:00"))
        size = len(record.class_names)
        if record.confusion is not None and [len(row) for row in record.confusion] != [size] * size:
            raise ValueError(f"a confusion matrix that does not fit {size} classes")
        return record
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected a run record. Got: {error}") from error
