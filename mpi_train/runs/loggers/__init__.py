"""Where a run is told as it goes, beside its record: a table, TensorBoard, MLflow; one file each.

All of it is a convenience. So the root alone tells, and a sink in which anything goes wrong is left out
from then on, with one warning: no training is lost for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mpi_train.runs import folder
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.loggers.base import About, Sink
from mpi_train.runs.loggers.csv import EpochsCsv
from mpi_train.runs.loggers.mlflow import MLflow
from mpi_train.runs.loggers.tensorboard import TensorBoard
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime.errors import JobError

__all__ = ["About", "Sink", "Sinks", "chosen"]


def chosen(config: TrainConfig, out: Path) -> list[Sink]:
    """The sinks of a run whose folder is ``out``."""
    sinks: list[Sink] = [EpochsCsv(out / folder.EPOCHS)]
    if config.tensorboard is not None:
        sinks.append(TensorBoard(config.tensorboard))
    if os.environ.get("MLFLOW_TRACKING_URI"):
        sinks.append(MLflow(out / "run.json"))
    return sinks


class Sinks:
    """Several sinks as one, of which nothing is raised.

    Args:
        sinks: They; none where nothing is to be told.
        warn: Shows a line to the user.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None]) -> None:
        self._sinks, self._warn = list(sinks), warn

    def add(self, sink: Sink) -> None:
        """Add a sink before the first step."""
        self._sinks.append(sink)

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        self._each(lambda sink: sink.start(about, epochs))

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        self._each(lambda sink: sink.rewind(epochs))

    def epoch(self, record: EpochRecord) -> None:
        self._each(lambda sink: sink.epoch(record))

    def finish(self, record: RunRecord) -> None:
        self._each(lambda sink: sink.finish(record))

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                tell(sink)
            except Exception as error:
                self._sinks.remove(sink)
                told = str(error) if isinstance(error, JobError) else _first_line(error)
                self._warn(f"{sink.name} is left out from here on: {told}")


def _first_line(error: Exception) -> str:
    """What an error of another library says, which may be pages."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
