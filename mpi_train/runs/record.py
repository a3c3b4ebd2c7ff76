"""What a run leaves behind: ``run.json`` (schema version 1) and ``events.jsonl``.

The field names of the two dataclasses are the file format; reports and users' scripts rely on them.
Times are wall-clock seconds; where ranks differ, the slowest counts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_train.runs import folder
from mpi_train.runtime import files
from mpi_train.runtime.errors import DataError, UsageError, unwritable
from mpi_train.runtime.world import World

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
SMALL_BYTES = 1 << 16
"""What a run needs on disk at the least: its record and its events."""


@dataclass(frozen=True)
class RankTimes:
    """Where the time of one rank went in one epoch, its training time in four parts; and what it sent.

    Attributes:
        compute_s: In the graph: batches, gradients, updates.
        moving_s: In exchanges with other ranks, while bytes moved: in an all-reduce, what the last rank to
            arrive needed.
        waiting_s: In exchanges, for ranks that were not yet there.
        host_s: Between the chunks of steps: progress, agreeing on the next one.
        sent_bytes: Of weights, gradients or activations, to other ranks.
        hidden_s: In exchanges while the rank computed: in none of the four parts, as it took no time.
    """

    compute_s: float
    moving_s: float
    waiting_s: float
    host_s: float
    sent_bytes: int = 0
    hidden_s: float = 0.0

    @property
    def parts_s(self) -> tuple[float, float, float, float]:
        """The four parts, which add up to the training time."""
        return self.compute_s, self.moving_s, self.waiting_s, self.host_s


def sum_of(parts: Iterable[Sequence[RankTimes]]) -> list[RankTimes]:
    """The times of each rank over parts of a run; empty if they were on different numbers of ranks."""
    everyone = list(parts)
    if len({len(ranks) for ranks in everyone}) != 1:
        return []
    names = [each.name for each in dataclasses.fields(RankTimes)]
    return [
        RankTimes(*(sum(getattr(part, name) for part in own) for name in names))
        for own in zip(*everyone, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class EpochTotals:
    """What the training of an epoch, or of a part of one, came to, over all ranks together.

    Attributes:
        loss, correct: Sums over ``count`` examples, taken while training.
        train_s: Seconds, of the slowest rank.
        by_rank: Where they went, in rank order; empty where the strategy cannot tell.
    """

    loss: float = 0.0
    correct: float = 0.0
    count: int = 0
    train_s: float = 0.0
    by_rank: list[RankTimes] = field(default_factory=list)

    def __add__(self, other: EpochTotals) -> EpochTotals:
        """Both parts together; of parts on different numbers of ranks ``by_rank`` is not known."""
        return EpochTotals(
            loss=self.loss + other.loss,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            train_s=self.train_s + other.train_s,
            by_rank=sum_of(part.by_rank for part in (self, other) if part.count),
        )

    @property
    def mean_loss(self) -> float:
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def sync_s(self) -> float:
        """Time in exchanges with other ranks, of the rank with the most."""
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


class Recorder:
    """The output folder of one run, written by the root alone.

    Args:
        out: The folder.
        world: The ranks.
        record: Name of the file with the run's record.
    """

    def __init__(self, out: Path, world: World, record: str = "run.json") -> None:
        self.out, self.path = out, out / record
        self._lost_events = False
        self.world = world
        self._events = out / folder.EVENTS

    def open(self) -> None:
        """Makes the folder.

        Raises:
            UsageError: it cannot be written. Raised on all ranks.
        """
        with self.world.together():
            if self.world.is_root:
                try:
                    self.out.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryFile(dir=self.out) as file:
                        file.write(bytes(SMALL_BYTES))  # a full disk lets a file be made, and not be filled
                except OSError as error:
                    raise unwritable(self.out, error) from error

    def begin(self, new_id: str, *, anew: bool) -> str:
        """Begins the event log of a run, or goes on with that of the one which was interrupted here.

        Args:
            new_id: The run's, if it is a new one.
            anew: Whether it is; what the folder holds of an earlier one is then put aside.

        Returns:
            The run's id, on all ranks.

        Raises:
            UsageError: that cannot be moved. Raised on all ranks.
        """
        run_id: str | None = None
        with self.world.together():
            if self.world.is_root:
                if anew:
                    self._put_aside()
                else:
                    run_id = folder.id_of(self.out)
                if run_id is None:  # or it went on from a version that gave none
                    run_id = new_id
                    self.event("run_id", run_id)
        return self.world.gather_all(run_id)[0] or new_id

    def _put_aside(self) -> None:
        try:
            folder.put_aside(self.out)
        except OSError as error:
            raise UsageError(
                f"--out: what {self.out} holds of an earlier run cannot be moved into {folder.FOLDER}: "
                f"{error.strerror}",
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
        try:
            with open(self._events, "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "metadata": metadata}) + "\n")
        except OSError as error:
            # A full disk is no reason to lose the training.
            if not self._lost_events:
                print(f"warning: {self._events}: {error.strerror}; events are lost", file=sys.stderr)
            self._lost_events = True

    def write_mistakes(self, image_shape: Sequence[int], worst: Sequence[dict[str, Any]]) -> None:
        """Writes the examples that the model is most wrong about, as ``Scores.worst`` tells them.

        Args:
            image_shape: Height, width, channels.
            worst: The worst first.
        """
        if self.world.is_root:
            path = self.out / folder.MISTAKES
            try:
                files.write_json(path, {"image_shape": list(image_shape), "worst": list(worst)})
            except OSError as error:
                print(f"warning: {path}: {error.strerror}; not written", file=sys.stderr)

    def write(self, record: DataclassInstance) -> None:
        """Writes the run's record, then waits until it is there for all ranks."""
        with self.world.together():
            if self.world.is_root:
                try:
                    files.write_json(self.path, dataclasses.asdict(record))
                except OSError as error:
                    raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error
        self.world.barrier()
