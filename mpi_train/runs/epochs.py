"""The training protocol: begin or resume, train epoch after epoch, roll back, finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mpi_train.data.examples import Examples
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun, State
from mpi_train.runs.run import Run
from mpi_train.runtime.errors import DivergedError
from mpi_train.training.steps import Steps, dealt, epoch_order, plan_steps


def train_epochs(
    run: Run,
    state: State,
    train_epoch: Callable[[ResumableRun], object],
    *,
    model: tuple[str, int],
    optimizer: keras.Optimizer,
    sync: dict[str, Any],
    weights_sha256: Callable[[], str],
    details: Callable[[], dict[str, Any]] = dict,
    layout: dict[str, Any] | None = None,
    save_at_start: bool = False,
) -> RunRecord:
    """Take a run, built and traced, from its first epoch or its last checkpoint to its record.

    Args:
        run, state, layout, save_at_start: See ``ResumableRun``.
        train_epoch: Function that trains the epoch at ``ResumableRun.position``, or what remains of it, and
            ends it with ``ResumableRun.end_epoch``.
        model: Name of the model, and number of its weights.
        optimizer: Optimizer, for the learning rate in the record.
        sync, weights_sha256, details: Entries of the record, or functions that return them after the last
            epoch, on all ranks together.
    """
    resumable = ResumableRun(run, state, layout, save_at_start=save_at_start)
    resumable.begin()
    run.start(*model)
    with resumable.training():
        while resumable.position.epoch <= run.config.epochs:
            try:
                train_epoch(resumable)
            except DivergedError as error:
                resumable.roll_back(error)
    return run.finish(
        learning_rate=float(keras.ops.convert_to_numpy(optimizer.learning_rate)),
        sync=sync,
        weights_sha256=weights_sha256(),
        details=details(),
        history=list(resumable.position.history),
        checkpoint_s=resumable.checkpoints.seconds,
    )


@dataclass(frozen=True)
class Epoch:
    """An epoch, or what remains of an interrupted one, laid out for one rank.

    Attributes:
        number: Number of the epoch, from 1.
        segment: Number of finished segments, which ran on other numbers of ranks.
        examples, order: Examples of the rank, and the order in which it visits them, int32 (n,).
        steps, first: Layout of the examples in steps, of which ``first`` are finished.
    """

    number: int
    segment: int
    examples: Examples
    order: np.ndarray
    steps: Steps
    first: int


def begin_epoch(resumable: ResumableRun, examples: Examples, *, num_parts: int = 1) -> Epoch:
    """Lay out and begin the present epoch, on all ranks together.

    Args:
        resumable: The run.
        examples: Examples of the rank in a whole epoch.
        num_parts: Number of devices of the rank.

    Raises:
        DataError: examples that belonged to other ranks cannot be read. Raised on all ranks.
    """
    run, number = resumable.run, resumable.position.epoch
    batch_size, seed, rank, size = (
        run.config.batch_size,
        run.config.seed,
        run.replicas.rank,
        run.replicas.size,
    )
    closed, first = resumable.rest_of_epoch()
    num_closed = sum(segment.num_steps for segment in closed)
    if closed:
        # The rest of the epoch is dealt to another number of ranks than began it.
        mine = dealt(run.num_train, batch_size, seed, number, closed, rank, size)
        with run.world.together():
            examples = run.shards.read_some("train", mine)
    num_left = run.num_train - num_closed * batch_size
    steps = plan_steps(num_left, batch_size, rank=rank, size=size, num_parts=num_parts)
    order = epoch_order(seed, number, rank, len(examples), len(closed))
    resumable.begin_epoch(num_closed + len(steps))
    return Epoch(number, len(closed), examples, order, steps, first)
