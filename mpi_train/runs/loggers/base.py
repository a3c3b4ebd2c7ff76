"""Interface of the loggers, and the figures of an epoch that they log."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpi_train.runs.record import EpochRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts about a run that are known before its first step.

    Attributes:
        run_id, strategy, command, world_size, environment: Fields of ``RunRecord``.
        config: Flags, as JSON values.
    """

    run_id: str
    strategy: str
    command: str
    world_size: int
    environment: dict[str, Any]
    config: dict[str, Any]


class Logger:
    """Destination of a run's figures. Rank 0 calls it between epochs; every method may raise anything."""

    name: str
    """Name in a warning."""

    def start(self, info: RunInfo, epochs: Sequence[EpochRecord]) -> None:
        """Begin the log. A resumed run has completed ``epochs``, which may have been logged before."""

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """Discard all epochs but ``epochs``, to which the run was rolled back."""

    def epoch(self, record: EpochRecord) -> None:
        """Log a completed epoch."""

    def finish(self, record: RunRecord) -> None:
        """Close the log of a completed run, whose record has been written."""


def scalars(record: EpochRecord) -> dict[str, float]:
    """Collect the figures of an epoch by name, with a prefix for each group; times in seconds.

    A time that differs between ranks gives two figures: mean and maximum over the ranks.
    """
    figures = {
        "train/loss": record.train_loss,
        "train/accuracy": record.train_accuracy,
        "test/loss": record.test_loss,
        "test/accuracy": record.test_accuracy,
        "speed/images_per_s": record.images_per_s,
        "speed/train_s": record.train_s,
        "speed/eval_s": record.eval_s,
        "speed/sync_s": record.sync_s,
    }
    for name in ("compute_s", "moving_s", "waiting_s", "host_s", "hidden_s"):
        seconds = [getattr(rank, name) for rank in record.by_rank]
        if any(seconds) or (seconds and name != "hidden_s"):  # few methods hide an exchange
            figures[f"ranks/{name}_mean"] = statistics.fmean(seconds)
            figures[f"ranks/{name}_max"] = max(seconds)
    return figures
