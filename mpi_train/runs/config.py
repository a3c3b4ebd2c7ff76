"""Options that several jobs share, from what every job takes to what jobs that run as ranks take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpi_train.monitor.progress import Style
from mpi_train.runtime.errors import UsageError
from mpi_train.runtime.flags import at_least, option


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Options of every job that needs TensorFlow."""

    learning_rate: float | None = option(
        None, "step size (default: the optimizer's own)", changes_result=True
    )
    seed: int = option(1, "seed of the weights and of the order of the data", changes_result=True)
    threads: int | None = option(None, "CPU threads of each process (default: its share of the cores)")

    def __post_init__(self) -> None:
        # The seeds of NumPy and Keras have 32 bits; a bench counts up from this one.
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed: expected 0 to {2**31 - 1}. Got: {self.seed}")
        if self.threads is not None:
            at_least("--threads", self.threads, 1)
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate: expected a number above 0. Got: {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class StepConfig(JobConfig):
    """Options on which one step of training depends."""

    model: str = option(
        "cnn", "cnn, mlp, resnet, or package.module:function of your own", changes_result=True
    )
    batch_size: int = option(
        64, "global batch: examples of one step, over all ranks together", changes_result=True
    )
    optimizer: str = option("adam", "any Keras optimizer, by name", changes_result=True)
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "precision of the computation; weights stay float32", changes_result=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--batch-size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig):
    """Options of every training job. Runs that agree in the marked ones can be compared."""

    dataset: str = option("fashion_mnist", "data set that the shards must hold", changes_result=True)
    data: Path | None = option(None, "folder of the shards (default: data/DATASET)", "DIR")
    epochs: int = option(5, "passes over the training set")
    out: Path | None = option(None, "folder for run.json (default: results/STRATEGY)", "DIR")
    resume: str = option(
        "auto", "auto: resume an interrupted run in --out; never; or the path of a checkpoint", "HOW"
    )
    checkpoint_every: int = option(
        0, "steps between two checkpoints within an epoch (0: by time alone)", "STEPS"
    )
    checkpoint_minutes: float = option(5.0, "longest time between two checkpoints", "MINUTES")
    on_nan: Literal["stop", "rollback"] = option(
        "stop", "after a NaN loss: stop, or roll back and halve the learning rate"
    )
    tensorboard: Path | None = option(
        None, "folder of TensorBoard logs, one folder in it for each run", "DIR"
    )
    quiet: bool = option(False, "print nothing but warnings and errors")
    json: bool = option(False, "print one JSON object a line, for programs")
    trace: bool = option(False, "write trace.json, the timeline of all ranks, for ui.perfetto.dev")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--epochs", self.epochs, 1)
        at_least("--checkpoint-every", self.checkpoint_every, 0)
        if not self.checkpoint_minutes > 0:
            raise UsageError(f"--checkpoint-minutes: expected more than 0. Got: {self.checkpoint_minutes}")
        if self.quiet and self.json:
            raise UsageError("--quiet, --json: expected one of them. Got: both")

    @property
    def style(self) -> Style:
        """Style of ``monitor.progress.Progress``."""
        return "quiet" if self.quiet else "json" if self.json else "lines"

    @property
    def data_dir(self) -> Path:
        """Folder with ``manifest.json`` and the shards."""
        return self.data or Path("data") / self.dataset


@dataclass(frozen=True, kw_only=True)
class RanksConfig(TrainConfig):
    """Options of training jobs that run as MPI ranks, which watch each other."""

    stall_timeout: float = option(
        60.0,
        "seconds without a sign of life after which a rank counts as lost; five times that in start-up",
        "SECONDS",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stall_timeout >= 5:
            raise UsageError(f"--stall-timeout: expected at least 5 seconds. Got: {self.stall_timeout:g}")


def one_example_a_rank(batch_size: int, num_ranks: int) -> None:
    """Raise ``UsageError`` if the global batch has fewer examples than there are ranks."""
    if batch_size < num_ranks:
        raise UsageError(
            f"--batch-size is the global batch: expected at least one example for each of the "
            f"{num_ranks} ranks. Got: {batch_size}"
        )
