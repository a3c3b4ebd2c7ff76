"""What a run leaves behind: ``run.json`` (schema version 1) and ``events.jsonl``.

The field names of the two dataclasses are the file format; reports and users' scripts rely on them.
Times are wall-clock seconds; where ranks differ, the slowest counts.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_train.runtime.errors import DataError
from mpi_train.training.totals import RankTimes

if TYPE_CHECKING:
    pass

SCHEMA_VERSION = 1
SMALL_BYTES = 1 << 16
"""What a run needs on disk at the least: its record and its events."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One pass over the training set.

    Attributes:
        epoch: Counted from 1.
        train_s: Time of the training steps, without evaluation.
        eval_s: Time of the evaluation on the test set.
        images_per_s: Training examples of all ranks, divided by ``train_s``.
        sync_s: Of ``train_s``, time in collectives (waiting included); 0 where the strategy has none
            that can be timed.
        train_loss, train_accuracy: Mean over the epoch's examples, taken while training.
        test_loss, test_accuracy: Over the whole test set, after the epoch.
        stalled: A single step took unusually long (see ``strategies/keras_fit``).
        by_rank: Where ``train_s`` went on each rank, in rank order; empty where that cannot be told.
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

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> EpochRecord:
        """What ``dataclasses.asdict`` was made of. Raises ``TypeError`` or ``KeyError`` where it is not."""
        return cls(**{**raw, "by_rank": [RankTimes(**rank) for rank in raw.get("by_rank", [])]})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one strategy: what was asked, what came out, where.

    Attributes:
        run_id: Its name (see ``runs/run_id.py``), which it keeps when it was interrupted and goes on;
            empty in older records, as ``started`` is.
        started: When it first was; UTC, ISO 8601.
        command: The words that started it.
        train_s: Sum of the epochs' ``train_s``.
        images_per_s: Median over the epochs after the first, stalled ones left out.
        sync: How weights are kept equal: ``average``, ``every``, ``devices``, as the strategy has them.
        weights_sha256: Digest of the final weights, in layer order.
        startup_s: From the start of the process until it is ready for the first training step.
        startup: Seconds of it by phase, each of its slowest rank: ``import`` (Python, MPI, TensorFlow),
            ``load`` (the shards), ``build`` (model, optimizer, first weights to all ranks), ``trace``
            (making the graphs and running each once).
        details: What else there is to say of the strategy; measured, so that repeats differ in it.
        history: What happened on the way, oldest first: ``kind`` (``resumed`` or ``rolled back``), the
            ``epoch`` and ``step`` from which it went on, and ``world_size`` or ``learning_rate`` since.
        bytes_per_step: What the rank that sent most sent for each global batch of examples, on average; None
            where another library does it, and does not count.
        checkpoint_s: Spent in writing checkpoints, in no epoch's time; since the run last started.
        class_names: Name of each label, from label 0.
        confusion: Test examples by label (row) and by what the final model took them for (column); None of
            a run that was cut off between its last epoch and its record.
        peak_rss_mib: Of the rank with the most.
        environment: Hosts, processor, MPI, TensorFlow, commit, Slurm job (see ``environment``).
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
    """Images/s: the median over the epochs after the first, stalled ones left out where others exist."""
    later = epochs[1:] or epochs
    clean = [epoch for epoch in later if not epoch.stalled] or later
    return statistics.median(epoch.images_per_s for epoch in clean)


def read_run(path: Path) -> RunRecord:
    """Reads a ``run.json``.

    Raises:
        DataError: missing, not JSON, of another schema version, or without a field.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(f"{path}: expected schema version {SCHEMA_VERSION}. Got: {version}")
        raw["epochs"] = [EpochRecord.from_json(epoch) for epoch in raw["epochs"]]
        record = RunRecord(**raw)
        _require_sound(record)
        return record
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: expected a run record. Got: {error}") from error


def _require_sound(record: RunRecord) -> None:
    """Raises ``ValueError`` where a report could not be made of it."""
    for name in ("train_s", "images_per_s"):
        value = getattr(record, name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} {value}, not a number above 0")
    if not isinstance(record.test_accuracy, int | float):
        raise ValueError(f"test_accuracy {record.test_accuracy}, not a number")
    if not record.epochs:
        raise ValueError("no epoch")
    if record.started:
        datetime.fromisoformat(record.started.replace("Z", "+00:00"))
    size = len(record.class_names)
    if record.confusion is not None and [len(row) for row in record.confusion] != [size] * size:
        raise ValueError(f"a confusion matrix that does not fit {size} classes")
