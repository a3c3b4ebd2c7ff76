"""What a sink is told of a run, and when."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpi_train.runs.record import EpochRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a run before its first step.

    Attributes:
        run_id, strategy, command, world_size, environment: As ``RunRecord`` has them.
        config: The flags, as JSON can hold them.
    """

    run_id: str
    strategy: str
    command: str
    world_size: int
    environment: dict[str, Any]
    config: dict[str, Any]


class Sink(Protocol):
    """Where a run is told; by the root, between its epochs. May raise anything."""

    name: str
    """For a warning."""

    def start(self, about: About, epochs: Sequence[EpochRecord]) -> None:
        """The first step is next; of a run that goes on, these epochs are done, and may have been told."""

    def rewind(self, epochs: Sequence[EpochRecord]) -> None:
        """The run went back: of its epochs these are left."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""

    def finish(self, record: RunRecord) -> None:
        """The run has come to its end, and its record is written."""


def scalars(record: EpochRecord) -> dict[str, float]:
    """The figures of an epoch by name, those of a group with a common beginning; times in seconds.

    Of what differs between ranks, the mean and the largest: the slowest computes longest, and is
    waited for by the one that waits longest.
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
    if record.by_rank:
        hidden = ("hidden_s",) if any(rank.hidden_s for rank in record.by_rank) else ()
        for part in ("compute_s", "moving_s", "waiting_s", "host_s", *hidden):
            seconds = [getattr(rank, part) for rank in record.by_rank]
            figures[f"ranks/{part}_mean"] = statistics.fmean(seconds)
            figures[f"ranks/{part}_max"] = max(seconds)
    return figures
