"""What a run leaves behind: ``run.json`` (schema version 1) and ``events.jsonl``.

The field names of the two dataclasses are the file format; reports and users' scripts rely on them.
Times are wall-clock seconds; where ranks differ, the slowest counts.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpi_train import files
from mpi_train.errors import DataError, UsageError
from mpi_train.world import World

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """Where the time of one rank went in one epoch; the four add up to its training time.

    Attributes:
        compute_s: In the graph: batches, gradients, updates.
        moving_s: In all-reduces, while bytes moved: for each, what the last rank to arrive needed.
        waiting_s: In all-reduces, before the last rank arrived.
        host_s: Between the chunks of steps: progress, agreeing on the next one.
    """

    compute_s: float
    moving_s: float
    waiting_s: float
    host_s: float


@dataclass(frozen=True, kw_only=True)
class EpochTotals:
    """One epoch of training.

    Attributes:
        loss, accuracy: Mean over the examples of all ranks, taken while training.
        train_s: Seconds, of the slowest rank.
        by_rank: Where they went, in rank order; empty where the strategy cannot tell.
    """

    loss: float
    accuracy: float
    train_s: float
    by_rank: list[RankTimes] = field(default_factory=list)

    @property
    def sync_s(self) -> float:
        """Time in all-reduces, of the rank with the most."""
        return max((rank.moving_s + rank.waiting_s for rank in self.by_rank), default=0.0)


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


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one strategy: what was asked, what came out, where.

    Attributes:
        command: The words that started it.
        train_s: Sum of the epochs' ``train_s``.
        images_per_s: Median over the epochs after the first, stalled ones left out.
        sync: How weights are kept equal: ``average``, ``every``, ``devices``, as the strategy has them.
        weights_sha256: Digest of the final weights, in layer order.
        startup_s: From the start of the process to the first training step.
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
            raise DataError(f"{path}: expected schema version {SCHEMA_VERSION}. Received: {version}")
        for epoch in raw["epochs"]:
            epoch["by_rank"] = [RankTimes(**rank) for rank in epoch.get("by_rank", [])]
        raw["epochs"] = [EpochRecord(**epoch) for epoch in raw["epochs"]]
        return RunRecord(**raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: expected a run record. Received: {error}") from error


class Recorder:
    """The output folder of one run, written by the root alone."""

    def __init__(self, out: Path, world: World) -> None:
        self.out = out
        self.world = world
        self._events = out / "events.jsonl"

    def open(self) -> None:
        """Makes the folder and begins its event log; an older run's record is removed.

        Raises:
            UsageError: it cannot be written. Raised on all ranks.
        """
        with self.world.together():
            if self.world.is_root:
                try:
                    self.out.mkdir(parents=True, exist_ok=True)
                    (self.out / "run.json").unlink(missing_ok=True)
                    self._events.write_text("", encoding="utf-8")
                except OSError as error:
                    raise UsageError(
                        f"--out: expected a folder that can be written. Received: {self.out} "
                        f"({error.strerror})",
                        remedy="--out with another folder",
                    ) from error

    def event(self, key: str, value: Any = None, **metadata: Any) -> None:
        """Appends one line to the event log, with MLPerf's key names.

        Args:
            key: Such as ``run_start``, ``epoch_stop``, ``eval_accuracy``.
            value: JSON value of the event.
            **metadata: Such as ``epoch_num``.
        """
        if not self.world.is_root:
            return
        kind = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}.get(
            key.rsplit("_", 1)[-1], "POINT_IN_TIME"
        )
        line = {"time_ms": time.time_ns() // 1_000_000, "event_type": kind, "key": key, "value": value}
        with open(self._events, "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "metadata": metadata}) + "\n")

    def write(self, record: RunRecord) -> None:
        """Writes ``run.json``, then waits until it is there for all ranks."""
        with self.world.together():
            if self.world.is_root:
                try:
                    files.write_json(self.out / "run.json", dataclasses.asdict(record))
                except OSError as error:
                    raise UsageError(
                        f"{self.out / 'run.json'} cannot be written: {error.strerror}"
                    ) from error
        self.world.barrier()
