"""State of a Keras model and its optimizer for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mpi_train.models.flat import is_seed
from mpi_train.models.optimizers import halve_learning_rate
from mpi_train.runs.checkpoints import Arrays
from mpi_train.training.objective import Objective


class KerasState:
    """Variables of a model and its optimizer, both built; ``scope`` is the context that made them."""

    def __init__(self, objective: Objective, scope: Callable[[], AbstractContextManager[Any]]) -> None:
        self._optimizer, self._scope = objective.optimizer, scope
        variables = [*objective.model.trainable_variables, *objective.states]
        self._variables = {
            **{f"model/{i}": variable for i, variable in enumerate(variables)},
            **{f"optimizer/{i}": variable for i, variable in enumerate(objective.optimizer.variables)},
        }

    def arrays(self) -> Arrays:
        return dict(zip(self._variables, copies_of(list(self._variables.values())), strict=True))

    def restore(self, arrays: Arrays, *, same_size: bool) -> None:
        with self._scope():
            restore(list(self._variables.values()), [arrays[name] for name in self._variables])

    def slow_down(self) -> float:
        with self._scope():
            return halve_learning_rate(self._optimizer)


def copies_of(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Copy variables; of a seed, which differs between the replicas of this process, a row for each."""
    return [
        np.stack([part.numpy() for part in _parts(variable)])
        if is_seed(variable)
        else np.array(variable.numpy())
        for variable in variables
    ]


def restore(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    """Assign what ``copies_of`` returned, inside the scope of the variables."""
    for variable, value in zip(variables, values, strict=True):
        if not is_seed(variable):
            variable.assign(value)
            continue
        for number, part in enumerate(_parts(variable)):
            part.assign(value[number % len(value)])


def _parts(variable: keras.Variable) -> tuple[tf.Variable, ...]:
    """Return the copies of a variable on the replicas of this process; one without a strategy."""
    parts: tuple[tf.Variable, ...] = getattr(variable.value, "values", (variable.value,))
    return parts
