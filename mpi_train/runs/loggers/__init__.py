"""Loggers of a run beside its record: a CSV table, TensorBoard, MLflow.

Loggers are a convenience. A logger that fails is disabled with one warning; the training continues.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mpi_train.runs import folder
from mpi_train.runs.config import TrainConfig
from mpi_train.runs.loggers.base import Logger, RunInfo
from mpi_train.runs.loggers.csv import EpochsCsv
from mpi_train.runs.loggers.mlflow import MLflow
from mpi_train.runs.loggers.tensorboard import TensorBoard
from mpi_train.runs.record import EpochRecord, RunRecord
from mpi_train.runtime.errors import JobError

__all__ = ["Logger", "Loggers", "RunInfo", "make"]


def make(config: TrainConfig, out: Path) -> list[Logger]:
    """Make the loggers of a run with the output folder ``out``."""
    loggers: list[Logger] = [EpochsCsv(out / folder.EPOCHS)]
    if config.tensorboard is not None:
        loggers.append(TensorBoard(config.tensorboard))
    if os.environ.get("MLFLOW_TRACKING_URI"):
        loggers.append(MLflow(out / "run.json"))
    return loggers


class Loggers(Logger):
    """Several loggers as one, which raises nothing.

    Args:
        loggers: Loggers to call; none on ranks other than 0.
        warn: Function that shows a line to the user.
    """

    def __init__(self, loggers: Sequence[Logger], warn: Callable[[str], None]) -> None:
        self._loggers, self._warn = list(loggers), warn

    def add(self, logger: Logger) -> None:
        """Add a logger before the first step."""
        self._loggers.append(logger)

    def start(self, info: RunInfo, epochs: Sequence[EpochRecord]) -> None:
        self._each(lambda logger: logger.start(info, epochs))

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        self._each(lambda logger: logger.rewind(epochs))

    def epoch(self, record: EpochRecord) -> None:
        self._each(lambda logger: logger.epoch(record))

    def finish(self, record: RunRecord) -> None:
        self._each(lambda logger: logger.finish(record))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:
                self._loggers.remove(logger)
                # Errors of other libraries can be pages long.
                text = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
                self._warn(f"{logger.name} is disabled: {error if isinstance(error, JobError) else text}")
