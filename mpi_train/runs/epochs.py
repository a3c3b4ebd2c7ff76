"""The training protocol: begin or resume, train epoch after epoch, roll back, finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from mpi_train.models.compiling import architecture_of, optimizer_name
from mpi_train.models.flat import digest_of
from mpi_train.models.optimizers import learning_rate_of
from mpi_train.runs.record import RunRecord
from mpi_train.runs.resumable import ResumableRun, State
from mpi_train.runs.run import Run
from mpi_train.runtime.errors import DivergedError
from mpi_train.training.objective import Objective
from mpi_train.training.steps import Steps, plan_steps


def train_epochs(
    run: Run,
    state: State,
    train_epoch: Callable[[ResumableRun], object],
    *,
    objective: Objective,
    export: Callable[[], keras.Model | None],
    sync: dict[str, Any],
    details: Callable[[], dict[str, Any]] = dict,
    layout: dict[str, Any] | None = None,
    save_at_start: bool = False,
) -> RunRecord:
    """Take a run, built and traced, from its first epoch or its last checkpoint to its record.

    Args:
        run, state, save_at_start: See ``ResumableRun``.
        train_epoch: Function that trains the epoch at ``ResumableRun.position``, or what remains of it, and
            ends it with ``ResumableRun.end_epoch``.
        objective: Loss and metrics of the model.
        export: Function that returns the trained Keras model, whole, on the root (elsewhere, it may return
            None), after the last epoch and on all ranks together.
        sync, details: Entries of the record, or a function that returns them after the last epoch, on all
            ranks together.
        layout: Further values that a checkpoint must have in common with this run to be resumed.
    """
    model = objective.model
    run.judge(objective)
    layout = {"architecture": architecture_of(objective.whole), **(layout or {})}
    resumable = ResumableRun(run, state, layout, save_at_start=save_at_start)
    resumable.begin()
    run.start(model.name, model.count_params())
    with resumable.training():
        while resumable.position.epoch <= run.config.epochs:
            try:
                train_epoch(resumable)
            except DivergedError as error:
                resumable.roll_back(error)
    trained = export()
    if trained is not None and run.world.is_root:
        run.save_model(trained)
    return run.finish(
        learning_rate=learning_rate_of(objective.optimizer),
        optimizer=optimizer_name(objective.optimizer),
        sync=sync,
        weights_sha256=digest_of(trained) if trained is not None else "",
        details=details(),
        history=list(resumable.position.history),
        checkpoint_s=resumable.checkpoints.seconds,
    )


def steps_of(run: Run, epoch: int, num_parts: int = 1) -> Steps:
    """Lay out an epoch for this rank and its ``num_parts`` devices."""
    config, replicas = run.config, run.replicas
    return plan_steps(
        (config.seed, epoch),
        run.num_train,
        config.batch_size,
        rank=replicas.rank,
        size=replicas.size,
        num_parts=num_parts,
    )


def begin_epoch(resumable: ResumableRun, num_parts: int = 1) -> tuple[Steps, int]:
    """Begin the present epoch on all ranks together; return its steps and the number of finished ones."""
    steps = steps_of(resumable.run, resumable.position.epoch, num_parts)
    resumable.begin_epoch(len(steps))
    return steps, resumable.position.step
