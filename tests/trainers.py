"""Trainers of classifiers whose outputs are logits, for tests of the parts that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from mpi_train.collectives.averaging import Averaging
from mpi_train.data.examples import Examples
from mpi_train.models.flat import FlatModel
from mpi_train.training.objective import Objective
from mpi_train.training.trainer import Trainer


def objective_of(
    model: keras.Model, examples: Examples, optimizer: str | keras.Optimizer = "adam"
) -> Objective:
    """Compile a model in place, with the cross-entropy and the accuracy."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return Objective(model, examples)


def trainer_of(
    model: keras.Model,
    optimizer: keras.Optimizer,
    examples: Examples,
    averaging: Callable[[FlatModel], Averaging] | None = None,
    **options: Any,
) -> Trainer:
    """Make a trainer on ``examples``, whose exchange ``averaging`` makes; see ``Trainer`` for ``options``."""
    objective = objective_of(model, examples, optimizer)
    flat = FlatModel(model, states=objective.states)
    made = averaging(flat) if averaging else None
    return Trainer(flat, objective.optimizer, examples, objective, averaging=made, **options)
